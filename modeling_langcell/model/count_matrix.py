# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Reading counts: opens one array of an AnnData or a matrix, reads it in slices of rows, and checks its values."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from .errors import InputError, Remedy, reason_of

logger = logging.getLogger(__name__)

#: Columns of `var` that may name the genes, besides its index.
GENE_COLUMNS = (
    "ensembl_id",
    "gene_ids",
    "gene_id",
    "feature_id",
    "ensembl",
    "Accession",
    "symbol",
    "gene_symbol",
    "gene_symbols",
    "feature_name",
    "gene_name",
    "gene_names",
    "gene_short_name",
)
#: Columns of `var` that may say what is measured in each of its rows, such as "Gene Expression" or "Antibody Capture".
FEATURE_COLUMNS = ("feature_types", "feature_type", "modality")
_GENES = {"gene expression", "gene", "genes", "rna", "gex", "mrna"}
_NO_GENES = re.compile(
    r"\b(?:antibod(?:y|ies)|adt|hto|hashtags?|crispr|guides?|multiplexing|custom|peaks?|atac|chromatin|antigens?|spike)\b"
    r"|^prot(?:eins?)?$"
)
#: Names of rows that no gene has: regions of chromosomes, and antibodies.
_NO_GENE_NAME = re.compile(r"^(?:chr\w+|[\dXYM]+)[:-]\d+-\d+$|TotalSeq|_(?:ADT|HTO)$")
#: Names of layers of counts, in lower case; velocyto's `matrix` holds all that its other layers divide.
_CALLED_COUNTS = {"counts", "count", "raw", "raw_counts", "rawcounts", "umi", "umis", "umi_counts", "matrix"}
_SAMPLE = 64  # Number of cells by which an array is judged.
_LARGEST_LOGARITHM = 16  # Values below this are probably logarithms.
#: Largest value that is accepted, about that of float32: sums and ratios of such values are finite in float64.
LARGEST_VALUE = 1e38


@dataclass(frozen=True)
class CountMatrix:
    """
    One array of the input, read in slices of rows.

    Args:
        matrix: The array: sparse or dense, in memory or on disk.
        label: Its name in messages: `X`, `raw.X`, `layers['counts']`, `the matrix`.
        cell_names: `(cells,)` names for messages; row numbers when None.
        advice: Returns remedies that name other arrays; called only when this array is refused.
        file: The file that holds the array, if any.
        columns: `(genes,)` numbers of the columns that are genes; None where all are.
    """

    matrix: Any
    label: str
    cell_names: Sequence[str] | None = None
    advice: Callable[[], Sequence[Remedy]] = tuple
    file: Any = None
    columns: np.ndarray | None = None

    @property
    def n_genes(self) -> int:
        """Number of columns that are genes."""
        return self.matrix.shape[1] if self.columns is None else len(self.columns)

    @property
    def n_others(self) -> int:
        """Number of columns that are no genes, such as antibodies and peaks; they are not read."""
        return self.matrix.shape[1] - self.n_genes

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """
        Reads some rows.

        Raises:
            InputError: The array is damaged, or does not hold numbers.
        """
        with _naming_the_array(self.label, self.file):
            if sp.issparse(self.matrix) and self.matrix.dtype.kind in "fiub":
                rows = slice_rows(self.matrix, start, stop)
            else:
                self._require_numbers(getattr(self.matrix, "dtype", None))  # Some dtypes cannot become sparse.
                block = self.matrix[start:stop]
                block = block.compute() if hasattr(block, "compute") else block  # A Dask array.
                block = block if sp.issparse(block) else np.asarray(block)
                self._require_numbers(block.dtype)
                # scipy has no sparse half precision.
                rows = sp.csr_matrix(block.astype(np.float32) if block.dtype == np.float16 else block)
            _check_structure(rows)
        return rows if self.columns is None else rows[:, self.columns]

    def _require_numbers(self, dtype: np.dtype | None) -> None:
        if dtype is not None and dtype.kind not in "fiub":
            raise InputError(f"{self.label} holds {dtype} values: make them numbers.", *self.advice())

    def list_cells(self, rows: np.ndarray) -> str:
        """Returns the names of some cells for a message, at most five."""
        names = [str(row) if self.cell_names is None else repr(str(self.cell_names[row])) for row in rows[:5]]
        return ", ".join(names) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def slice_rows(matrix: sp.csr_matrix, start: int, stop: int) -> sp.csr_matrix:
    """Returns some rows of a matrix, which share its memory: scipy would copy them."""
    indptr = matrix.indptr[start : stop + 1]
    stored = slice(indptr[0], indptr[-1])
    rows = sp.csr_matrix((len(indptr) - 1, matrix.shape[1]), dtype=matrix.dtype)
    rows.data, rows.indices, rows.indptr = matrix.data[stored], matrix.indices[stored], indptr - indptr[0]
    return rows


