# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""From counts to ranked gene ids: rank-value encoding (LangCell, section 3.1), gene matching, input checks."""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from transformers import BatchFeature, FeatureExtractionMixin

from .errors import InputError, Remedy, reason_of

#: Columns of `var` that are looked at, besides its index, for the names of the genes.
GENE_COLUMNS = (
    "ensembl_id",
    "gene_ids",
    "gene_id",
    "feature_id",
    "ensembl",
    "symbol",
    "gene_symbol",
    "gene_symbols",
    "feature_name",
    "gene_name",
    "gene_names",
    "gene_short_name",
)

_ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d+)(\.\d+)?$")
_GENOME_PREFIX = re.compile(r"^(hg19|hg38|GRCh37|GRCh38)_+")
_BLOCK = 256  # Cells that a thread reads at a time; of a dense matrix, more of them would be much memory.
_GROUP = 64  # Cells that are ranked together: what more of them need leaves the processor's cache.
_LARGEST = 1e38  # About float32's; sums and ratios of such values are finite in float64.
_WHOLE = 1e-5  # A ratio of two values this near (relatively) to a whole number is one: float32 rounds no worse.


@dataclass(frozen=True)
class GeneMatch:
    """
    What of a matrix's genes the vocabulary knows.

    Args:
        token_ids: `(genes,)` id of each gene, -1 for unknown ones.
        by_ensembl_id, by_symbol, by_synonym: How many genes were matched by what.
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
        """Whether several genes of the matrix are one gene of the vocabulary; their counts are summed."""
        known = self.token_ids[self.token_ids >= 0]
        return len(np.unique(known)) < len(known)


@dataclass(frozen=True)
class RankedCells:
    """
    Cells as sequences of different lengths, laid end to end.

    Args:
        token_ids: Ids of all the cells, each `<cls>` and then its genes by rank.
        offsets: `(cells + 1,)`; cell `i` is `token_ids[offsets[i]:offsets[i + 1]]`.
        matched_counts: `(cells,)` share of a cell's counts that lies in known genes.
    """

    token_ids: np.ndarray
    offsets: np.ndarray
    matched_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, cell: int) -> np.ndarray:
        return self.token_ids[self.offsets[cell] : self.offsets[cell + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """`(cells,)` sequence lengths, `<cls>` included."""
        return np.diff(self.offsets)

    @property
    def without_genes(self) -> np.ndarray:
        """`(cells,)` true for cells in which no known gene was counted."""
        return self.lengths == 1

    def pad(
        self, cells: np.ndarray | None = None, length: int | None = None, pad_id: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and attention mask, `(cells, length)` int64, of the chosen cells (all); `length` is the longest's."""
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
    def concatenate(cls, parts: Sequence["RankedCells"]) -> "RankedCells":
        """Joins chunks, in order."""
        starts = np.cumsum([0] + [part.offsets[-1] for part in parts])
        return cls(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            offsets=np.concatenate([[0]] + [part.offsets[1:] + s for part, s in zip(parts, starts, strict=False)]),
            matched_counts=np.concatenate([part.matched_counts for part in parts]),
        )


@dataclass(frozen=True)
class _CountMatrix:
    """One array of the input that can be read in slices of rows, and how to speak of it."""

    matrix: Any
    label: str
    cell_names: Sequence[str] | None = None
    advice: Callable[[], Sequence[Remedy]] = tuple  # What else to read, asked for only when this array is refused.
    file: Any = None  # That it is read from.

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        with _reading(self.label, self.file):
            if sp.issparse(self.matrix) and self.matrix.dtype.kind in "fiub":
                rows = _rows(self.matrix, start, stop)
            else:
                self._require_numbers(getattr(self.matrix, "dtype", None))  # Not all make a sparse block.
                block = self.matrix[start:stop]
                block = block if sp.issparse(block) else np.asarray(block)
                self._require_numbers(block.dtype)
                # scipy has no sparse half precision.
                rows = sp.csr_matrix(block.astype(np.float32) if block.dtype == np.float16 else block)
            _check_structure(rows)
        return rows

    def _require_numbers(self, dtype: np.dtype | None) -> None:
        if dtype is not None and dtype.kind not in "fiub":
            raise InputError(f"{self.label} holds {dtype} values: make them numbers.", *self.advice())

    def cells(self, rows: np.ndarray) -> str:
        """The names of some cells, for a message."""
        names = [str(row) if self.cell_names is None else repr(str(self.cell_names[row])) for row in rows[:5]]
        return ", ".join(names) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


