# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""From counts to ranked gene ids: rank-value encoding (LangCell, section 3.1), gene matching, input checks."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from transformers import BatchFeature, FeatureExtractionMixin

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
_BLOCK = 512  # Rows that are sorted together: the padded keys of a block stay in the processor's cache.


class InputError(ValueError):
    """The user's input cannot be used; the message says which part of it, and what to do."""


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

    @property
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
        lengths = self.lengths[cells]
        columns = np.arange(lengths.max(initial=1) if length is None else length)
        mask = columns < lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = self.token_ids[(self.offsets[cells][:, None] + columns)[mask]]
        return ids, mask.astype(np.int64)

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
    cell_names: Sequence[str]
    advice: str

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        block = self.matrix[start:stop]
        return block.tocsr() if sp.issparse(block) else sp.csr_matrix(np.asarray(block))

    def cells(self, rows: np.ndarray) -> str:
        """The names of some cells, for a message."""
        shown = ", ".join(repr(str(self.cell_names[row])) for row in rows[:5])
        return shown + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


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

    model_input_names = ["cell_input_ids", "cell_attention_mask"]

    def __init__(
        self,
        gene_vocabulary: dict[str, list],
        max_length: int = 2048,
        min_matched_genes: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        columns = [gene_vocabulary.get(key, []) for key in ("ensembl_ids", "medians", "names")]
        if not columns[0] or len({len(column) for column in columns}) != 1:
            raise InputError("gene_vocabulary needs the lists ensembl_ids, medians and names, of one length.")
        self.gene_vocabulary = gene_vocabulary
        self.max_length = max_length
        self.min_matched_genes = min_matched_genes
        self.pad_token_id, self.mask_token_id, first_gene = 0, 1, 2
        ids = range(first_gene, first_gene + len(columns[0]))
        self.cls_token_id = ids.stop
        medians = np.array([np.nan if m is None else m for m in columns[1]], dtype=np.float64)
        if not (np.isnan(medians) | (medians > 0)).all():
            raise InputError("gene_vocabulary: medians must be positive, or None.")
        self._median_of_id = np.concatenate([[np.nan] * first_gene, medians])
        self._id_of_ensembl = dict(zip(columns[0], ids, strict=True))
        self._id_of_symbol: dict[str, int] = {}
        self._id_of_synonym: dict[str, int] = {}
        for token_id, names in zip(ids, columns[2], strict=True):
            symbol, *synonyms = names.split("|")
            self._id_of_symbol.setdefault(symbol, token_id)
            for synonym in synonyms:
                # A synonym that two genes share names neither.
                self._id_of_synonym[synonym] = -1 if synonym in self._id_of_synonym else token_id

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
        token_ids = np.full(len(columns[0]), -1, dtype=np.int64)
        found = {"by_ensembl_id": 0, "by_symbol": 0, "by_synonym": 0}
        unknown = []
        for gene, names in enumerate(zip(*columns, strict=True)):
            ensembl = next((m[1] for name in names if (m := _ENSEMBL.match(name))), None)
            if ensembl is not None or any(name in self._id_of_ensembl for name in names):
                known_as = [ensembl] if ensembl is not None else names
                how, table = "by_ensembl_id", self._id_of_ensembl
            else:
                known_as, how, table = names, "by_symbol", self._id_of_symbol
            token_id = next((table[name] for name in known_as if name in table), -1)
            token_ids[gene] = token_id
            if token_id >= 0:
                found[how] += 1
            elif ensembl is None:
                unknown.append((gene, names))
        claimed = set(token_ids.tolist())
        for gene, names in unknown:
            token_id = next((i for name in names if (i := self._id_of_synonym.get(name, -1)) >= 0), -1)
            if token_id not in claimed:
                token_ids[gene] = token_id
                found["by_synonym"] += 1
        no_median = np.isnan(self._median_of_id[token_ids]) & (token_ids >= 0)
        token_ids[no_median] = -1
        return GeneMatch(token_ids, **found)

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
                instance); `"log1p"`, the logarithm of such values. All three give the same ranks.
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

    def stream(
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
    ) -> Iterator[RankedCells]:
        """
        The cells, ranked, `chunk_size` at a time and in order: memory grows with the chunk and not with the input.
        Arguments as for a call. A fault in a later chunk is raised when that chunk is reached.
        """
        if counts not in ("raw", "normalized", "log1p"):
            raise InputError(f"counts={counts!r} is not one of 'raw', 'normalized' and 'log1p'.")
        if empty_cells not in ("error", "mark"):
            raise InputError(f"empty_cells={empty_cells!r} is not one of 'error' and 'mark'.")
        limit = self.max_length if max_length is None else max_length
        if limit < 2:
            raise InputError(f"max_length={limit} leaves no room for genes: it counts <cls> too.")
        source, match = self.open(cells, gene_ids=gene_ids, layer=layer, use_raw=use_raw, gene_column=gene_column)
        return self._stream(source, match, chunk_size, counts, empty_cells, limit)

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
            source, names = _read_anndata(cells, layer, use_raw, gene_column)
        else:
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
                f"{examples}, ... Human Ensembl ids or gene symbols are expected; name their column of var with "
                "gene_column."
            )
        return source, match

    def _stream(self, source, match, chunk_size, counts, empty_cells, limit) -> Iterator[RankedCells]:
        for start in range(0, len(source), chunk_size):
            chunk = source.rows(start, min(start + chunk_size, len(source)))
            _check_values(chunk, counts, source, start)
            values = np.expm1(chunk.data, dtype=np.float64) if counts == "log1p" else chunk.data
            ranked = self._rank(sp.csr_matrix((values, chunk.indices, chunk.indptr), shape=chunk.shape), match, limit)
            if empty_cells == "error" and ranked.without_genes.any():
                empty = start + np.flatnonzero(ranked.without_genes)
                raise InputError(
                    f"{len(empty)} cell(s) of {source.label} have no counts in known genes: {source.cells(empty)}. "
                    "Filter them out, or keep them unannotated with empty_cells='mark'."
                )
            yield ranked

    def by_gene(self, counts: sp.csr_matrix, match: GeneMatch) -> sp.csr_matrix:
        """The positive counts of known genes, `(cells, vocabulary)`, duplicated genes summed."""
        token_ids = match.token_ids[counts.indices]
        known = (token_ids >= 0) & (counts.data > 0)
        starts = np.concatenate([[0], np.cumsum(known)])[counts.indptr]
        values = counts.data[known].astype(np.float64)
        by_gene = sp.csr_matrix((values, token_ids[known], starts), shape=(counts.shape[0], len(self)))
        if match.has_duplicates or not counts.has_canonical_format:
            by_gene.sum_duplicates()
        return by_gene

    def _rank(self, counts: sp.csr_matrix, match: GeneMatch, limit: int) -> RankedCells:
        """Ranks one chunk; no loop over cells, only over blocks of them."""
        by_gene = self.by_gene(counts, match)
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        matched = np.asarray(by_gene.sum(axis=1)).ravel() / np.maximum(totals, np.finfo(np.float64).tiny)

        # One sort does it all: the bits of a positive float order like the float, so a key is the inverted value with
        # the gene's id in its last bits. Values that differ by less than 2^-36 of themselves become ties, and ties
        # go to the lower id.
        id_bits = np.uint64(max(16, len(self).bit_length()))
        id_mask = (np.uint64(1) << id_bits) - np.uint64(1)
        keys = (by_gene.data / self._median_of_id[by_gene.indices]).view(np.uint64)
        keys = (~keys & ~id_mask) | by_gene.indices.astype(np.uint64)

        parts, lengths = [], np.diff(by_gene.indptr)
        for block in range(0, len(lengths), _BLOCK):
            n_genes = lengths[block : block + _BLOCK]
            inside = np.arange(n_genes.max(initial=0)) < n_genes[:, None]
            padded = np.full(inside.shape, np.iinfo(np.uint64).max)
            padded[inside] = keys[by_gene.indptr[block] : by_gene.indptr[block + len(n_genes)]]
            if padded.shape[1] >= limit:
                padded.partition(limit - 2, axis=1)
                padded, inside = padded[:, : limit - 1], inside[:, : limit - 1]
            padded.sort(axis=1)
            ids = np.full((len(n_genes), padded.shape[1] + 1), self.cls_token_id, dtype=np.int32)
            ids[:, 1:] = padded & id_mask
            parts.append(ids[np.column_stack([np.ones(len(n_genes), dtype=bool), inside])])
        sequence_lengths = np.minimum(lengths, limit - 1) + 1
        return RankedCells(
            token_ids=np.concatenate(parts),
            offsets=np.concatenate([[0], np.cumsum(sequence_lengths)]),
            matched_counts=matched.astype(np.float32),
        )


