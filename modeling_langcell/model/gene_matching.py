# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The genes that a model knows, how the genes of a matrix are matched to them, and their usual places in a cell."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from .errors import InputError

_ENSEMBL_ID = re.compile(r"^(ENS[A-Z]*G\d+)(\.\d+)?$")


@dataclass(frozen=True)
class GeneMatch:
    """
    The genes of a matrix that the vocabulary knows.

    Args:
        token_ids: `(genes,)` id of each gene, -1 for unknown ones.
        by_ensembl_id, by_symbol, by_synonym: Number of genes that were matched by each kind of name.
    """

    token_ids: np.ndarray
    by_ensembl_id: int
    by_symbol: int
    by_synonym: int

    @property
    def fraction(self) -> float:
        """Share of the matrix's genes that is known."""
        return float((self.token_ids >= 0).mean())

    @cached_property
    def has_duplicates(self) -> bool:
        """True where several genes of the matrix are one gene of the vocabulary; their counts are summed."""
        known = self.token_ids[self.token_ids >= 0]
        return len(np.unique(known)) < len(known)


class GeneVocabulary:
    """
    Token ids, medians and names of the genes that a model knows.

    Args:
        columns: `ensembl_ids`, `medians` and `names`, as `LangCellFeatureExtractor` takes them.

    Attributes:
        pad_token_id, mask_token_id, cls_token_id: Ids of `<pad>` (0), `<mask>` (1) and `<cls>`, which is the last.
        median_of_id: `(cls_token_id,)` median of each id; NaN for special ids and for genes that are never used.

    Raises:
        InputError: The columns are missing, of different lengths, or of the wrong types.
    """

    pad_token_id, mask_token_id, first_gene_id = 0, 1, 2

    def __init__(self, columns: dict[str, list]):
        ensembl_ids, medians, names = _checked_columns(columns)
        token_ids = range(self.first_gene_id, self.first_gene_id + len(ensembl_ids))
        self.cls_token_id = token_ids.stop
        self.median_of_id = np.concatenate([[np.nan] * self.first_gene_id, medians])
        self._id_of_ensembl_id = dict(zip(ensembl_ids, token_ids, strict=True))
        self._id_of_symbol: dict[str, int] = {}
        id_of_synonym: dict[str, int] = {}
        for token_id, joined in zip(token_ids, names, strict=True):
            symbol, *synonyms = joined.split("|")
            token_id = self._id_of_symbol.setdefault(symbol, token_id)
            for synonym in synonyms:
                # A synonym that two genes share identifies neither.
                id_of_synonym[synonym] = token_id if id_of_synonym.get(synonym, token_id) == token_id else -1
        self._id_of_symbol.pop("", None)
        own = {token_id: symbol for symbol, token_id in self._id_of_symbol.items()}
        self._symbols = [own.get(token_id, i) for token_id, i in zip(token_ids, ensembl_ids, strict=True)]
        self._id_of_synonym = {name: token_id for name, token_id in id_of_synonym.items() if name and token_id >= 0}

    def __len__(self) -> int:
        """Number of ids, including special ones: the cell tower's `vocab_size`."""
        return self.cls_token_id + 1

    def id_of(self, name: str, any_case: bool = False) -> int | None:
        """
        Returns the id of a gene with a median, by its Ensembl id, symbol or unambiguous synonym; None if there is none.
        """
        for table in (self._id_of_ensembl_id, self._id_of_symbol, self._id_of_synonym):
            if (found := table.get(name)) is not None and not np.isnan(self.median_of_id[found]):
                return found
        return self._id_of_folded.get(name.casefold()) if any_case else None

    @cached_property
    def _id_of_folded(self) -> dict[str, int]:
        """Ids by names without case; a symbol comes before a synonym, and what two genes share is left out."""
        folded: dict[str, int] = {}
        for table in (self._id_of_symbol, self._id_of_synonym):
            ids: dict[str, set[int]] = {}
            for name, token_id in table.items():
                if not np.isnan(self.median_of_id[token_id]):
                    ids.setdefault(name.casefold(), set()).add(token_id)
            for name, of_name in ids.items():
                folded.setdefault(name, next(iter(of_name)) if len(of_name) == 1 else -1)
        return {name: token_id for name, token_id in folded.items() if token_id >= 0}

    def symbol_of(self, token_id: int) -> str:
        """Returns the symbol of a gene, or its Ensembl id where it has no symbol or that of another gene."""
        return self._symbols[token_id - self.first_gene_id]

    def match(self, *columns: Sequence[str]) -> GeneMatch:
        """
        Finds the genes of a matrix in the vocabulary.

        A gene that has an Ensembl id in any column is matched by that id alone, without its version. The others are
        matched by symbol, or else by a synonym of a gene that no other gene of the matrix is matched to.

        Args:
            columns: One or more `(genes,)` columns of names, the most trusted first.
        """
        token_ids = np.full(len(columns[0]), -1, dtype=np.int32)
        matched_by = np.full(len(columns[0]), "", dtype="U7")
        others = []
        for gene, names in enumerate(zip(*columns, strict=True)):
            ensembl_ids = [found[1] for found in map(_ENSEMBL_ID.match, names) if found][:1]
            token_id, how = _first_known(self._id_of_ensembl_id, ensembl_ids or names), "ensembl"
            if token_id < 0 and not ensembl_ids:
                token_id, how = _first_known(self._id_of_symbol, names), "symbol"
                if token_id < 0:
                    others.append((gene, names))
            if token_id >= 0:
                token_ids[gene], matched_by[gene] = token_id, how
        claimed = set(token_ids.tolist())
        for gene, names in others:
            token_id = _first_known(self._id_of_synonym, names)
            if token_id not in claimed:
                token_ids[gene], matched_by[gene] = token_id, "synonym"
        unused = (token_ids >= 0) & np.isnan(self.median_of_id[token_ids])
        token_ids[unused], matched_by[unused] = -1, ""
        return GeneMatch(token_ids, *(int((matched_by == how).sum()) for how in ("ensembl", "symbol", "synonym")))

    def sum_by_gene(self, counts: sp.csr_matrix, match: GeneMatch) -> sp.csr_matrix:
        """Returns the positive counts of known genes, `(cells, vocabulary)`, with duplicated genes summed."""
        token_ids = match.token_ids[counts.indices]
        known = np.flatnonzero((token_ids >= 0) & (counts.data > 0))
        values, starts = counts.data[known].astype(np.float64), np.searchsorted(known, counts.indptr)
        by_gene = sp.csr_matrix((values, token_ids[known], starts), shape=(counts.shape[0], len(self)))
        if match.has_duplicates or not counts.has_canonical_format:
            by_gene.sum_duplicates()
        return by_gene


def _checked_columns(columns: dict[str, list]) -> tuple[list[str], np.ndarray, list[str]]:
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
