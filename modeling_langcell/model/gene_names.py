# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How people write the names of genes: what else stands in a name, and what tools make of it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

#: Organisms by what names of them and of their genomes begin with.
ORGANISMS = {
    "human": ("hg", "grch", "human", "homo sapiens", "ncbitaxon:9606"),
    "mouse": ("mm", "grcm", "mouse", "mus musculus", "ncbitaxon:10090"),
    "rat": ("rn", "grcr", "rat", "rattus"),
    "zebrafish": ("grcz", "zebrafish", "danio"),
}
#: The genome in front of a name (`GRCh38_CD3E`, `mm10___Cd3e`, `hg19-CD3E`), and what GFF files put there.
_GENOME = re.compile(
    r"^(?:(?P<genome>(?:hg|mm|rn|GRC[hmrzg])\d+(?:\.?p\d+)?(?:-\d{4}-[A-Z]|-\d+\.\d+\.\d+)?(?:_premrna)?|human|mouse|homo_sapiens|mus_musculus)"
    r"(?:_+|-+|\.+)|gene[:_-]|rna_)(?=\w)",
    re.IGNORECASE,
)
#: A text that Python wrote with its quotes (`b'CD3E'`), or a spreadsheet.
_QUOTED = re.compile(r"^b?(['\"])(.*)\1$")
#: An Ensembl gene id, wherever it stands, with its version, the suffixes of lifted and repeated ids, and GENCODE's mark
#: of the second copy on chromosome Y, which was once an R in place of a zero.
ENSEMBL_ID = re.compile(
    r"(?<![A-Za-z0-9])(?P<kind>ENS[A-Z]*G)(?P<copy>R?)(?P<number>\d+)(?![A-Za-z0-9])"
    r"(?:[._-]\d+(?![A-Za-z0-9]))*(?:_PAR_Y)?",
    re.IGNORECASE,
)
_SEPARATORS = re.compile(r"[|:;,()\[\]\s/~#=@]+")
#: Numbers of other databases beside a symbol, RefSeq's (`NM_000733.4`) among them.
_IDENTIFIER = re.compile(
    r"^(?:\d+|HGNC|MGI|NCBI|Entrez\w*|ENS[A-Z]*[TP]\d+(?:\.\d+)?|[ANWXYZ][CGMPRTWZ]_\d+(?:\.\d+)?)$", re.IGNORECASE
)
#: A name that is there twice (`CD3E_CD3E`).
_TWICE = re.compile(r"^(.+)[_|:;]\1$")
_MISSING = {"", "na", "nan", "none", "null", "<na>", "n/a", "-", "?"}
#: Open reading frames, whose symbols alone have small letters (`C9orf72`).
_CAPITAL_ORF = re.compile(r"^(C(?:\d+|X|Y))ORF(?=\d)")
_EDGES = "_-.|:;,/ []()"
#: The chromosome after a name, as in CEL-Seq2 (`CD3E__chr11`).
_CHROMOSOME = re.compile(r"_+chr(?:\d+|X|Y|MT?)$")
#: Characters that nobody sees, as spreadsheets leave them.
_INVISIBLE = "\ufeff\u200b\u200c\u200d \t\r\n\xa0"
#: What spreadsheets make of the old symbols `SEPT7`, `MARCH8` and `DEC1`.
_DATE = re.compile(
    r"^(?:(?P<day>\d{1,2})-(?P<month>sept?|mar|dec)|(?P<month_first>sept?|mar|dec)-(?P<day_last>\d{1,2})"
    r"|\d{4}-(?P<iso_month>0[39]|12)-(?P<iso_day>\d{2})(?: 00:00:00)?)$",
    re.IGNORECASE,
)
#: The genes of each of these months. The 1st and 2nd of March may be two genes each (MARCH1 and MARC1).
_SEPTIN, _MARCHF, _DELEC = ("SEPTIN", range(1, 15)), ("MARCHF", range(3, 12)), ("DELEC", range(1, 2))
_OF_MONTH = {"sep": _SEPTIN, "09": _SEPTIN, "mar": _MARCHF, "03": _MARCHF, "dec": _DELEC, "12": _DELEC}
_REPEATED = re.compile(r"^(.+)[-.]\d+$")
_NEITHER_LETTER_NOR_DIGIT = re.compile(r"[^A-Za-z0-9]")


