# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The genes that a description names: in lists, and in sentences, where most words are not genes."""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from .gene_matching import GeneVocabulary
from .prompts import Description

#: Proteins by what people call them, without case and hyphens, where that is no gene's synonym or that of several.
_PROTEINS = {
    name: tuple(genes.split())
    for name, genes in {
        "cd3": "CD3D CD3E CD3G",
        "cd8": "CD8A CD8B",
        "cd16": "FCGR3A",
        "cd20": "MS4A1",
        "cd25": "IL2RA",
        "cd32": "FCGR2A FCGR2B",
        "cd79": "CD79A CD79B",
        "cd97": "ADGRE5",
        "cd105": "ENG",
        "cd205": "LY75",
        "cd326": "EPCAM",
        "hladr": "HLA-DRA HLA-DRB1",
        "hladp": "HLA-DPA1 HLA-DPB1",
        "hladq": "HLA-DQA1 HLA-DQB1",
        "pd1": "PDCD1",
        "ki67": "MKI67",
        "asma": "ACTA2",
        "αsma": "ACTA2",
        "rorgt": "RORC",
        "rorγt": "RORC",
        "ifng": "IFNG",
        "ifnγ": "IFNG",
        "tnfα": "TNF",
        "igd": "IGHD",
        "igm": "IGHM",
        "igg": "IGHG1",
        "iga": "IGHA1",
        "ck18": "KRT18",
        "ecadherin": "CDH1",
        "ncadherin": "CDH2",
        "vecadherin": "CDH5",
        "vimentin": "VIM",
        "perforin": "PRF1",
        "insulin": "INS",
        "glucagon": "GCG",
        "somatostatin": "SST",
        "albumin": "ALB",
    }.items()
}
#: Symbols that are words, or abbreviations of cells and methods: in a sentence they are not genes.
_WORDS = frozenset(
    "ACHE ADA ANG APC APP ARC ATM BAD BID CAD CAMP CAPS CARS CAST CAT CBS CGN CHAD CLOCK COIL COPE DCT DIABLO DTL ERAS "
    "FAP FAR FRY GALE GAN GAS GEM GSC HAL HELLS HR ICE IMPACT KIN LARGE MALL MAX MCC MET MICE MSC MSN MVP NHS NODAL "
    "NOV NUMB OSCAR PALM PAM PDF PER PGC PIGS PIP POLE POLL PREP PRY PTS RAN REL REST RPE SAG SCT SET SHE SKI SLIT SMS "
    "SON SPN STRAP STS STYX SYNC TANK TAT TIMELESS TRAP TRIO TUB WAS".split()
)