# ---------------------------------------------------------------------- opening


def open_anndata(
    adata: Any, layer: str | None, use_raw: bool, gene_column: str | None
) -> tuple[CountMatrix, dict[str, Sequence[str]]]:
    """
    Opens `X`, `raw.X` or a layer.

    Returns:
        The array, and the columns that may name its genes, by their names in messages and the most trusted first.

    Raises:
        InputError: No such array or column, or an array that is damaged.
    """
    if use_raw and layer is not None:
        raise InputError("Choose one of layer and use_raw.")
    if use_raw and adata.raw is None:
        raise InputError("This AnnData has no raw:", Remedy("leave out {option}.", "use_raw"))
    if layer is not None and layer not in adata.layers:
        raise InputError(f"No layer {layer!r}; layers here: {_layer_names(adata) or 'none'}.")
    var = adata.raw.var if use_raw else adata.var
    label = "raw.X" if use_raw else "X" if layer is None else f"layers[{layer!r}]"
    file = adata.filename if adata.isbacked else None
    with _naming_the_array(label, file):
        try:
            matrix = adata.raw.X if use_raw else adata.X if layer is None else adata.layers[layer]
        except KeyError:  # The file lacks the array, or has a link that leads nowhere.
            matrix = None
        if matrix is None:
            if layers := _layer_names(adata):
                remedy = Remedy(f"pass {{option}}; layers here: {layers}.", "layer")
            else:
                remedy = Remedy("put the counts there.")
            found = _suggest_counts(adata, label)
            raise InputError(f"{file or 'This AnnData'} has no {label}:", *(found or [remedy]))
        if tuple(matrix.shape) != (adata.n_obs, len(var)):
            shape = " x ".join(map(str, matrix.shape))
            raise ValueError(f"its shape is {shape}, but there are names for {adata.n_obs} cells and {len(var)} genes")
        matrix = _stored_by_rows(matrix, label)
    if gene_column is not None:
        if gene_column not in var.columns:
            raise InputError(f"No column {gene_column!r} in var; columns here: {sorted(map(str, var.columns))}.")
        names = {f"var[{gene_column!r}]": var[gene_column].astype(str)}
    else:
        present = [column for column in GENE_COLUMNS if column in var.columns]
        names = {"the index of var": var.index.astype(str)}
        names |= {f"var[{column!r}]": var[column].astype(str) for column in present}
    genes = _find_genes(var, label)
    columns = None if genes.all() else np.flatnonzero(genes)
    source = CountMatrix(matrix, label, adata.obs_names, partial(_suggest_counts, adata, label), file, columns)
    return source, names if columns is None else {name: column[genes] for name, column in names.items()}


