# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""One array of the input, read in slices of rows, with every fault of its structure named."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from .count_values import RAW, ValueKind
from .errors import InputError, Remedy, reason_of

logger = logging.getLogger(__name__)


_NEAR = 16  # Distance of rows that are read at once, with those between them.
_BLOCK = 4096  # No read goes on from one block of this many rows to the next.


@dataclass(frozen=True)
class CountMatrix:
    """
    One array of the input, read in slices of rows.

    Args:
        matrix: The array: sparse or dense, in memory or on disk.
        label: Its name in messages: `X`, `raw.X`, `layers['counts']`, `the matrix`.
        cell_names: `(cells,)` names for messages; row numbers when None.
        advise: Returns remedies that name other arrays; called only when this array is refused.
        file: The file that holds the array, if any.
        columns: `(genes,)` numbers of the columns that are genes; None where all are.
        kind: The kind of its values.
    """

    matrix: Any
    label: str
    cell_names: Sequence[str] | None = None
    advise: Callable[[], Sequence[Remedy]] = tuple
    file: Any = None
    columns: np.ndarray | None = None
    kind: ValueKind = RAW

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
        with naming_the_array(self.label, self.file):
            self._require_numbers(getattr(self.matrix, "dtype", None))  # Some dtypes cannot become sparse.
            if getattr(self.matrix, "format", None) == "csr":
                rows = slice_rows(self.matrix, start, stop)
            else:
                block = self.matrix[start:stop]
                block = block.compute() if hasattr(block, "compute") else block  # A Dask array.
                block = block if sp.issparse(block) else np.asarray(block)
                self._require_numbers(block.dtype)
                # scipy has no sparse half precision.
                rows = sp.csr_matrix(block.astype(np.float32) if block.dtype == np.float16 else block)
            _check_structure(rows)
        return rows if self.columns is None else rows[:, self.columns]

    def take(self, rows: np.ndarray) -> sp.csr_matrix:
        """
        Reads the rows of these numbers.

        Raises:
            InputError: Same as for `rows`.
        """
        if not len(rows):
            return self.rows(0, 0)
        far = (np.diff(rows) < 1) | (np.diff(rows) > _NEAR) | (np.diff(rows // _BLOCK) > 0)
        breaks = np.flatnonzero(far) + 1
        parts = (self.rows(int(near[0]), int(near[-1]) + 1)[near - near[0]] for near in np.split(rows, breaks))
        return sp.vstack(list(parts), format="csr")

    def _require_numbers(self, dtype: np.dtype | None) -> None:
        if dtype is not None and dtype.kind not in "fiub":
            raise InputError(f"{self.label} holds {dtype} values: make them numbers.", *self.advise())

    def list_cells(self, rows: np.ndarray) -> str:
        """Returns the names of some cells for a message, at most five."""
        names = [str(row) if self.cell_names is None else repr(str(self.cell_names[row])) for row in rows[:5]]
        return ", ".join(names) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def slice_rows(matrix: Any, start: int, stop: int) -> sp.csr_matrix:
    """
    Returns some rows of a CSR matrix in memory, whose memory they share, or on disk. scipy would copy the ones, and
    anndata takes ten milliseconds for any number of the others.
    """
    stored = getattr(matrix, "group", None)  # A file's arrays have the names of scipy's attributes.
    parts = ("data", "indices", "indptr")
    data, indices, indptr = (getattr(matrix, part) if stored is None else stored[part] for part in parts)
    indptr = indptr[start : stop + 1]
    values = slice(int(indptr[0]), int(indptr[-1]))
    rows = sp.csr_matrix((min(stop, matrix.shape[0]) - start, matrix.shape[1]))
    rows.data, rows.indices, rows.indptr = data[values], indices[values], indptr - indptr[0]
    if rows.dtype == np.float16:  # scipy has no sparse half precision.
        rows.data = rows.data.astype(np.float32)
    return rows


@contextmanager
def naming_the_array(label: str, file: Any = None) -> Iterator[None]:
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


def stored_by_rows(matrix, label: str):
    """Returns a matrix whose rows are cheap to slice; other sparse formats are converted in memory, once."""
    if getattr(matrix, "format", "csr") == "csr":
        return matrix
    matrix = matrix if sp.issparse(matrix) else matrix.to_memory()
    logger.info("%s is stored as %s: it is converted to CSR in memory.", label, matrix.format.upper())
    if matrix.format == "csc":
        _check_structure(matrix)  # Checked first, because scipy converts it without any check.
    return matrix.tocsr()


def _check_structure(matrix: sp.csr_matrix | sp.csc_matrix) -> None:
    """
    Checks that the parts of a sparse matrix fit each other. scipy checks little of this, and would read counts of other
    cells, the last gene for gene -1, or memory beyond the arrays.

    Raises:
        ValueError: The parts do not fit.
    """
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    n_compressed, n_indices = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    if len(indptr) != n_compressed + 1:
        raise ValueError(f"its indptr has {len(indptr)} values, but its shape is {' x '.join(map(str, matrix.shape))}")
    if indptr[0] or (np.diff(indptr) < 0).any() or not len(data) == len(indices) == indptr[-1]:
        raise ValueError("its indptr does not say where each row begins and ends among its values")
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_indices:
        raise ValueError(f"its indices are not all from 0 to {n_indices - 1}")


__all__ = ["CountMatrix", "naming_the_array", "slice_rows", "stored_by_rows"]