# ---------------------------------------------------------------------- reading the input


def _read_anndata(adata, layer, use_raw, gene_column) -> tuple[_CountMatrix, dict[str, Sequence[str]]]:
    if use_raw and layer is not None:
        raise InputError("Choose one of layer and use_raw.")
    if use_raw and adata.raw is None:
        raise InputError("use_raw=True, but this AnnData has no .raw.")
    if layer is not None and layer not in adata.layers:
        raise InputError(f"No layer {layer!r}; layers here: {sorted(adata.layers) or 'none'}.")
    if use_raw:
        matrix, label, var = adata.raw.X, "raw.X", adata.raw.var
    else:
        matrix, label, var = (
            (adata.X, "X", adata.var) if layer is None else (adata.layers[layer], f"layers[{layer!r}]", adata.var)
        )
    if matrix is None:
        raise InputError(f"This AnnData has no {label}; layers here: {sorted(adata.layers) or 'none'}.")
    if gene_column is not None:
        if gene_column not in var.columns:
            raise InputError(f"No column {gene_column!r} in var; columns here: {sorted(map(str, var.columns))}.")
        names = {f"var[{gene_column!r}]": var[gene_column].astype(str)}
    else:
        present = [column for column in GENE_COLUMNS if column in var.columns]
        names = {"the index of var": var.index.astype(str)}
        names |= {f"var[{column!r}]": var[column].astype(str) for column in present}
    others = {"X": adata.X, **{f"layers[{key!r}]": value for key, value in adata.layers.items()}}
    if adata.raw is not None:
        others["raw.X"] = adata.raw.X
    return _CountMatrix(_by_rows(matrix), label, adata.obs_names, _advice(label, others)), names