class _Ranker:
    """
    Orders the genes of cells by count / median.

    Args:
        token_ids: `(columns,)` the gene that each column of counts is, -1 for none.
        median_of_id: Medians of the ids below that of `<cls>`, which is the last.
    """

    def __init__(self, token_ids: np.ndarray, median_of_id: np.ndarray):
        # One sort of plain integers does it all: positive floats order like their bits, so a key is median / count, the
        # least first, with the gene's id in its last bits. Values that differ by less than 2^-36 of themselves become
        # ties, and ties go to the lower id. A column that is no gene has a key above that of every gene.
        known = token_ids >= 0
        self.cls_token_id = len(median_of_id)
        self.id_mask = np.uint64((1 << max(16, (self.cls_token_id + 1).bit_length())) - 1)
        self.no_gene = np.uint64(np.iinfo(np.uint64).max)
        self.last_bits = np.where(known, token_ids.astype(np.uint64), self.no_gene)
        self.medians = np.where(known, median_of_id[token_ids], 1.0)

    def rank(self, counts: sp.csr_matrix, totals: np.ndarray, max_length: int) -> RankedCells:
        """
        The cells, each `<cls>` and its genes from the highest value down.

        Args:
            counts: `(cells, columns)` positive, no column twice in a cell.
            totals: `(cells,)` counts in known and unknown genes, for their share.
            max_length: Longest sequence, `<cls>` included.
        """
        values = counts.data.astype(np.float64)
        keys = self.medians.take(counts.indices)
        keys /= values
        keys = keys.view(np.uint64)
        keys &= ~self.id_mask
        keys |= self.last_bits.take(counts.indices)

        unknown = np.flatnonzero(keys == self.no_gene)
        values[unknown] = 0
        matched = _by_cell(np.add, values, counts.indptr) / np.maximum(totals, np.finfo(np.float64).tiny)
        n_genes = np.diff(counts.indptr) - np.diff(np.searchsorted(unknown, counts.indptr))
        n_ranked = np.minimum(n_genes, max_length - 1)

        # A loop over cells costs less than to bring them to one length, and a cell that is sorted alone lies in the
        # processor's nearest cache. Of one that is much longer than max_length only what is kept is put in order.
        bounds = counts.indptr.tolist()
        cells = list(zip(bounds[:-1], bounds[1:], n_ranked.tolist(), strict=True))
        for start, stop, length in cells:
            cell = keys[start:stop]
            if stop - start > 1.5 * length > 0:
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
        )


