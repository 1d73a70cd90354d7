# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The genes that a model knows, how the genes of a matrix are matched to them, and their usual places in a cell."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from .errors import InputError
from .gene_names import ORGANISMS, GeneName, capitalised, mangled, organism_of, without_repetition


@dataclass(frozen=True)
class GeneMatch:
    """
    The genes of a matrix that the vocabulary knows.

    Args:
        token_ids: `(genes,)` id of each gene, -1 for unknown ones.
        by_ensembl_id, by_symbol, by_synonym: Number of genes that were matched by each kind of name.
        organism: The organism whose names of genes were read.
        columns: `(genes,)` columns of their names, for messages.
        is_foreign: `(genes,)` true for the genes of another organism's genome (`mm10_Cd3e`).
        only_elsewhere: Numbers of genes that only another organism has, by its name.
        foreign_ids: Beginning of many of the genes' Ensembl ids that no known organism has; None if there are none.
    """

    token_ids: np.ndarray
    by_ensembl_id: int
    by_symbol: int
    by_synonym: int
    organism: str
    columns: Sequence[Sequence[str]]
    is_foreign: np.ndarray
    only_elsewhere: Mapping[str, int]
    foreign_ids: str | None

    def names_of(self, gene: int) -> list[str]:
        """Returns the different names of a gene of the matrix."""
        return list(dict.fromkeys(name for column in self.columns if (name := str(column[gene]))))

    @property
    def fraction(self) -> float:
        """Share of the matrix's genes that is known."""
        return float((self.token_ids >= 0).mean())

    @cached_property
    def has_duplicates(self) -> bool:
        """True where several genes of the matrix are one gene of the vocabulary; their counts are summed."""
        known = self.token_ids[self.token_ids >= 0]
        return len(np.unique(known)) < len(known)


@dataclass(frozen=True)
class _Names:
    """
    What the genes are called in one organism.

    Args:
        ensembl_ids, symbols: Their ids by Ensembl id and by symbol.
        find_synonyms: Returns their ids by unambiguous synonym; called when it is first needed.
    """

    ensembl_ids: dict[str, int]
    symbols: dict[str, int]
    find_synonyms: Callable[[], dict[str, int]]

    @cached_property
    def synonyms(self) -> dict[str, int]:
        """Ids by unambiguous synonym."""
        return self.find_synonyms()

    @cached_property
    def spellings(self) -> dict[str, int]:
        """
        Ids by mangled names, and by symbols that lost their hyphens (`HLADRA`); a symbol comes before a synonym, and
        what two genes share is left out.
        """
        hyphenated = {name: token_id for name, token_id in self.symbols.items() if "-" in name}
        joined = _unambiguous((hyphenated,), lambda name: name.replace("-", ""))
        return joined | _unambiguous((self.symbols, self.synonyms), mangled)

    @cached_property
    def kinds(self) -> set[str]:
        """Beginnings of the Ensembl ids: `ENSG` in human."""
        return {_kind(ensembl_id) for ensembl_id in self.ensembl_ids}

    def knows(self, name: str) -> bool:
        """Returns true for a symbol or a synonym, mangled or not."""
        return name in self.symbols or name in self.synonyms or mangled(name) in self.spellings

    def share_of(self, rows: Sequence[Sequence[GeneName]]) -> float:
        """Returns the share of a matrix's genes that have an Ensembl id or a symbol of this organism."""
        found = (
            any(name.ensembl_id in self.ensembl_ids or not self.symbols.keys().isdisjoint(name.symbols) for name in row)
            for row in rows
        )
        return sum(found) / len(rows)


#: Names of mitochondrial genes, and their bare forms in NCBI's references. As synonyms of other genes they would give
#: these, among the most frequent transcripts of a cell, to an enzyme or a pseudogene.
_MITOCHONDRIAL = re.compile(r"(?:MT-?)?(?:COX?[123]|ND(?:[12356]|4L?)|ATP[68]|CYT?B|RNR[12])")