def _read_matrix(matrix, gene_ids) -> tuple[_CountMatrix, dict[str, Sequence[str]]]:
    if not hasattr(matrix, "shape") or len(matrix.shape) != 2:
        raise InputError(f"Cells must be an AnnData or a (cells, genes) matrix, not {type(matrix).__name__}.")
    if gene_ids is None or len(gene_ids) != matrix.shape[1]:
        given = "none" if gene_ids is None else f"{len(gene_ids)}"
        raise InputError(f"A matrix needs gene_ids, one for each of its {matrix.shape[1]} columns ({given} given).")
    source = _CountMatrix(_by_rows(matrix), "the matrix", [f"row {row}" for row in range(matrix.shape[0])], "")
    return source, {"gene_ids": gene_ids}


def _by_rows(matrix):
    """The matrix in a form whose rows are cheap to slice; columns-first storage is turned around once."""
    if getattr(matrix, "format", None) == "csc":
        return (matrix if sp.issparse(matrix) else matrix.to_memory()).tocsr()
    return matrix


def _advice(label: str, arrays: dict[str, Any]) -> str:
    """Which other array of the AnnData to take, said when the one at hand does not hold counts."""
    argument = {"raw.X": "use_raw=True", "X": "layer=None"}
    for name, matrix in arrays.items():
        if name != label and matrix is not None and matrix.shape[0]:
            sample = _CountMatrix(matrix, name, [], "").rows(0, min(64, matrix.shape[0])).data
            if len(sample) and np.isfinite(sample).all() and (sample >= 0).all() and (sample == np.rint(sample)).all():
                where = argument.get(name) or f"layer={name[len('layers[') : -1]}"
                return f" {name} looks like counts: pass {where}."
    return ""


def _check_values(chunk: sp.csr_matrix, counts: str, source: _CountMatrix, start: int) -> None:
    """Refuses values that are not what `counts` says they are, naming the array and a cell."""

    def refuse(wrong: np.ndarray, what: str, remedy: str = "") -> None:
        if wrong.any():
            row = start + np.searchsorted(chunk.indptr, np.flatnonzero(wrong)[:1], side="right") - 1
            example = chunk.data[np.flatnonzero(wrong)[0]]
            raise InputError(
                f"{source.label} holds {what} ({example} in cell {source.cells(row)}).{remedy}{source.advice}"
            )

    data = chunk.data
    if data.dtype.kind not in "fiub":
        raise InputError(f"{source.label} holds {data.dtype} values; numbers are needed.")
    refuse(~np.isfinite(data), "values that are not finite")
    refuse(data < 0, "negative values, so it does not hold counts", " Scaled data cannot be ranked.")
    if counts == "raw" and data.dtype.kind == "f":
        remedy = (
            " It looks log-transformed: pass counts='log1p' if so."
            if data.max(initial=0) < 16
            else " Pass counts='normalized' if every cell was scaled by one factor."
        )
        refuse(data != np.rint(data), "values that are not whole, so it does not hold raw counts", remedy)
    if counts == "log1p":
        refuse(data > 30, "values too large for logarithms", " Pass counts='normalized' if they are not logarithms.")


__all__ = ["GeneMatch", "InputError", "LangCellFeatureExtractor", "RankedCells"]