class RankedChunks(Sequence[RankedCells]):
    """
    The cells of one input, to be ranked chunk by chunk: made by `LangCellFeatureExtractor.chunks`.

    A chunk is read and ranked when it is asked for, by its number or in a loop over all of them, and is the same
    either way. Nothing is kept of it, so that memory grows with the chunk and not with the input. The work is shared by
    as many threads as torch uses; several processes can each open one file and take chunks of their own.

    Attributes:
        label: The array that is read, as messages name it: `X`, `raw.X`, `layers['counts']`, `the matrix`.
        match: What of the input's genes is known.
        n_cells: Cells of the input.
        chunk_size: Cells of every chunk but the last, which has what is left.
        counts: What the values are read as: `"raw"`, `"normalized"` or `"log1p"`.
        empty_cells: What becomes of a cell without any known gene: `"error"` or `"mark"`.
        gene_column: The column of `var` that was asked for, if any.
    """

    def __init__(
        self,
        extractor: "LangCellFeatureExtractor",
        source: _CountMatrix,
        match: GeneMatch,
        *,
        chunk_size: int,
        counts: str,
        empty_cells: str,
        max_length: int,
        gene_column: str | None,
    ):
        self.label, self.match, self.n_cells, self.chunk_size = source.label, match, len(source), chunk_size
        self._extractor, self._source = extractor, source
        self.counts, self.empty_cells, self.gene_column, self._max_length = counts, empty_cells, gene_column, max_length
        self._of_columns = _Ranker(match.token_ids, extractor._median_of_id)
        self._of_genes = _Ranker(np.arange(extractor.cls_token_id), extractor._median_of_id)

    def __len__(self) -> int:
        return -(-self.n_cells // self.chunk_size)

    def rows(self, chunk: int) -> range:
        """
        The numbers of the rows that are the cells of a chunk.

        Raises:
            IndexError: No such chunk; they are not counted from the end either.
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
            InputError: Values that are not what `counts` said; a cell without known genes.
        """
        rows = self.rows(chunk)
        blocks = range(rows.start, rows.stop, _BLOCK)
        # NumPy leaves the interpreter to others while it works on many numbers.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            groups = [group for block in pool.map(self._rank, blocks, [*blocks[1:], rows.stop]) for group in block]
        ranked = RankedCells.concatenate(groups)
        if self.empty_cells == "error" and ranked.without_genes.any():
            empty = rows.start + np.flatnonzero(ranked.without_genes)
            raise InputError(
                f"{len(empty)} cell(s) of {self.label} have no counts in known genes: {self._source.cells(empty)}.",
                Remedy("Filter them out, or keep them unannotated with {option}.", "empty_cells", "mark"),
            )
        return ranked

    def __iter__(self) -> Iterator[RankedCells]:
        return (ranked for _, ranked in self.ahead(range(len(self))))

    def ahead(self, chunks: Iterable[int]) -> Iterator[tuple[int, RankedCells]]:
        """Some chunks and their numbers; while one is worked on the next is read."""
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
        _check_values(block, self.counts, self._source, start)
        groups = range(0, stop - start, _GROUP)
        return [self._rank_group(_rows(block, group, group + _GROUP)) for group in groups]

    def _rank_group(self, counts: sp.csr_matrix) -> RankedCells:
        if self.counts != "raw":
            values = np.expm1(counts.data, dtype=np.float64) if self.counts == "log1p" else counts.data
            counts.data = _multiples(values, counts.indptr)
        ranker, totals = self._of_columns, np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        if self.match.has_duplicates or not counts.has_canonical_format or not counts.data.all():
            ranker, counts = self._of_genes, self._extractor.by_gene(counts, self.match)
        return ranker.rank(counts, totals, self._max_length)


class LangCellFeatureExtractor(FeatureExtractionMixin):
    r"""
    Counts to ranked gene ids: every count is divided by the gene's median over the pre-training corpus, and a cell
    becomes `<cls>` and its genes from the highest value down. Ties go to the lower gene id, so the order of the
    matrix's columns never matters.

    Args:
        gene_vocabulary: The genes in the order of their ids, as three lists of one length: `ensembl_ids`; `medians`,
            the non-zero medians (`None` for a gene that is never to be used); `names`, symbol and synonyms joined by
            `|`. Ids are 0 `<pad>`, 1 `<mask>`, 2 and on the genes, and last `<cls>`.
        max_length: Longest sequence, `<cls>` included.
        min_matched_genes: Smallest share of a matrix's genes that must be known; below it the input is refused.

    Example:

    ```python
    >>> import scipy.sparse as sp
    >>> from modeling_langcell import LangCellFeatureExtractor
    >>> extractor = LangCellFeatureExtractor(
    ...     {"ensembl_ids": ["ENSG01", "ENSG02"], "medians": [1.0, 4.0], "names": ["CD3E", "LYZ|LYZF1"]}
    ... )
    >>> extractor(sp.csr_matrix([[2, 4], [0, 3]]), gene_ids=["CD3E", "LYZF1"])["cell_input_ids"]
    [[4, 2, 3], [4, 3, 0]]

    ```"""

    _auto_class = "AutoFeatureExtractor"

    model_input_names = ["cell_input_ids", "cell_attention_mask"]

    def __init__(
        self,
        gene_vocabulary: dict[str, list],
        max_length: int = 2048,
        min_matched_genes: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(gene_vocabulary, dict):
            raise InputError("gene_vocabulary is no mapping of ensembl_ids, medians and names to lists.")
        columns = [gene_vocabulary.get(key, []) for key in ("ensembl_ids", "medians", "names")]
        if not columns[0] or len({len(column) for column in columns}) != 1:
            raise InputError("gene_vocabulary needs the lists ensembl_ids, medians and names, of one length.")
        if not all(isinstance(text, str) for column in columns[::2] for text in column):
            raise InputError("gene_vocabulary: ensembl_ids and names must be texts.")
        if not all(median is None or isinstance(median, (int, float)) for median in columns[1]):
            raise InputError("gene_vocabulary: medians must be numbers, or None.")
        if not isinstance(max_length, int) or not isinstance(min_matched_genes, (int, float)):
            raise InputError(f"max_length={max_length!r} and min_matched_genes={min_matched_genes!r} must be numbers.")
        self.gene_vocabulary = gene_vocabulary
        self.max_length = max_length
        self.min_matched_genes = min_matched_genes
        self.pad_token_id, self.mask_token_id, first_gene = 0, 1, 2
        ids = range(first_gene, first_gene + len(columns[0]))
        self.cls_token_id = ids.stop
        medians = np.array([np.nan if m is None else m for m in columns[1]], dtype=np.float64)
        if not (np.isnan(medians) | (np.isfinite(medians) & (medians > 0))).all():
            raise InputError("gene_vocabulary: medians must be finite and positive, or None.")
        self._median_of_id = np.concatenate([[np.nan] * first_gene, medians])
        self._id_of_ensembl = dict(zip(columns[0], ids, strict=True))
        self._id_of_symbol: dict[str, int] = {}
        id_of_synonym: dict[str, int] = {}
        for token_id, names in zip(ids, columns[2], strict=True):
            symbol, *synonyms = names.split("|")
            token_id = self._id_of_symbol.setdefault(symbol, token_id)
            for synonym in synonyms:
                # A synonym that two genes share names neither.
                id_of_synonym[synonym] = token_id if id_of_synonym.get(synonym, token_id) == token_id else -1
        self._id_of_symbol.pop("", None)
        self._id_of_synonym = {name: token_id for name, token_id in id_of_synonym.items() if name and token_id >= 0}

    def __len__(self) -> int:
        """Size of the vocabulary, special ids included: the cell tower's `vocab_size`."""
        return self.cls_token_id + 1

    def to_dict(self) -> dict[str, Any]:
        """What is saved: the arguments, not the tables made from them."""
        output = {key: value for key, value in super().to_dict().items() if not key.startswith("_")}
        for derived in ("pad_token_id", "mask_token_id", "cls_token_id"):
            output.pop(derived)
        return output

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self) - 3} genes, max_length={self.max_length})"

    # ------------------------------------------------------------------ genes

    def match_genes(self, *columns: Sequence[str]) -> GeneMatch:
        """
        Finds the genes of a matrix in the vocabulary.

        A gene that has an Ensembl id in any column is known by that id alone, its version left out. The others are
        known by symbol, or by a synonym of a gene that no other gene of the matrix is.

        Args:
            columns: One or more `(genes,)` columns of names, the most trusted first.
        """
        token_ids = np.full(len(columns[0]), -1, dtype=np.int32)
        matched_by = np.full(len(columns[0]), "", dtype="U7")
        others = []
        for gene, names in enumerate(zip(*columns, strict=True)):
            ensembl_ids = [found[1] for found in map(_ENSEMBL.match, names) if found][:1]
            token_id, how = _first(self._id_of_ensembl, ensembl_ids or names), "ensembl"
            if token_id < 0 and not ensembl_ids:
                token_id, how = _first(self._id_of_symbol, names), "symbol"
                if token_id < 0:
                    others.append((gene, names))
            if token_id >= 0:
                token_ids[gene], matched_by[gene] = token_id, how
        claimed = set(token_ids.tolist())
        for gene, names in others:
            token_id = _first(self._id_of_synonym, names)
            if token_id not in claimed:
                token_ids[gene], matched_by[gene] = token_id, "synonym"
        unused = (token_ids >= 0) & np.isnan(self._median_of_id[token_ids])
        token_ids[unused], matched_by[unused] = -1, ""
        return GeneMatch(token_ids, *(int((matched_by == how).sum()) for how in ("ensembl", "symbol", "synonym")))

    # ------------------------------------------------------------------ cells

    def __call__(
        self,
        cells: Any,
        *,
        gene_ids: Sequence[str] | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        gene_column: str | None = None,
        counts: Literal["raw", "normalized", "log1p"] = "raw",
        empty_cells: Literal["error", "mark"] = "error",
        max_length: int | None = None,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Encodes cells as one batch.

        Args:
            cells: An AnnData, in memory or backed; or a sparse or dense `(cells, genes)` matrix with `gene_ids`.
            gene_ids: `(genes,)` Ensembl ids or symbols of a matrix's columns.
            layer: A layer of the AnnData to read in place of `X`.
            use_raw: Read `.raw` of the AnnData.
            gene_column: The column of `var` that names the genes. By default its index and the usual columns
                (`ensembl_id`, `gene_ids`, `feature_name`, `symbol` and the like) are all looked at.
            counts: What the values are: `"raw"` counts; `"normalized"`, scaled by one factor a cell (CPM, for
                instance); `"log1p"`, the logarithm of such values. All three give the same ranks, since whole
                multiples of a cell's smallest value are taken as such, whatever float32 made of them.
            empty_cells: A cell without any known gene is an error, or becomes a lone `<cls>` (`"mark"`).
            max_length: Longest sequence, `<cls>` included; the extractor's own by default.
            padding: To the longest cell (`True`), to `max_length`, or not at all.
            return_tensors: `"pt"` or `"np"`; lists when left out.

        Returns:
            `cell_input_ids` and `cell_attention_mask`, `(cells, genes)` int64.

        Raises:
            InputError: Values that are not what `counts` says, too few known genes, no cells, no genes, a cell
                without known genes.
        """
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise InputError(f"padding={padding!r} is not one of True, 'longest', 'max_length', False, 'do_not_pad'.")
        ranked = self.rank(
            cells,
            gene_ids=gene_ids,
            layer=layer,
            use_raw=use_raw,
            gene_column=gene_column,
            counts=counts,
            empty_cells=empty_cells,
            max_length=max_length,
        )
        if padding in (False, "do_not_pad"):
            if return_tensors and len(set(ranked.lengths.tolist())) > 1:
                raise InputError("Cells of different lengths are no tensor: pad them, or leave out return_tensors.")
            rows = [ranked[cell].tolist() for cell in range(len(ranked))]
            batch: dict[str, Any] = {"cell_input_ids": rows, "cell_attention_mask": [[1] * len(row) for row in rows]}
        else:
            ids, mask = ranked.pad(length=(max_length or self.max_length) if padding == "max_length" else None)
            arrays = {"cell_input_ids": ids, "cell_attention_mask": mask}
            batch = arrays if return_tensors else {name: array.tolist() for name, array in arrays.items()}
        return BatchFeature(batch, tensor_type=return_tensors)

    def rank(self, cells: Any, **kwargs: Any) -> RankedCells:
        """All the cells, ranked. Arguments as for a call, but for padding and tensors."""
        return RankedCells.concatenate(list(self.stream(cells, **kwargs)))

    def stream(self, cells: Any, **kwargs: Any) -> Iterator[RankedCells]:
        """
        The cells, ranked, `chunk_size` at a time and in order: memory grows with the chunk and not with the input.
        Arguments as for `chunks`. A fault in a later chunk is raised when that chunk is reached.
        """
        return iter(self.chunks(cells, **kwargs))

    def chunks(
        self,
        cells: Any,
        *,
        chunk_size: int = 4096,
        gene_ids: Sequence[str] | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        gene_column: str | None = None,
        counts: Literal["raw", "normalized", "log1p"] = "raw",
        empty_cells: Literal["error", "mark"] = "error",
        max_length: int | None = None,
    ) -> RankedChunks:
        """
        The cells as chunks of `chunk_size`, each of which is read and ranked when it is asked for. Arguments as for a
        call.

        Raises:
            InputError: Arguments that do not fit, no cells, no genes, too few known genes. What is wrong with the
                values is raised when their chunk is read.
        """
        if counts not in ("raw", "normalized", "log1p"):
            raise InputError(f"counts={counts!r} is not one of 'raw', 'normalized' and 'log1p'.")
        if empty_cells not in ("error", "mark"):
            raise InputError(f"empty_cells={empty_cells!r} is not one of 'error' and 'mark'.")
        if chunk_size < 1:
            raise InputError(f"chunk_size={chunk_size} is not a number of cells.")
        limit = self.max_length if max_length is None else max_length
        if limit < 2:
            raise InputError(f"max_length={limit} leaves no room for genes: it counts <cls> too.")
        source, match = self.open(cells, gene_ids=gene_ids, layer=layer, use_raw=use_raw, gene_column=gene_column)
        return RankedChunks(
            self,
            source,
            match,
            chunk_size=chunk_size,
            counts=counts,
            empty_cells=empty_cells,
            max_length=limit,
            gene_column=gene_column,
        )

    def open(
        self,
        cells: Any,
        *,
        gene_ids: Sequence[str] | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        gene_column: str | None = None,
    ) -> tuple[_CountMatrix, GeneMatch]:
        """
        The array that will be read, and what of its genes is known.

        Raises:
            InputError: No such layer, column or raw; no cells or no genes; fewer than `min_matched_genes` known.
        """
        if hasattr(cells, "var_names"):
            if gene_ids is not None:
                raise InputError("gene_ids is for a matrix; name the column of var that has them with gene_column.")
            source, names = _read_anndata(cells, layer, use_raw, gene_column)
        else:
            if layer is not None or use_raw or gene_column is not None:
                raise InputError("layer, use_raw and gene_column are for an AnnData; a matrix has gene_ids alone.")
            source, names = _read_matrix(cells, gene_ids)
        n_cells, n_genes = source.matrix.shape
        if n_cells == 0 or n_genes == 0:
            raise InputError(f"{source.label} is empty: {n_cells} cells x {n_genes} genes.")
        columns = [[_GENOME_PREFIX.sub("", str(name)) for name in column] for column in names.values()]
        match = self.match_genes(*columns)
        if match.fraction < self.min_matched_genes:
            examples = ", ".join(repr(name) for name in columns[0][:3])
            raise InputError(
                f"{(match.token_ids >= 0).sum()} of the {n_genes} genes of {source.label} are known "
                f"({match.fraction:.1%}; at least {self.min_matched_genes:.0%} must be). Looked at {', '.join(names)}: "
                f"{examples}, ... Human Ensembl ids or gene symbols are expected;",
                Remedy("name their column of var with {option}.", "gene_column"),
            )
        return source, match

    def read_counts(self, cells: Any, **where: Any) -> tuple[sp.csr_matrix, np.ndarray]:
        """
        Raw counts of the known genes by id, `(cells, vocabulary)`, and every cell's total over all genes of the
        matrix, known or not. All the cells are read at once; `where` and errors as for `open` and a call.
        """
        source, match = self.open(cells, **where)
        counts = source.rows(0, len(source))
        _check_values(counts, "raw", source, 0)
        return self.by_gene(counts, match), np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()

    def by_gene(self, counts: sp.csr_matrix, match: GeneMatch) -> sp.csr_matrix:
        """The positive counts of known genes, `(cells, vocabulary)`, duplicated genes summed."""
        token_ids = match.token_ids[counts.indices]
        known = np.flatnonzero((token_ids >= 0) & (counts.data > 0))
        values, starts = counts.data[known].astype(np.float64), np.searchsorted(known, counts.indptr)
        by_gene = sp.csr_matrix((values, token_ids[known], starts), shape=(counts.shape[0], len(self)))
        if match.has_duplicates or not counts.has_canonical_format:
            by_gene.sum_duplicates()
        return by_gene


def _first(table: dict[str, int], names: Sequence[str]) -> int:
    """The id of the first of the names that the table knows, or -1."""
    return next((table[name] for name in names if name in table), -1)


def _rows(matrix: sp.csr_matrix, start: int, stop: int) -> sp.csr_matrix:
    """Some rows of a matrix, which share its memory: scipy would copy them."""
    indptr = matrix.indptr[start : stop + 1]
    stored = slice(indptr[0], indptr[-1])
    rows = sp.csr_matrix((len(indptr) - 1, matrix.shape[1]), dtype=matrix.dtype)
    rows.data, rows.indices, rows.indptr = matrix.data[stored], matrix.indices[stored], indptr - indptr[0]
    return rows


def _by_cell(function: np.ufunc, values: np.ndarray, indptr: np.ndarray, of_none: float = 0.0) -> np.ndarray:
    """`(cells,)` float64: one number of all the values of a cell, or `of_none` where it has none."""
    filled = np.flatnonzero(np.diff(indptr))
    numbers = np.full(len(indptr) - 1, of_none)
    numbers[filled] = function.reduceat(values, indptr[filled], dtype=np.float64)
    return numbers


def _multiples(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """
    Values as multiples of the smallest of their cell, whole ones exactly: of values that were counts before they were
    scaled, equal ones are equal again.
    """
    smallest = _by_cell(np.minimum, np.where(values > 0, values, np.inf), indptr, np.inf)
    smallest = np.maximum(smallest, 1 / _LARGEST)  # Whatever is divided by it is finite.
    ratios = values / np.repeat(smallest, np.diff(indptr))
    whole = np.rint(ratios)
    return np.where(np.abs(ratios - whole) <= _WHOLE * whole, whole, ratios)


# ---------------------------------------------------------------------- reading the input


@contextmanager
def _reading(label: str, file: Any = None) -> Iterator[None]:
    """Whatever a damaged array makes anndata, h5py and scipy stumble over is said of the array."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        what = label if file is None else f"{label} of {file}"
        raise InputError(
            f"{what} cannot be read: {reason_of(error)}. It is damaged: take a whole copy, or write it anew."
        ) from error


def _check_structure(matrix: sp.csr_matrix | sp.csc_matrix) -> None:
    """
    Raises:
        ValueError: The parts of a sparse matrix do not fit each other. scipy looks at little of it, and would read
            counts of other cells, of the last gene for gene -1, or beyond its memory.
    """
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    if indptr[0] or (np.diff(indptr) < 0).any() or not len(data) == len(indices) == indptr[-1]:
        raise ValueError("its indptr does not say where among its values each row begins and ends")
    across = matrix.shape[1 if matrix.format == "csr" else 0]
    if len(indices) and not 0 <= indices.min() <= indices.max() < across:
        raise ValueError(f"its indices are not all from 0 to {across - 1}")


def _read_anndata(adata, layer, use_raw, gene_column) -> tuple[_CountMatrix, dict[str, Sequence[str]]]:
    if use_raw and layer is not None:
        raise InputError("Choose one of layer and use_raw.")
    if use_raw and adata.raw is None:
        raise InputError("This AnnData has no raw:", Remedy("leave out {option}.", "use_raw"))
    if layer is not None and layer not in adata.layers:
        raise InputError(f"No layer {layer!r}; layers here: {_layer_names(adata) or 'none'}.")
    var = adata.raw.var if use_raw else adata.var
    label = "raw.X" if use_raw else "X" if layer is None else f"layers[{layer!r}]"
    file = adata.filename if adata.isbacked else None
    with _reading(label, file):
        try:
            matrix = adata.raw.X if use_raw else adata.X if layer is None else adata.layers[layer]
        except KeyError:  # A file that has none, or a link to none.
            matrix = None
        if matrix is None:
            if layers := _layer_names(adata):
                remedy = Remedy(f"pass {{option}}; layers here: {layers}.", "layer")
            else:
                remedy = Remedy("put the counts there.")
            raise InputError(f"{file or 'This AnnData'} has no {label}:", remedy)
        if tuple(matrix.shape) != (adata.n_obs, len(var)):
            named = f"the names are of {adata.n_obs} cells and {len(var)} genes"
            raise ValueError(f"its shape is {' x '.join(map(str, matrix.shape))}, and {named}")
        matrix = _by_rows(matrix)
    if gene_column is not None:
        if gene_column not in var.columns:
            raise InputError(f"No column {gene_column!r} in var; columns here: {sorted(map(str, var.columns))}.")
        names = {f"var[{gene_column!r}]": var[gene_column].astype(str)}
    else:
        present = [column for column in GENE_COLUMNS if column in var.columns]
        names = {"the index of var": var.index.astype(str)}
        names |= {f"var[{column!r}]": var[column].astype(str) for column in present}
    return _CountMatrix(matrix, label, adata.obs_names, partial(_advice, adata, label), file), names


def _layer_names(adata) -> list[str]:
    return sorted(name for name in adata.layers if name is not None)  # None is X, since anndata 0.13.


def _read_matrix(matrix, gene_ids) -> tuple[_CountMatrix, dict[str, Sequence[str]]]:
    if not hasattr(matrix, "shape") or len(matrix.shape) != 2:
        raise InputError(f"Cells must be an AnnData or a (cells, genes) matrix, not {type(matrix).__name__}.")
    if gene_ids is None or len(gene_ids) != matrix.shape[1]:
        given = "none" if gene_ids is None else f"{len(gene_ids)}"
        raise InputError(f"A matrix needs gene_ids, one for each of its {matrix.shape[1]} columns ({given} given).")
    with _reading("the matrix"):
        return _CountMatrix(_by_rows(matrix), "the matrix"), {"gene_ids": gene_ids}


def _by_rows(matrix):
    """The matrix in a form whose rows are cheap to slice; any other sparse storage is turned around once."""
    if getattr(matrix, "format", "csr") == "csr":
        return matrix
    matrix = matrix if sp.issparse(matrix) else matrix.to_memory()
    if matrix.format == "csc":
        _check_structure(matrix)  # Before it is turned around, in code that looks at nothing.
    return matrix.tocsr()


def _advice(adata, label: str) -> list[Remedy]:
    """Which other array of the AnnData to read, for when the one at hand does not hold counts."""
    sample = adata if adata.isbacked else adata[:64]
    option = "use_raw" if label == "raw.X" else "layer"
    arrays = {"X": (lambda: sample.X, Remedy("X looks like counts: leave out {option}.", option))}
    if sample.raw is not None:
        arrays["raw.X"] = lambda: sample.raw.X, Remedy("raw.X looks like counts: pass {option}.", "use_raw", True)
    for layer in _layer_names(sample):
        name = f"layers[{layer!r}]"
        remedy = Remedy(f"{name} looks like counts: pass {{option}}.", "layer", layer)
        arrays[name] = partial(sample.layers.get, layer), remedy
    for name, (read, remedy) in arrays.items():
        with suppress(InputError), _reading(name):
            if name == label or (matrix := read()) is None or matrix.dtype.kind not in "fiub":
                continue
            values = _CountMatrix(matrix, name).rows(0, 64).data
            if len(values) and np.isfinite(values).all() and (values >= 0).all() and (values == np.rint(values)).all():
                return [remedy]
    return []


def _check_values(chunk: sp.csr_matrix, counts: str, source: _CountMatrix, start: int) -> None:
    """Refuses values that are not what `counts` says they are, naming the array and a cell."""

    def refuse(wrong: np.ndarray, what: str, remedy: str, value: str | None = None) -> None:
        if wrong.any():
            first = np.flatnonzero(wrong)[:1]
            cell = source.cells(start + np.searchsorted(chunk.indptr, first, side="right") - 1)
            raise InputError(
                f"{source.label} holds {what} ({chunk.data[first[0]]} in cell {cell}).",
                Remedy(remedy, "counts", value),
                *source.advice(),
            )

    data = chunk.data
    low, high = data.min(initial=0), data.max(initial=0)  # Both NaN where any value is.
    whole = data.dtype.kind != "f" or bool((data == np.rint(data)).all())
    if not -np.inf < low <= high < np.inf:
        refuse(~np.isfinite(data), "values that are not finite", "Go back to the counts, or leave such cells out.")
    if low < 0:
        refuse(data < 0, "negative values", "Scaled data cannot be ranked: go back to the counts.")
    if high > _LARGEST:
        refuse(data > _LARGEST, "values larger than any count", "Go back to the counts.")
    if counts == "raw" and not whole:
        fractions, what = data != np.rint(data), "values that are not whole, so not raw counts"
        if high < 16:
            refuse(fractions, what, "It looks log-transformed: pass {option} if so.", "log1p")
        refuse(fractions, what, "Pass {option} if every cell was scaled by one factor.", "normalized")
    if counts == "log1p" and high > 30:
        too_large = "values too large for logarithms"
        refuse(data > 30, too_large, "Pass {option} if they are not logarithms.", "normalized")
    if counts == "log1p" and whole and high > 0:
        refuse(data > 0, "whole numbers alone, so not logarithms", "Pass {option} for counts.", "raw")


__all__ = ["GeneMatch", "LangCellFeatureExtractor", "RankedCells", "RankedChunks"]