_FOREIGN = 0.05  # Share of genes from which another organism is considered.


class GeneVocabulary:
    """
    Token ids, medians and names of the genes that a model knows.

    Args:
        columns: `ensembl_ids`, `medians` and `names`, and perhaps `organism` and `orthologs`, as
            `LangCellFeatureExtractor` takes them.

    Attributes:
        pad_token_id, mask_token_id, cls_token_id: Ids of `<pad>` (0), `<mask>` (1) and `<cls>`, which is the last.
        median_of_id: `(cls_token_id,)` median of each id; NaN for special ids and for genes that are never used.
        organisms: The organisms whose genes can be read, that of the model first.

    Raises:
        InputError: The columns are missing, of different lengths, or of the wrong types.
    """

    pad_token_id, mask_token_id, first_gene_id = 0, 1, 2

    def __init__(self, columns: dict[str, Any]):
        ensembl_ids, medians, names = _checked_columns(columns)
        token_ids = range(self.first_gene_id, self.first_gene_id + len(ensembl_ids))
        self.cls_token_id = token_ids.stop
        self.median_of_id = np.concatenate([[np.nan] * self.first_gene_id, medians])
        self._has_median: list[bool] = (~np.isnan(self.median_of_id)).tolist()
        symbols, synonyms = _by_name(token_ids, names)
        self._names = _Names(dict(zip(ensembl_ids, token_ids, strict=True)), symbols, lambda: synonyms)
        own = {token_id: symbol for symbol, token_id in self._names.symbols.items()}
        self._symbols = [own.get(token_id, i) for token_id, i in zip(token_ids, ensembl_ids, strict=True)]
        self._names_in = {_organism(columns): self._names}
        for organism, joined in _checked_orthologs(columns, len(ensembl_ids)).items():
            self._names_in[organism] = self._orthologs(token_ids, joined)
        self._latest: tuple[tuple, GeneMatch] | None = None

    def _orthologs(self, token_ids: range, joined: Sequence[str]) -> _Names:
        """
        Returns the names of another organism: `id|symbol` of each gene's one ortholog, or nothing. Nearly all of a gene
        with several orthologs, or none in the table, have the same letters in both organisms if they are one family:
        the gene of that name is a synonym.
        """
        ids: dict[str, int] = {}
        symbols: dict[str, int] = {}
        for token_id, names in zip(token_ids, joined, strict=True):
            # Where two genes have one ortholog, the first has its names, as with symbols of the model's own organism.
            for table, name in zip((ids, symbols), names.split("|", 1) if names else [], strict=False):
                table.setdefault(name, token_id)
        own = self._names
        return _Names(ids, symbols, lambda: _unambiguous((own.symbols, own.synonyms), capitalised))

    def __len__(self) -> int:
        """Number of ids, including special ones: the cell tower's `vocab_size`."""
        return self.cls_token_id + 1

    @property
    def organisms(self) -> list[str]:
        """The organisms whose genes can be read, that of the model first."""
        return list(self._names_in)

    def id_of(self, name: str, any_case: bool = False) -> int | None:
        """
        Returns the id of a gene with a median, by its Ensembl id, symbol or unambiguous synonym; None if there is none.
        """
        for table in (self._names.ensembl_ids, self._names.symbols, self._names.synonyms):
            if (found := table.get(name)) is not None and self._is_used(found):
                return found
        return self._id_of_folded.get(name.casefold()) if any_case else None

    @cached_property
    def _id_of_folded(self) -> dict[str, int]:
        """Ids by names without case; a symbol comes before a synonym, and what two genes share is left out."""
        tables = (self._names.symbols, self._names.synonyms)
        return _unambiguous(
            [{name: found for name, found in table.items() if self._is_used(found)} for table in tables], str.casefold
        )

    def _is_used(self, token_id: int) -> bool:
        return self._has_median[token_id]

    def symbol_of(self, token_id: int) -> str:
        """Returns the symbol of a gene, or its Ensembl id where it has no symbol or that of another gene."""
        return self._symbols[token_id - self.first_gene_id]

    def match(self, *columns: Sequence[str], organism: str | None = None) -> GeneMatch:
        """
        Finds the genes of a matrix in the vocabulary, wherever their names stand: `GRCh38_CD3E`, `ENSG00000198851.10`
        and `ENSG00000198851|CD3E` are one gene.

        A gene is found by an Ensembl id in any column, or by its symbol if it has no Ensembl id. These genes are
        certain, and several of them that are one are summed. The others are found, if no certain gene is the same, by a
        symbol that is a part of a name or beside an Ensembl id that is unknown, by a synonym, or by a name that R or
        Seurat changed. A genome in front of a name tells its organism.

        Args:
            columns: One or more `(genes,)` columns of names, the most trusted first.
            organism: One of `organisms`, also by its Latin name; by default the one that knows the most of these genes.

        Raises:
            InputError: No such organism.
        """
        # One file is matched several times in a row: to find its tissue, to encode it, to examine it, to explain it.
        asked = (tuple(map(tuple, columns)), organism)
        if self._latest is None or self._latest[0] != asked:
            self._latest = asked, self._match(columns, organism)
        return self._latest[1]

    def _match(self, columns: Sequence[Sequence[str]], organism: str | None) -> GeneMatch:
        if organism is not None and organism not in self._names_in:
            organism = organism_of(organism)
        if organism is not None and organism not in self._names_in:
            known = " and ".join(self.organisms)
            raise InputError(f"This checkpoint reads the genes of {known}, not of {organism!r}.")
        rows, own = self._read(columns), self.organisms[0]
        genomes = np.array([next((name.organism for name in row if name.organism), "") for row in rows], dtype=object)
        found = {
            name: self._find(names, rows, self._are_foreign(name, genomes))
            for name, names in self._names_in.items()
            if organism == name
            or (organism is None and (name == own or max(names.share_of(rows), (genomes == name).mean()) > _FOREIGN))
        }
        best = max(found, key=lambda name: (found[name][0] >= 0).sum())
        token_ids, matched_by = found[best]
        token_ids.flags.writeable = False
        return GeneMatch(
            token_ids,
            by_ensembl_id=int((matched_by == "ensembl").sum()),
            by_symbol=int((matched_by == "symbol").sum()),
            by_synonym=int((matched_by == "synonym").sum()),
            organism=best,
            columns=columns,
            is_foreign=self._are_foreign(best, genomes),
            only_elsewhere={
                name: int(((token_ids < 0) & ((ids >= 0) | (genomes == name))).sum())
                for name, (ids, _) in found.items()
                if name != best
            },
            foreign_ids=self._foreign_ids(rows),
        )

    def _are_foreign(self, organism: str, genomes: np.ndarray) -> np.ndarray:
        """Returns `(genes,)` booleans: true where the genome is that of another organism than this one."""
        is_named = organism_of(organism) in ORGANISMS
        return (genomes != "") & (genomes != organism_of(organism)) if is_named else np.zeros(len(genomes), dtype=bool)

    def _foreign_ids(self, rows: Sequence[Sequence[GeneName]]) -> str | None:
        """Returns the beginning of the Ensembl ids of many genes, if those of no known organism begin so."""
        ids = (next((name.ensembl_id for name in row if name.ensembl_id), None) for row in rows)
        kinds = Counter(_kind(ensembl_id) for ensembl_id in ids if ensembl_id is not None)
        known = {kind for names in self._names_in.values() for kind in names.kinds}
        most, number = max(
            ((kind, kinds[kind]) for kind in kinds.keys() - known), key=lambda one: one[1], default=("", 0)
        )
        return most if number > _FOREIGN * len(rows) else None

    def _read(self, columns: Sequence[Sequence[str]]) -> list[tuple[GeneName, ...]]:
        def is_known(name: str) -> bool:
            return any(names.knows(name) for names in self._names_in.values())

        read = (map(GeneName.read, without_repetition(column, is_known)) for column in columns)
        return list(zip(*read, strict=True))

    def _find(
        self, names: _Names, rows: Sequence[Sequence[GeneName]], is_foreign: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(genes,)` ids, -1 for unknown genes, and kinds of names by which they were found."""
        token_ids = np.full(len(rows), -1, dtype=np.int32)
        matched_by = np.full(len(rows), "", dtype="U7")
        others: list[tuple[int, list[str]]] = []
        for gene, row in enumerate(rows):
            if is_foreign[gene]:
                continue
            ensembl_ids = [name.ensembl_id for name in row if name.ensembl_id]
            symbols = [symbol for name in row for symbol in name.symbols]
            token_id, how = _first_known(names.ensembl_ids, ensembl_ids or symbols), "ensembl"
            if token_id < 0 and not ensembl_ids:
                token_id, how = _first_known(names.symbols, [one for name in row for one in name.symbols[:1]]), "symbol"
            if token_id >= 0:
                token_ids[gene], matched_by[gene] = token_id, how
            else:
                others.append((gene, symbols))
        for how, kind in (("symbol", "symbols"), ("synonym", "synonyms"), ("symbol", "spellings")):
            if not others:
                break
            # Genes of one step are summed, so that the order of the matrix's columns does not matter.
            claimed, left, table = set(token_ids.tolist()), [], getattr(names, kind)
            for gene, symbols in others:
                spelt = symbols if kind != "spellings" else list(map(mangled, symbols))
                token_id = _first_known(table, spelt)
                if token_id < 0:
                    left.append((gene, symbols))
                elif token_id not in claimed:  # A name of a gene that is there is not one of another gene.
                    token_ids[gene], matched_by[gene] = token_id, how
            others = left
        unused = (token_ids >= 0) & np.isnan(self.median_of_id[token_ids])
        token_ids[unused], matched_by[unused] = -1, ""
        return token_ids, matched_by

    def sum_by_gene(self, counts: sp.csr_matrix, match: GeneMatch) -> sp.csr_matrix:
        """Returns the positive counts of known genes, `(cells, vocabulary)`, with duplicated genes summed."""
        token_ids = match.token_ids[counts.indices]
        known = np.flatnonzero((token_ids >= 0) & (counts.data > 0))
        values, starts = counts.data[known].astype(np.float64), np.searchsorted(known, counts.indptr)
        by_gene = sp.csr_matrix((values, token_ids[known], starts), shape=(counts.shape[0], len(self)))
        if match.has_duplicates or not counts.has_canonical_format:
            by_gene.sum_duplicates()
        return by_gene


def _checked_columns(columns: dict[str, Any]) -> tuple[list[str], np.ndarray, list[str]]:
    """Returns Ensembl ids, medians (float64, NaN for None) and names."""
    if not isinstance(columns, dict):
        raise InputError("gene_vocabulary is not a mapping of ensembl_ids, medians and names to lists.")
    ensembl_ids, medians, names = (columns.get(key, []) for key in ("ensembl_ids", "medians", "names"))
    if not ensembl_ids or not len(ensembl_ids) == len(medians) == len(names):
        raise InputError("gene_vocabulary needs the lists ensembl_ids, medians and names, of equal length.")
    if not all(isinstance(text, str) for column in (ensembl_ids, names) for text in column):
        raise InputError("gene_vocabulary: ensembl_ids and names must be strings.")
    if not all(median is None or isinstance(median, (int, float)) for median in medians):
        raise InputError("gene_vocabulary: medians must be numbers, or None.")
    numbers = np.array([np.nan if median is None else median for median in medians], dtype=np.float64)
    if not (np.isnan(numbers) | (np.isfinite(numbers) & (numbers > 0))).all():
        raise InputError("gene_vocabulary: medians must be finite and positive, or None.")
    return ensembl_ids, numbers, names


def _organism(columns: dict[str, Any]) -> str:
    """Returns the organism of a model, which is human where nothing else is said."""
    organism = columns.get("organism", "human")
    if not isinstance(organism, str) or not organism:
        raise InputError("gene_vocabulary: organism must be a name.")
    return organism


def _checked_orthologs(columns: dict[str, Any], n_genes: int) -> dict[str, list[str]]:
    """Returns the names of the genes in other organisms."""
    orthologs = columns.get("orthologs", {})
    if not isinstance(orthologs, dict) or not all(
        isinstance(names, list) and len(names) == n_genes and all(isinstance(name, str) for name in names)
        for names in orthologs.values()
    ):
        raise InputError("gene_vocabulary: orthologs must be lists of strings by organism, as long as ensembl_ids.")
    return orthologs


def _by_name(token_ids: Sequence[int], names: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Returns ids by symbol, and by synonym, of names joined by `|`. The first gene of a symbol has it."""
    symbols: dict[str, int] = {}
    synonyms: dict[str, int] = {}
    for token_id, joined in zip(token_ids, names, strict=True):
        symbol, *others = joined.split("|")
        token_id = symbols.setdefault(symbol, token_id)
        for synonym in others:
            if _MITOCHONDRIAL.fullmatch(synonym):
                continue
            # A synonym that two genes share identifies neither.
            synonyms[synonym] = token_id if synonyms.get(synonym, token_id) == token_id else -1
    symbols.pop("", None)
    return symbols, {name: token_id for name, token_id in synonyms.items() if name and token_id >= 0}


def _unambiguous(tables: Sequence[Mapping[str, int]], spell: Callable[[str], str]) -> dict[str, int]:
    """Returns ids by another spelling of names; an earlier table comes first, and what two genes share is left out."""
    spelt: dict[str, int] = {}
    for table in tables:
        ids: dict[str, int] = {}
        for name, token_id in table.items():
            if ids.setdefault(spelling := spell(name), token_id) != token_id:
                ids[spelling] = -1
        spelt = ids | spelt
    return {name: token_id for name, token_id in spelt.items() if token_id >= 0}


def _kind(ensembl_id: str) -> str:
    """Returns the beginning of an Ensembl id, which tells the organism."""
    return ensembl_id.rstrip("0123456789")


def _first_known(table: dict[str, int], names: Sequence[str]) -> int:
    """Returns the id of the first of the names that the table knows, or -1."""
    return next((table[name] for name in names if name in table), -1)


class UsualPlaces:
    """
    Mean and spread of the place of each gene in the whole ranking of a cell, over the cells of the corpus.

    Args:
        columns: `means` and `spreads`, lists in the order of the gene vocabulary; or None, and every gene is taken for
            an average one.
        n_ids: Number of ids of the vocabulary, including special ones.

    Attributes:
        means, spreads: `(ids,)` float32 by id; the spread of a gene that hardly varies is raised to `LEAST_SPREAD`.

    Raises:
        InputError: The lists are missing, not as long as the vocabulary, or do not hold numbers from 0 to 1.
    """

    #: Below this a single copy of a rare gene would outweigh everything else.
    LEAST_SPREAD = 0.15
    #: An average gene among those that mark cell types.
    AVERAGE = 0.1, 0.3

    def __init__(self, columns: Mapping[str, list] | None, n_ids: int):
        numbers = np.tile(np.array(self.AVERAGE, dtype=np.float32)[:, None], n_ids)
        if columns is not None:
            try:
                numbers[:, 2:-1] = columns["means"], columns["spreads"]
            except (KeyError, TypeError, ValueError) as error:
                raise InputError("gene_places needs the lists means and spreads, as long as the vocabulary.") from error
        if not ((numbers >= 0) & (numbers <= 1)).all():
            raise InputError("gene_places: means and spreads must be numbers from 0 to 1.")
        self.means, self.spreads = numbers[0], np.maximum(numbers[1], self.LEAST_SPREAD)


__all__ = ["GeneMatch", "GeneVocabulary", "UsualPlaces"]