def _find_genes(var: Any, label: str) -> np.ndarray:
    """
    Returns `(rows of var,)` booleans: false for antibodies, peaks and the like, by the columns that say so and by names
    that no gene has.

    Raises:
        InputError: No row is a gene.
    """
    genes = np.array([_NO_GENE_NAME.search(str(name)) is None for name in var.index])
    for column in FEATURE_COLUMNS:
        if column in var.columns:
            kinds = var[column].astype(str).str.casefold().str.replace("_", " ").str.strip()
            said = kinds.isin(_GENES)
            # Some write the kind of gene here ("protein_coding"): then only what is no gene is known.
            genes &= (said if said.any() else ~kinds.str.contains(_NO_GENES)).to_numpy()
    if len(var) and not genes.any():
        raise InputError(f"{label} has no genes: its rows of var are antibodies, peaks or the like.")
    if not genes.all():
        logger.info("%s: %d rows of var are no genes (antibodies, peaks): they are left out.", label, (~genes).sum())
    return genes


def open_matrix(matrix: Any, gene_ids: Sequence[str] | None) -> tuple[CountMatrix, dict[str, Sequence[str]]]:
    """Opens a `(cells, genes)` matrix. The result and errors are the same as for `open_anndata`."""
    if not hasattr(matrix, "shape") or len(matrix.shape) != 2:
        raise InputError(f"Cells must be an AnnData or a (cells, genes) matrix, not {type(matrix).__name__}.")
    if gene_ids is None or len(gene_ids) != matrix.shape[1]:
        given = "none" if gene_ids is None else f"{len(gene_ids)}"
        raise InputError(f"A matrix needs gene_ids, one for each of its {matrix.shape[1]} columns ({given} given).")
    label = "the matrix"
    with _naming_the_array(label):
        return CountMatrix(_stored_by_rows(matrix, label), label), {"gene_ids": gene_ids}