#: A list of genes: `markers: INS, IAPP`; or of genes that are not there: `absent: CD4`.
_LIST = re.compile(
    r"\b(?P<absent>(?:absent|negative|not expressed|lacks|lacking)\b\s*(?:for\s*)?)?"
    r"(?P<head>(?:marker\s+|marker-)?genes?|markers?|signature|expresses|expressed|expressing)?\s*:"
    r"(?P<genes>[^.;:\n]*(?:\.(?=\S)[^.;:\n]*)*)",
    re.IGNORECASE,
)
#: A word that may be a gene, with the signs around it: `-CD3E`, `CD4+`, `PD-1`, `HLA-DRA`, `NKX2-1`.
_WORD = re.compile(
    r"(?P<minus>(?<![\w)])[-−–](?=[A-Za-z]))?(?<![\w.])(?P<name>[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*)"
    r"(?P<sign>[+⁺]+|[-−⁻](?![\w]))?"
)
_LEVEL = re.compile(
    r"^(?P<name>.+?)[- ]?(?P<level>positive|negative|pos|neg|high|hi|bright|low|lo|dim|deficient|expressing)$", re.I
)
#: A low level that stands before a gene.
_LOW_BEFORE = re.compile(r"\b(?:low|dim|weak|reduced|little)\s+(?:(?:levels?|expression)\s+of\s+)?$", re.IGNORECASE)
#: A word with Greek letters: `CD3ε`, `TGFβ1`, `α-SMA`.
_GREEK_WORD = re.compile(r"(?<!\w)(?:[α-ω]+-?[A-Za-z][\w]*|[A-Za-z][A-Za-z0-9-]*[α-ω][\w]*)")
_GREEK = str.maketrans("αβγδε", "ABGDE")
#: Genes that share their beginning: `KRT8/18`, `S100A8/A9`, `CD79A/B`.
_SHARED = re.compile(r"\b(?P<first>[A-Za-z][A-Za-z0-9-]*\w)/(?P<other>[A-Za-z]?\d{1,2}|[A-Za-z])\b")
#: Levels that are written together with the next marker: `CD56dimCD16+`.
_JOINED_LEVEL = re.compile(r"(?<=\d)(dim|bright|high|low|hi|lo|pos|neg)(?=CD\d)", re.IGNORECASE)
_AFTER = re.compile(r"^[\s-]+(?P<level>positive|negative|high|bright|low|dim)\b", re.IGNORECASE)
#: Words after which genes are absent, and words that end this, as a new sentence does.
_NEGATION = re.compile(
    r"\b(?:lacks?|lacking|without|no|not|neither|nor|never|absent|absence of|negative for|devoid of|loss of|losing)\b",
    re.IGNORECASE,
)
_END = re.compile(
    r"[.;:](?=\s|$)|\b(?:but|and express\w*|that express\w*|while|whereas|however|with|positive for)\b", re.I
)
#: What stands between the genes of an enumeration.
_BETWEEN = re.compile(
    r"^\s*(?:[,/&|]|\band\b|\bor\b|\bnor\b|\bplus\b|,\s*(?:and|or))*\s*(?:and|or|nor)?\s*$", re.IGNORECASE
)
_ITEM = re.compile(r"[\s,/|&]+|\band\b|\bor\b")


class NamedGenes(NamedTuple):
    """
    The genes that a description names.

    Args:
        present: Ids of genes that mark the cells, in the order of the text.
        absent: Ids of genes that the cells do not express.
        unknown: Names in lists that the vocabulary does not know.
    """

    present: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()

    @classmethod
    def joined(cls, parts: Iterable["NamedGenes"]) -> "NamedGenes":
        """Joins the genes of several texts; a gene that is both present and absent is neither."""
        all_parts = list(parts)
        present = dict.fromkeys(gene for part in all_parts for gene in part.present)
        absent = dict.fromkeys(gene for part in all_parts for gene in part.absent)
        return cls(
            tuple(gene for gene in present if gene not in absent),
            tuple(gene for gene in absent if gene not in present),
            tuple(dict.fromkeys(name for part in all_parts for name in part.unknown)),
        )


class _Mention(NamedTuple):
    """A word of a sentence that may name genes."""

    start: int
    end: int
    genes: tuple[int, ...]
    certain: bool
    level: str