@dataclass(frozen=True)
class GeneName:
    """
    What a name says.

    Args:
        ensembl_id: The Ensembl id in it, without its version; None if there is none.
        symbols: What may be a symbol: the whole name without its Ensembl id, and then its parts.
        organism: The organism of the genome that it begins with; None if there is none.
    """

    ensembl_id: str | None
    symbols: tuple[str, ...]
    organism: str | None = None

    @classmethod
    def read(cls, text: str) -> "GeneName":
        """
        Reads a name, which may hold a genome, an Ensembl id, a symbol, and numbers of other databases.

        ```python
        >>> from modeling_langcell.model.gene_names import GeneName
        >>> GeneName.read("GRCh38_ENSG00000112096.5_2|SOD2")
        GeneName(ensembl_id='ENSG00000112096', symbols=('SOD2',), organism='human')
        >>> GeneName.read("TP53 (7157)")
        GeneName(ensembl_id=None, symbols=('TP53 (7157)', 'TP53'), organism=None)

        ```"""
        text, organism = text.strip(_INVISIBLE), None
        if quoted := _QUOTED.match(text):
            text = quoted[2].strip()
        if genome := _GENOME.match(text):
            text, organism = text[genome.end() :], genome["genome"] and organism_of(genome["genome"])
        found = ENSEMBL_ID.search(text) if "ens" in text.casefold() else None
        ensembl_id = None
        if found is not None:
            ensembl_id = found["kind"].upper() + ("0" if found["copy"] else "") + found["number"]
            text = f"{text[: found.start()].rstrip(_EDGES)} {text[found.end() :].lstrip(_EDGES)}".strip()
        text = _TWICE.sub(r"\1", _CHROMOSOME.sub("", text))
        symbols = () if is_missing(text) or text.isdigit() else (text, *_parts(text))
        return cls(ensembl_id, tuple(dict.fromkeys((*symbols, *_before_a_spreadsheet(text)))), organism)


def organism_of(name: str) -> str:
    """Returns the organism that a name of it or of its genome means (`Mus musculus`, `mm10`), or else the name."""
    folded = name.casefold().replace("_", " ")
    for organism, beginnings in ORGANISMS.items():
        # Of the letters of a genome (`hg`), no other may follow: `mm` is not the beginning of a name.
        if any(folded == one or re.match(rf"{re.escape(one)}[\d.]", folded) for one in beginnings):
            return organism
    return name


def is_missing(text: str) -> bool:
    """Returns true for what pandas, R and people write in place of a name that is not there."""
    return text.casefold() in _MISSING


def _parts(text: str) -> list[str]:
    """Returns the parts of a name that may be a symbol: no numbers of databases, and nothing where it has no parts."""
    # A sentence has no symbols that could be told from its words.
    if ("_" not in text and not _SEPARATORS.search(text)) or _IDENTIFIER.match(text) or len(text.split()) > 2:
        return []
    parts = [part for part in _SEPARATORS.split(text) if part and not _IDENTIFIER.match(part)]
    # An underscore separates only what is beside a number (`TP53_7157`), since it is part of names, too.
    finer = [part for part in text.split("_") if part and not _IDENTIFIER.match(part)]
    return [part for part in (*parts, *(finer if len(finer) == 1 and text.count("_") == 1 else ())) if part != text]


def _before_a_spreadsheet(text: str) -> list[str]:
    """Returns the symbol that became a date, in human's spelling and in mouse's."""
    if not (date := _DATE.match(text)):
        return []
    month = (date["month"] or date["month_first"] or date["iso_month"]).casefold()[:3]
    family, numbers = _OF_MONTH[month]
    day = int(date["day"] or date["day_last"] or date["iso_day"])
    return [f"{family}{day}", f"{capitalised(family)}{day}"] if day in numbers else []


def without_repetition(names: Sequence[str], is_known: Callable[[str], bool]) -> Iterator[str]:
    """
    Yields names without the number by which anndata (`TBCE-1`), R (`TBCE.1`) and others tell the second of two genes of
    one name from the first: it is left out where the first is among the names. After an underscore it numbers the
    guides for a gene (`STAT1_2`).
    """
    present = set(names)
    for name in names:
        repeated = _REPEATED.match(name)
        yield repeated[1] if repeated and repeated[1] in present and not is_known(name) else name


def mangled(symbol: str) -> str:
    """
    Returns what R's `make.names` makes of a symbol (`HLA.DRA`, `X7SK`), with the underscores as points, too, which
    Seurat turns into hyphens, and with the small letters of an open reading frame (`C9orf72`), which capitals lose.
    Spellings that differ in nothing else become equal.
    """
    symbol = _CAPITAL_ORF.sub(r"\1orf", symbol)
    plain = symbol if symbol.isalnum() and symbol.isascii() else _NEITHER_LETTER_NOR_DIGIT.sub(".", symbol)
    return f"X{plain}" if plain[:1].isdigit() else plain


def capitalised(symbol: str) -> str:
    """Returns a symbol as the mouse's is written: `Cd3e` for `CD3E`."""
    return symbol[:1].upper() + symbol[1:].lower()


__all__ = [
    "ENSEMBL_ID",
    "ORGANISMS",
    "GeneName",
    "capitalised",
    "is_missing",
    "mangled",
    "organism_of",
    "without_repetition",
]