@contextmanager
def _naming_the_array(label: str, file: Any = None) -> Iterator[None]:
    """Turns any error of anndata, h5py or scipy about a damaged array into an InputError that names the array."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        name = label if file is None else f"{label} of {file}"
        raise InputError(
            f"{name} cannot be read: {reason_of(error)}. It is damaged: use an intact copy, or write the file again."
        ) from error


def _layer_names(adata) -> list[str]:
    return sorted(name for name in adata.layers if name is not None)  # None is X, since anndata 0.13.


def _stored_by_rows(matrix, label: str):
    """Returns a matrix whose rows are cheap to slice; other sparse formats are converted in memory, once."""
    if getattr(matrix, "format", "csr") == "csr":
        return matrix
    matrix = matrix if sp.issparse(matrix) else matrix.to_memory()
    logger.info("%s is stored as %s: it is converted to CSR in memory.", label, matrix.format.upper())
    if matrix.format == "csc":
        _check_structure(matrix)  # Checked first, because scipy converts it without any check.
    return matrix.tocsr()


def _suggest_counts(adata, label: str) -> list[Remedy]:
    """
    Finds another array of the AnnData for one that does not hold counts: that with counts and, of several, the one
    whose name says so, or else with the most; or else `raw.X` if it looks like logarithms, as scanpy leaves it.
    """
    sample = adata if adata.isbacked else adata[:_SAMPLE]
    option = "use_raw" if label == "raw.X" else "layer"
    arrays: dict[str, tuple[str, Callable[[], Any], Remedy]] = {
        "X": ("", lambda: sample.X, Remedy("X looks like counts: leave out {option}.", option))
    }
    if sample.raw is not None:
        remedy = Remedy("raw.X looks like counts: pass {option}.", "use_raw", True)
        arrays["raw.X"] = "", lambda: sample.raw.X, remedy
    for layer in _layer_names(sample):
        name = f"layers[{layer!r}]"
        remedy = Remedy(f"{name} looks like counts: pass {{option}}.", "layer", layer)
        arrays[name] = layer.casefold(), partial(sample.layers.get, layer), remedy
    counts: list[tuple[bool, float, Remedy]] = []
    logarithms = None
    for name, (called, read, remedy) in arrays.items():
        with suppress(InputError), _naming_the_array(name):
            if name == label or (matrix := read()) is None or matrix.dtype.kind not in "fiub":
                continue
            values = CountMatrix(matrix, name).rows(0, _SAMPLE).data
            if not len(values) or not np.isfinite(values).all() or values.min() < 0:
                continue
            if (values == np.rint(values)).all():
                # Zeros and ones may be counts of a shallow cell, but are as often a mask.
                if values.max() > 1:
                    counts.append((called in _CALLED_COUNTS, float(values.sum()), remedy))
            elif name == "raw.X" and values.max() < _LARGEST_LOGARITHM:
                logarithms = Remedy(
                    "raw.X looks log-transformed: if so, pass {option}.", "use_raw", True, (("counts", "log1p"),)
                )
    if counts:
        return [max(counts, key=lambda found: found[:2])[2]]
    return [] if logarithms is None else [logarithms]


# ---------------------------------------------------------------------- checking


def _check_structure(matrix: sp.csr_matrix | sp.csc_matrix) -> None:
    """
    Checks that the parts of a sparse matrix fit each other. scipy checks little of this, and would read counts of other
    cells, the last gene for gene -1, or memory beyond the arrays.

    Raises:
        ValueError: The parts do not fit.
    """
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    if indptr[0] or (np.diff(indptr) < 0).any() or not len(data) == len(indices) == indptr[-1]:
        raise ValueError("its indptr does not say where each row begins and ends among its values")
    n_indices = matrix.shape[1 if matrix.format == "csr" else 0]
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_indices:
        raise ValueError(f"its indices are not all from 0 to {n_indices - 1}")


def check_values(chunk: sp.csr_matrix, counts: str, source: CountMatrix, start: int) -> None:
    """
    Checks that values are of the kind that `counts` names.

    Args:
        chunk: Rows of `source`.
        counts: `"raw"`, `"normalized"` or `"log1p"`.
        source: The array, for messages.
        start: Row of `source` where the chunk begins.

    Raises:
        InputError: The values are of a different kind; the message names the array, a value and its cell.
    """

    def refuse(wrong: np.ndarray, problem: str, advice: str, remedy: str = "", value: str | None = None) -> None:
        if wrong.any():
            first = np.flatnonzero(wrong)[:1]
            cell = source.list_cells(start + np.searchsorted(chunk.indptr, first, side="right") - 1)
            raise InputError(
                f"{source.label} holds {problem} ({chunk.data[first[0]]} in cell {cell}). {advice}".rstrip(),
                *([Remedy(remedy, "counts", value)] if remedy else []),
                *source.advice(),
            )

    data = chunk.data
    low, high = data.min(initial=0), data.max(initial=0)  # Both are NaN if any value is NaN.
    all_whole = data.dtype.kind != "f" or bool((data == np.rint(data)).all())
    if not -np.inf < low <= high < np.inf:
        refuse(~np.isfinite(data), "values that are not finite", "Go back to the counts, or remove such cells.")
    if low < 0:
        refuse(data < 0, "negative values", "Scaled data cannot be ranked: go back to the counts.")
    if high > LARGEST_VALUE:
        refuse(data > LARGEST_VALUE, "values larger than any count", "Go back to the counts.")
    if counts == "raw" and not all_whole:
        fractions, problem = data != np.rint(data), "values that are not whole, so not raw counts"
        if high < _LARGEST_LOGARITHM:
            refuse(fractions, problem, "It looks log-transformed.", "If so, pass {option}.", "log1p")
        refuse(fractions, problem, "", "Pass {option} if every cell was scaled by one factor.", "normalized")
    if counts == "log1p" and high > 30:
        too_large = "values too large for logarithms"
        refuse(data > 30, too_large, "", "Pass {option} if they are not logarithms.", "normalized")
    if counts == "log1p" and all_whole and high > 0:
        refuse(data > 0, "only whole numbers, so not logarithms", "", "Pass {option} for counts.", "raw")


__all__ = ["GENE_COLUMNS", "LARGEST_VALUE", "CountMatrix", "check_values", "open_anndata", "open_matrix", "slice_rows"]