class MarkerReader:
    """
    Finds the genes that descriptions name, by their symbols, Ensembl ids and synonyms in a vocabulary.

    In a list (`markers: INS, IAPP`) every item is a gene, in any case. In a sentence a word is a gene if it is an
    Ensembl id, a symbol of three or more capitals, a `CD` number, or a synonym with a digit (`PD-1`); or if it stands
    in an enumeration with such a gene, or has a sign (`TH+`). Words such as REST, MAX and SET are genes in a list only.
    Genes after `lacks`, `without`, `not` and the like, and before `-`, `-negative`, are absent; `-low` and `-dim` say
    neither.

    Args:
        genes: The vocabulary.

    ```python
    >>> from modeling_langcell.model.gene_matching import GeneVocabulary
    >>> from modeling_langcell.model.marker_genes import MarkerReader
    >>> columns = {"ensembl_ids": ["E1", "E2", "E3"], "medians": [1, 1, 1], "names": ["PDCD1|PD-1", "TOX", "CD4"]}
    >>> MarkerReader(GeneVocabulary(columns)).read_text("T cell at REST with PD-1 and TOX that lacks CD4")
    NamedGenes(present=(2, 3), absent=(4,), unknown=())

    ```"""

    def __init__(self, genes: GeneVocabulary):
        self.genes = genes

    def read(self, description: Description) -> NamedGenes:
        """Finds the genes of a description: those in its lists or, without lists, those that its texts name."""
        if description.markers is None:
            return NamedGenes.joined(map(self.read_text, description.texts))
        present, absent = self._ids(description.markers), self._ids(description.absent)
        unknown = self._unknown((*description.markers, *description.absent))
        return NamedGenes.joined([NamedGenes(present, absent, unknown)])

    def read_text(self, text: str) -> NamedGenes:
        """Finds the genes that a text names."""
        text = self._spelled_out(text)
        parts = []
        for found in _gene_lists(text):
            items = [item for item in _ITEM.split(found["genes"]) if item]
            minus = [item[1:] for item in items if item[0] in "-−–"]
            plain = [item.rstrip("+⁺") for item in items if item[0] not in "-−–"]
            absent, present = (plain + minus, []) if found["absent"] else (minus, plain)
            parts.append(NamedGenes(self._ids(present), self._ids(absent), self._unknown(present + absent)))
        return NamedGenes.joined([*parts, self._read_sentences(without_gene_lists(text))])

    def _spelled_out(self, text: str) -> str:
        """Returns a text with the names of genes that are written together, or with Greek letters, spelled out."""
        text = _GREEK_WORD.sub(lambda found: self._in_latin(found[0]), _JOINED_LEVEL.sub(r"\1 ", text))
        before = ""
        while text != before:  # Of MCM2/3/5, each round spells out one.
            before, text = text, _SHARED.sub(self._with_shared_beginning, text)
        return text

    def _in_latin(self, word: str) -> str:
        """Returns a name of a gene without Greek letters; a blank for other words, whose rest is not a gene either."""
        latin = word.translate(_GREEK)
        bare = re.sub("-?[α-ω]+.*", "", word)
        for name in (word, latin, re.sub(r"(.)\1$", r"\1", latin), bare):
            if genes := self._resolve(name):
                return self.genes.symbol_of(genes[0]) if len(genes) == 1 else bare
        return " "

    def _with_shared_beginning(self, found: re.Match) -> str:
        first, other = found["first"], found["other"]
        if self._candidates(first)[0]:
            for length in range(len(first) - 1, max(1, len(first) - 4), -1):
                if self._candidates(whole := first[:length] + other)[0]:
                    return f"{first}/{whole}"
        return found[0]

    def _read_sentences(self, text: str) -> NamedGenes:
        mentions = [one for found in _WORD.finditer(text) for one in self._mentions(found, text)]
        certain = [one.certain for one in mentions]
        for step in (1, -1):  # An enumeration spreads from a certain gene both ways.
            order = range(len(mentions))[::step]
            for here, there in pairwise(order):
                first, second = sorted((here, there))
                gap = text[mentions[first].end : mentions[second].start]
                certain[there] |= certain[here] and _BETWEEN.match(gap) is not None and gap.strip() != ""
        present: list[int] = []
        absent: list[int] = []
        for mention, sure in zip(mentions, certain, strict=True):
            if sure and mention.level != "low":
                negated = mention.level == "negative" or (mention.level == "" and _is_negated(text[: mention.start]))
                (absent if negated else present).extend(mention.genes)
        return NamedGenes.joined([NamedGenes(tuple(present), tuple(absent))])

    def _mentions(self, found: re.Match, text: str) -> list[_Mention]:
        """Returns the genes that a word may name: one, or several that are joined by signs (`CD3-CD56+`)."""
        name, sign = found["name"], found["sign"] or ""
        level = {"+": "positive", "⁺": "positive", "": ""}.get(sign[:1], "negative")
        if found["minus"]:
            level = "negative"
        if not self._candidates(name)[0] and (parts := _LEVEL.match(name)):
            name, level = parts["name"].rstrip("-"), _level(parts["level"])
        elif level == "" and (after := _AFTER.match(text[found.end() :])):
            level = _level(after["level"])
        elif level == "" and _LOW_BEFORE.search(text[: found.start()]):
            level = "low"
        genes, certain = self._candidates(name)
        if not genes and "-" in name:
            pieces = name.split("-")
            if all(self._candidates(piece)[1] for piece in pieces):
                levels = ["negative"] * (len(pieces) - 1) + [level]
                return [
                    _Mention(found.start(), found.end(), self._candidates(piece)[0], True, one)
                    for piece, one in zip(pieces, levels, strict=True)
                ]
        if not genes and len(name) >= 3 and level in ("positive", "negative"):
            genes = self._resolve(name)  # A sign says that it is a gene: Foxp3+, c-KIT+, IgD-.
        signed = level in ("positive", "negative") and bool(sign or found["minus"])
        return [_Mention(found.start(), found.end(), genes, certain or signed, level)] if genes else []

    def _candidates(self, name: str) -> tuple[tuple[int, ...], bool]:
        """Returns the genes that a word of a sentence may name, and whether it is certain without its surroundings."""
        if re.fullmatch(r"cd\d+[a-z]{0,2}|hla-d[pqr]|pd-?1|ki-?67", name, re.IGNORECASE):
            return self._resolve(name), True
        found = self.genes.id_of(name)
        if found is None and re.search(r"[A-Z]-\d", name):
            name = name.replace("-", "")  # Proteins are often written with a hyphen: LAG-3, CTLA-4.
            found = self.genes.id_of(name)
        if found is None:
            return (), False
        is_symbol = self._is_symbol(name) or name.startswith("ENSG")
        has_digit = any(map(str.isdigit, name))
        if is_symbol:
            return (found,), len(name) >= 3 and name not in _WORDS and name[0].isupper()
        return (found,), len(name) >= 4 and has_digit

    def _resolve(self, name: str) -> tuple[int, ...]:
        """Returns the genes of a list's item: those of a protein, or one in any case."""
        folded = name.casefold().replace("-", "")
        if folded in _PROTEINS and not self._is_symbol(name):
            return tuple(found for one in _PROTEINS[folded] if (found := self.genes.id_of(one)) is not None)
        for one in (name, folded):
            if (found := self.genes.id_of(one, any_case=True)) is not None:
                return (found,)
        return ()

    def _is_symbol(self, name: str) -> bool:
        found = self.genes.id_of(name)
        return found is not None and self.genes.symbol_of(found) == name

    def _ids(self, names: Iterable[str]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(found for name in names for found in self._resolve(name)))

    def _unknown(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in names if not self._resolve(name)))


def _gene_lists(text: str) -> list[re.Match]:
    return [found for found in _LIST.finditer(text) if found["absent"] or found["head"]]


def without_gene_lists(text: str) -> str:
    """
    Returns a text without its lists of genes, with one blank for each.

    ```python
    >>> from modeling_langcell.model.marker_genes import without_gene_lists
    >>> without_gene_lists("cell type: beta cell. Markers: INS, IAPP.")
    'cell type: beta cell.'

    ```"""
    for found in reversed(_gene_lists(text)):
        text = f"{text[: found.start()].rstrip()} {text[found.end() :].lstrip(' .;')}"
    return text.strip()


def _level(word: str) -> str:
    """Returns the level that a word says: positive, negative or low."""
    word = word.casefold()
    if word in ("negative", "neg", "deficient"):
        return "negative"
    return "low" if word in ("low", "lo", "dim") else "positive"


def _is_negated(before: str) -> bool:
    """Returns true if the words before a gene, in its clause, say that it is absent."""
    negations = [found.end() for found in _NEGATION.finditer(before)]
    ends = [found.end() for found in _END.finditer(before)]
    return bool(negations) and negations[-1] > max(ends, default=-1)


__all__ = ["MarkerReader", "NamedGenes", "without_gene_lists"]
