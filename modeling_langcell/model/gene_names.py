# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How people write the names of genes: what else stands in a name, and what tools make of it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

#: The genome in front of a name (`GRCh38_CD3E`, `mm10___Cd3e`, `hg19-CD3E`), and what GFF files put there.
_GENOME = re.compile(r"^(?:(?:(?:hg|mm|rn|GRC[a-z])\d+|human|mouse)(?:_+|-+|\.+)|gene[:-])(?=\w)", re.IGNORECASE)
#: An Ensembl gene id, wherever it stands, with its version, the suffixes of lifted and repeated ids, and GENCODE's mark
#: of the second copy on chromosome Y, which was once an R in place of a zero.
_ENSEMBL_ID = re.compile(
    r"(?<![A-Za-z0-9])(?P<kind>ENS[A-Z]*G)(?P<copy>R?)(?P<number>\d+)(?![A-Za-z0-9])"
    r"(?:[._-]\d+(?![A-Za-z0-9]))*(?:_PAR_Y)?"
)
_SEPARATORS = re.compile(r"[|:;,()\[\]\s/]+")
#: Numbers of other databases beside a symbol.
_IDENTIFIER = re.compile(r"^(?:\d+|HGNC|MGI|NCBI|Entrez\w*|ENS[A-Z]*[TP]\d+(?:\.\d+)?)$", re.IGNORECASE)
_EDGES = "_-.|:;,/ "
_REPEATED = re.compile(r"^(.+)[-._]\d+$")
_NEITHER_LETTER_NOR_DIGIT = re.compile(r"[^A-Za-z0-9]")


@dataclass(frozen=True)
class GeneName:
    """
    What a name says.

    Args:
        ensembl_id: The Ensembl id in it, without its version; None if there is none.
        symbols: What may be a symbol, the most literal first.
    """

    ensembl_id: str | None
    symbols: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> "GeneName":
        """
        Reads a name, which may hold a genome, an Ensembl id, a symbol, and numbers of other databases.

        ```python
        >>> from modeling_langcell.model.gene_names import GeneName
        >>> GeneName.read("GRCh38_ENSG00000112096.5_2|SOD2")
        GeneName(ensembl_id='ENSG00000112096', symbols=('SOD2',))
        >>> GeneName.read("TP53 (7157)")
        GeneName(ensembl_id=None, symbols=('TP53 (7157)', 'TP53'))

        ```"""
        text = _GENOME.sub("", text.strip())
        found = _ENSEMBL_ID.search(text) if "ENS" in text else None
        if found is None:
            return cls(None, tuple(dict.fromkeys((text, *_parts(text)))))
        ensembl_id = found["kind"] + ("0" if found["copy"] else "") + found["number"]
        rest = f"{text[: found.start()].rstrip(_EDGES)} {text[found.end() :].lstrip(_EDGES)}".strip()
        return cls(ensembl_id, tuple(dict.fromkeys((*([rest] if rest else []), *_parts(rest)))))


def _parts(text: str) -> list[str]:
    """Returns the parts of a name that may be a symbol: no numbers of databases, and nothing where it has no parts."""
    if "_" not in text and not _SEPARATORS.search(text):
        return []
    parts = [part for part in _SEPARATORS.split(text) if part and not _IDENTIFIER.match(part)]
    # An underscore separates only what is beside a number or itself (`TP53_7157`), since it is part of names, too.
    finer = {part for part in text.split("_") if part and not _IDENTIFIER.match(part)}
    return [part for part in (*parts, *(finer if len(finer) == 1 else ())) if part != text]


def without_repetition(names: Sequence[str], is_known: Callable[[str], bool]) -> Iterator[str]:
    """
    Yields names without the number by which anndata (`TBCE-1`), R (`TBCE.1`) and others tell the second of two genes of
    one name from the first: it is left out where the first is among the names.
    """
    present = set(names)
    for name in names:
        repeated = _REPEATED.match(name)
        yield repeated[1] if repeated and repeated[1] in present and not is_known(name) else name


def mangled(symbol: str) -> str:
    """
    Returns what R's `make.names` makes of a symbol (`HLA.DRA`, `X7SK`), with the underscores as points, too, which
    Seurat turns into hyphens. Spellings that differ in nothing else become equal.
    """
    plain = symbol if symbol.isalnum() and symbol.isascii() else _NEITHER_LETTER_NOR_DIGIT.sub(".", symbol)
    return f"X{plain}" if plain[:1].isdigit() else plain


def capitalised(symbol: str) -> str:
    """Returns a symbol as the mouse's is written: `Cd3e` for `CD3E`."""
    return symbol[:1].upper() + symbol[1:].lower()


__all__ = ["GeneName", "capitalised", "mangled", "without_repetition"]
