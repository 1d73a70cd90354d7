# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Rank-value encoding (LangCell, section 3.1): the genes of a cell, from the highest count / median down."""

import copy
import operator
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch

from .count_matrix import CountMatrix, slice_rows
from .count_values import LARGEST_VALUE, check_kind, check_values
from .errors import InputError, Remedy
from .gene_matching import GeneMatch, GeneVocabulary

_BLOCK = 256  # Cells that a thread reads at once; larger blocks of a dense matrix would take much memory.
_GROUP = 64  # Cells that are ranked together; larger groups do not fit into the CPU's cache.
_SAMPLED_BLOCK = 16  # Neighbouring cells that a sample takes at once: single rows are slow to read from a file.
_WHOLE = 1e-5  # Relative error up to which a ratio of two values counts as a whole number: float32's is smaller.


@dataclass(frozen=True)
class RankedCells:
    """
    Cells as sequences of different lengths, laid end to end.

    Args:
        token_ids: Ids of all the cells, each `<cls>` and then its genes by rank.
        offsets: `(cells + 1,)`; cell `i` is `token_ids[offsets[i]:offsets[i + 1]]`.
        matched_counts: `(cells,)` share of a cell's counts that lies in known genes.
        places: `(cells, watched genes)` float32 places of some genes in the cell's whole ranking, before it is cut: 1
            for the first of its genes, towards 0 for the last, 0 for a gene that the cell does not express, NaN for one
            that the matrix did not measure. No columns if none was asked for.
    """

    token_ids: np.ndarray
    offsets: np.ndarray
    matched_counts: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, cell: int) -> np.ndarray:
        return self.token_ids[self.offsets[cell] : self.offsets[cell + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """`(cells,)` sequence lengths, including `<cls>`."""
        return np.diff(self.offsets)

    @property
    def without_genes(self) -> np.ndarray:
        """`(cells,)` true for cells in which no known gene was counted."""
        return self.lengths == 1

    def pad(
        self, cells: np.ndarray | None = None, length: int | None = None, pad_id: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Pads cells to one length, by default all cells to the longest of them.

        Returns:
            Ids and attention mask, both `(cells, length)` int64.
        """
        cells = np.arange(len(self)) if cells is None else np.asarray(cells)
        width = self.lengths[cells].max(initial=1) if length is None else length
        ids = np.full((len(cells), width), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, cell in enumerate(cells):
            tokens = self[cell][:width]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray]) -> "RankedCells":
        """Lays the ids of cells end to end, of whose counts nothing is known."""
        offsets = np.cumsum([0, *map(len, rows)])
        unknown = np.full(len(rows), np.nan)
        return cls(np.concatenate(rows), offsets, matched_counts=unknown, places=unknown[:, None][:, :0])

    @classmethod
    def concatenate(cls, parts: Sequence["RankedCells"]) -> "RankedCells":
        """Joins chunks, in order."""
        starts = np.cumsum([0] + [part.offsets[-1] for part in parts])
        return cls(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            offsets=np.concatenate([[0]] + [part.offsets[1:] + s for part, s in zip(parts, starts, strict=False)]),
            matched_counts=np.concatenate([part.matched_counts for part in parts]),
            places=np.concatenate([part.places for part in parts]),
        )


class RankedChunks(Sequence[RankedCells]):
    """
    The cells of one input, ranked chunk by chunk: made by `LangCellFeatureExtractor.chunks`.

    A chunk is read and ranked when it is requested, by its number or in a loop over all chunks, with the same result.
    No chunk is kept, so that memory grows with the chunk and not with the input. As many threads as torch uses share
    the work; several processes can each open one file and take different chunks.

    Attributes:
        label: Name of the array in messages: `X`, `raw.X`, `layers['counts']`, `the matrix`.
        match: The genes of the input that are known.
        n_cells: Number of cells of the input.
        chunk_size: Number of cells of every chunk but the last, which has the rest.
        kind: Kind of the values, with the base of logarithms.
        empty_cells: Treatment of cells without any known gene: `"error"` or `"mark"`.
        gene_column, organism: The column of `var` that names the genes, and their organism, if they were given.
        n_others: Number of rows of `var` that are no genes.
    """

    def __init__(
        self,
        source: CountMatrix,
        genes: GeneVocabulary,
        match: GeneMatch,
        *,
        chunk_size: int,
        empty_cells: str,
        max_length: int,
        gene_column: str | None,
        organism: str | None,
        places_of: Sequence[int] = (),
    ):
        self.label, self.match, self.n_cells, self.chunk_size = source.label, match, len(source), chunk_size
        self.n_others = source.n_others
        self.kind, self.empty_cells, self._max_length = source.kind, empty_cells, max_length
        self.gene_column, self.organism = gene_column, organism
        self._source, self._genes = source, genes
        self._watch(places_of)

    def _watch(self, places_of: Sequence[int]) -> None:
        watched = np.array(places_of, dtype=np.int64)
        self._unmeasured = ~np.isin(watched, self.match.token_ids)
        self._ranker_of_columns = _Ranker(self.match.token_ids, self._genes.median_of_id, watched)
        self._ranker_of_genes = _Ranker(np.arange(self._genes.cls_token_id), self._genes.median_of_id, watched)

    def watching(self, places_of: Sequence[int]) -> "RankedChunks":
        """Returns the same chunks with the places of these genes in the rankings of the cells."""
        chunks = copy.copy(self)
        chunks._watch(places_of)
        return chunks

    def sample(self, n_cells: int, places_of: Sequence[int] = ()) -> RankedCells:
        """
        Reads and ranks about `n_cells` cells, in small blocks that are spread evenly over all. Cells without known
        genes are kept.
        """
        blocks = self.watching(places_of)
        blocks.chunk_size, blocks.empty_cells = _SAMPLED_BLOCK if n_cells < self.n_cells else n_cells, "mark"
        spread = np.linspace(0, len(blocks) - 1, min(len(blocks), n_cells // _SAMPLED_BLOCK))
        return RankedCells.concatenate([blocks[number] for number in spread.astype(int).tolist()])

    def __len__(self) -> int:
        return -(-self.n_cells // self.chunk_size)

    def rows(self, chunk: int) -> range:
        """
        Returns the row numbers of a chunk's cells.

        Raises:
            IndexError: No such chunk; negative numbers are not counted from the end.
        """
        if not 0 <= operator.index(chunk) < len(self):
            raise IndexError(f"No chunk {chunk}: they are numbered from 0 to {len(self) - 1}.")
        start = operator.index(chunk) * self.chunk_size
        return range(start, min(start + self.chunk_size, self.n_cells))

    def __getitem__(self, chunk: int) -> RankedCells:  # type: ignore[override]
        """
        Reads and ranks one chunk.

        Raises:
            IndexError: No such chunk.
            InputError: Values that are not of `kind`; a cell without known genes.
        """
        rows = self.rows(chunk)
        blocks = range(rows.start, rows.stop, _BLOCK)
        # NumPy releases the interpreter lock while it works on large arrays.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            apply = pool.map if len(blocks) > 1 else map  # A sample has many small chunks, which need no thread.
            groups = [group for block in apply(self._rank, blocks, [*blocks[1:], rows.stop]) for group in block]
        return self._joined(groups, np.arange(rows.start, rows.stop))

    def take(self, rows: np.ndarray) -> RankedCells:
        """
        Reads and ranks some cells.

        Args:
            rows: `(cells,)` their row numbers.

        Raises:
            InputError: Same as for a chunk.
        """
        counts, names = self._source.take(rows), self._source.cell_names
        chosen = replace(self._source, cell_names=[str(row if names is None else names[row]) for row in rows])
        check_values(counts, self.kind, chosen, 0)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = (slice_rows(counts, start, start + _GROUP) for start in range(0, len(rows), _GROUP))
            return self._joined(list(pool.map(self._rank_group, parts)), rows)

    def _joined(self, groups: list[RankedCells], rows: np.ndarray) -> RankedCells:
        """Joins ranked cells, and checks that each has genes."""
        ranked = RankedCells.concatenate(groups)
        ranked.places[:, self._unmeasured] = np.nan
        if self.empty_cells == "error" and ranked.without_genes.any():
            empty = rows[ranked.without_genes]
            raise InputError(
                f"{len(empty)} cell(s) of {self.label} have no counts in known genes: "
                f"{self._source.list_cells(empty)}. Filter them out.",
                Remedy("To keep them unannotated, pass {option}.", "empty_cells", "mark"),
            )
        return ranked

    def __iter__(self) -> Iterator[RankedCells]:
        return (ranked for _, ranked in self.ahead(range(len(self))))

    def values(self, chunk: int) -> sp.csr_matrix:
        """
        Reads the `(cells, columns)` values of one chunk as they are, of `kind`. Column `i` is the gene
        `match.token_ids[i]`.
        """
        rows = self.rows(chunk)
        return self._source.rows(rows.start, rows.stop)

    def ahead(self, chunks: Iterable[int]) -> Iterator[tuple[int, RankedCells]]:
        """Yields some chunks with their numbers, and reads the next one meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            pending: tuple[int, Future[RankedCells]] | None = None
            for chunk in chunks:
                following = chunk, reader.submit(self.__getitem__, chunk)
                if pending is not None:
                    yield pending[0], pending[1].result()
                pending = following
            if pending is not None:
                yield pending[0], pending[1].result()

    def _rank(self, start: int, stop: int) -> list[RankedCells]:
        block = self._source.rows(start, stop)
        check_values(block, self.kind, self._source, start)
        if start % self.chunk_size == 0:
            check_kind(block, self.kind, self._source, start)
        groups = range(0, stop - start, _GROUP)
        return [self._rank_group(slice_rows(block, group, group + _GROUP)) for group in groups]

    def _rank_group(self, counts: sp.csr_matrix) -> RankedCells:
        if self.kind.counts != "raw":
            counts.data = _as_multiples(self.kind.undo(counts.data), counts.indptr)
        ranker, totals = self._ranker_of_columns, np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        if self.match.has_duplicates or not counts.has_canonical_format or not counts.data.all():
            ranker, counts = self._ranker_of_genes, self._genes.sum_by_gene(counts, self.match)
        return ranker.rank(counts, totals, self._max_length)


class _Ranker:
    """
    Orders the genes of cells by count / median.

    Args:
        token_ids: `(columns,)` gene of each column of counts, -1 for none.
        median_of_id: Medians of the ids below that of `<cls>`, which is the last.
        watched: Ids of the genes whose places are wanted.
    """

    def __init__(self, token_ids: np.ndarray, median_of_id: np.ndarray, watched: np.ndarray):
        # One sort of plain integers does it all: positive floats order like their bits, so a key is median / count, the
        # lowest first, with the gene's id in its last bits. Values that differ by less than 2^-36 of themselves become
        # ties, and ties go to the lower id. A column that is not a gene has a key above that of every gene.
        known = token_ids >= 0
        self.cls_token_id = len(median_of_id)
        self.id_mask = np.uint64((1 << max(16, (self.cls_token_id + 1).bit_length())) - 1)
        self.no_gene = np.uint64(np.iinfo(np.uint64).max)
        self.last_bits = np.where(known, token_ids.astype(np.uint64), self.no_gene)
        self.medians = np.where(known, median_of_id[token_ids], 1.0)
        self.n_watched = len(watched)
        # Genes that are not watched share a last column, which is dropped.
        self.column_of_id = np.full(int(self.id_mask) + 1, self.n_watched, dtype=np.int32)
        self.column_of_id[watched] = np.arange(self.n_watched)

    def rank(self, counts: sp.csr_matrix, totals: np.ndarray, max_length: int) -> RankedCells:
        """
        Returns the cells, each `<cls>` and its genes from the highest value down.

        Args:
            counts: `(cells, columns)` positive, no column twice in a cell.
            totals: `(cells,)` counts in known and unknown genes, for the share of known ones.
            max_length: Longest sequence, including `<cls>`.
        """
        values = counts.data.astype(np.float64)
        keys = self.medians.take(counts.indices)
        keys /= values
        keys = keys.view(np.uint64)
        keys &= ~self.id_mask
        keys |= self.last_bits.take(counts.indices)

        unknown = np.flatnonzero(keys == self.no_gene)
        values[unknown] = 0
        matched = _reduce_by_cell(np.add, values, counts.indptr) / np.maximum(totals, np.finfo(np.float64).tiny)
        n_genes = np.diff(counts.indptr) - np.diff(np.searchsorted(unknown, counts.indptr))
        n_ranked = np.minimum(n_genes, max_length - 1)

        # A loop over cells costs less than padding them to one length, and a cell that is sorted alone stays in the
        # CPU's nearest cache. If a cell is much longer than max_length, only the genes that are kept are sorted, unless
        # the places of some are wanted.
        bounds = counts.indptr.tolist()
        cells = list(zip(bounds[:-1], bounds[1:], n_ranked.tolist(), strict=True))
        for start, stop, length in cells:
            cell = keys[start:stop]
            if not self.n_watched and stop - start > 1.5 * length > 0:
                cell.partition(length)
                cell = cell[:length]
            cell.sort()
        keys &= self.id_mask
        ids = keys.astype(np.int32)
        cls = np.array([self.cls_token_id], dtype=np.int32)
        return RankedCells(
            token_ids=np.concatenate([part for start, _, n in cells for part in (cls, ids[start : start + n])]),
            offsets=np.concatenate([[0], np.cumsum(n_ranked + 1)]),
            matched_counts=matched.astype(np.float32),
            places=self._places(ids, counts.indptr, n_genes),
        )

    def _places(self, ids: np.ndarray, indptr: np.ndarray, n_genes: np.ndarray) -> np.ndarray:
        """
        Returns the places of the watched genes.

        Args:
            ids: Ids of all cells by rank; columns that are no genes come after a cell's genes.
            indptr: `(cells + 1,)` bounds of the cells.
            n_genes: `(cells,)` number of genes of each cell.
        """
        places = np.zeros((len(n_genes), self.n_watched), dtype=np.float32)
        if self.n_watched:
            columns = self.column_of_id.take(ids)
            found = np.flatnonzero(columns < self.n_watched)
            cell = np.searchsorted(indptr, found, side="right") - 1
            places[cell, columns[found]] = 1 - (found - indptr[cell]) / n_genes[cell]
        return places


def _reduce_by_cell(function: np.ufunc, values: np.ndarray, indptr: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Reduces the values of each cell to one number, `empty` where it has none; returns `(cells,)` float64."""
    filled = np.flatnonzero(np.diff(indptr))
    numbers = np.full(len(indptr) - 1, empty)
    numbers[filled] = function.reduceat(values, indptr[filled], dtype=np.float64)
    return numbers


def _as_multiples(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """
    Returns values as multiples of the smallest value of their cell, with whole multiples exact: values that were equal
    counts before they were scaled are equal again.
    """
    smallest = _reduce_by_cell(np.minimum, np.where(values > 0, values, np.inf), indptr, np.inf)
    smallest = np.maximum(smallest, 1 / LARGEST_VALUE)  # This keeps the ratios finite.
    ratios = values / np.repeat(smallest, np.diff(indptr))
    rounded = np.rint(ratios)
    return np.where(np.abs(ratios - rounded) <= _WHOLE * rounded, rounded, ratios)


__all__ = ["RankedCells", "RankedChunks"]
