# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Which array of the input is read: X, raw or a layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .count_matrix import CountMatrix, naming_the_array, stored_by_rows
from .count_values import KINDS, LARGEST_LOGARITHM, RAW, noted_base, recognise, require_kind
from .errors import InputError, Remedy
from .gene_columns import described_by, find_genes, name_columns

if TYPE_CHECKING:
    import pandas as pd

#: Names of layers of counts, in lower case; velocyto's `matrix` holds all that its other layers divide.
_CALLED_COUNTS = {"counts", "count", "raw", "raw_counts", "rawcounts", "umi", "umis", "umi_counts", "matrix"}
#: Number of places, spread over all cells, and of cells at each by which an array is judged.
_PLACES, _CELLS = 8, 8


@dataclass(frozen=True)
class _Array:
    """
    An array of an AnnData.

    Args:
        label: Its name in messages.
        where: The options that name it.
        read: Returns it; None if it is missing.
        n_genes: Number of its columns.
    """

    label: str
    where: dict[str, Any]
    read: Callable[[], Any]
    n_genes: int

    def sample(self) -> sp.csr_matrix | None:
        """Returns its first cells; None if it is missing, damaged, or does not hold numbers."""
        with suppress(InputError), naming_the_array(self.label):
            if self.matrix is not None and self.matrix.dtype.kind in "fiub":
                return sp.vstack(list(_samples(CountMatrix(self.matrix, self.label)).values()), format="csr")
        return None

    @cached_property
    def matrix(self) -> Any:
        """The array, stored so that its rows are cheap to slice; None if it is missing."""
        try:
            found = self.read()
        except KeyError:  # The file lacks the array, or has a link that leads nowhere.
            return None
        return None if found is None else stored_by_rows(found, self.label)

    @property
    def is_raw(self) -> bool:
        return "use_raw" in self.where

    @property
    def of_var(self) -> str:
        """The name in messages of the table of its columns."""
        return "raw.var" if self.is_raw else "var"

    @property
    def is_called_counts(self) -> bool:
        return str(self.where.get("layer")).casefold() in _CALLED_COUNTS


def _arrays(adata: Any) -> Iterator[_Array]:
    """Yields X, raw.X and the layers."""
    yield _Array("X", {}, partial(_read_x, adata), adata.n_vars)
    if adata.raw is not None:
        yield _Array("raw.X", {"use_raw": True}, partial(_read_x, adata, of_raw=True), len(adata.raw.var))
    for layer in _layer_names(adata):
        yield _Array(f"layers[{layer!r}]", {"layer": layer}, partial(adata.layers.__getitem__, layer), adata.n_vars)


def _read_x(adata: Any, of_raw: bool = False) -> Any:
    """
    Reads X or raw.X. For a view of a file, it takes the rows itself: anndata before 0.12.7 cannot take those of a
    sparse array with SciPy 1.17, and its oldest versions cannot take those of a dense one if the genes are chosen too.
    """
    if not (adata.isbacked and adata.is_view):
        return adata.raw.X if of_raw else adata.X
    label, whole = ("raw.X", adata._adata_ref.raw) if of_raw else ("X", adata._adata_ref)
    rows = np.arange(whole.shape[0])[adata._oidx]
    taken = CountMatrix(stored_by_rows(whole.X, label), label).take(rows)
    return taken if of_raw else taken[:, adata._vidx]


def _find_counts(adata: Any, only_raw: bool = False) -> _Array:
    """
    Finds the array to read where none is named: X, raw or a layer called counts. Of the values whose kind is certain,
    it is the one with the most genes and, of those with as many, the first of raw counts. Logarithms give the ranks of
    their counts exactly, whereas genes that are left out change them. A mask of zeros and ones comes last.
    """
    certain: list[tuple[tuple[bool, int, bool], _Array]] = []
    for array in _arrays(adata):
        is_layer = "layer" in array.where
        if is_layer and not array.is_called_counts:
            continue
        sample = array.sample()
        kind = None if sample is None else recognise(sample, noted_base(adata.uns))
        if sample is None or kind is None or ((is_layer or only_raw) and kind != RAW):
            continue
        certain.append(((sample.data.max() > 1, array.n_genes, kind == RAW), array))
    return max(certain, key=lambda found: found[0])[1] if certain else next(_arrays(adata))


def _samples(source: CountMatrix) -> dict[int, sp.csr_matrix]:
    """Returns some cells at places that are spread over all, by the row where they begin."""
    if len(source) <= 2 * _CELLS:
        return {0: source.rows(0, 2 * _CELLS)}
    starts = np.linspace(0, len(source) - _CELLS, _PLACES, dtype=int).tolist()
    return {start: source.rows(start, start + _CELLS) for start in starts}


def open_anndata(
    adata: Any,
    layer: str | None,
    use_raw: bool,
    gene_column: str | None,
    counts: str,
) -> tuple[CountMatrix, Mapping[str, Iterable[str]]]:
    """
    Opens `X`, `raw.X` or a layer.

    Returns:
        The array, and the columns that may name its genes, by their names in messages and the most trusted first.

    Raises:
        InputError: No such array or column, an array that is damaged, or values of another kind than `counts`.
    """
    array = _named(adata, layer, use_raw) or (_find_counts(adata) if counts == "auto" else next(_arrays(adata)))
    source, var = _open(adata, array)
    names = name_columns(var, array.of_var, gene_column)
    return _with_kind(source, counts, noted_base(adata.uns)), names


def open_raw_counts(adata: Any, layer: str | None = None, use_raw: bool = False) -> tuple[CountMatrix, "pd.DataFrame"]:
    """
    Opens the array of raw counts: the one that is named, or else X, raw or a layer called counts, whichever has the
    most genes; X if there is none. Its values are not checked.

    Returns:
        The array, and the table of its genes.

    Raises:
        InputError: No such array, or one that is damaged or has no genes.
    """
    return _open(adata, _named(adata, layer, use_raw) or _find_counts(adata, only_raw=True))


def _named(adata: Any, layer: str | None, use_raw: bool) -> _Array | None:
    """
    Returns the array that the arguments name; None if they name none.

    Raises:
        InputError: There is none of this name, or they name two.
    """
    if use_raw and layer is not None:
        raise InputError("Choose one of layer and use_raw.")
    if use_raw and adata.raw is None:
        raise InputError("This AnnData has no raw:", Remedy("leave out {option}.", "use_raw"))
    if layer is not None and layer not in adata.layers:
        raise InputError(f"No layer {layer!r}; layers here: {_layer_names(adata) or 'none'}.")
    where = {"use_raw": True} if use_raw else {"layer": layer} if layer is not None else None
    return next((array for array in _arrays(adata) if array.where == where), None)


def _open(adata: Any, array: _Array) -> tuple[CountMatrix, "pd.DataFrame"]:
    """
    Opens an array, with the table of its genes; other columns are left out.

    Raises:
        InputError: It is missing or damaged, or has no genes.
    """
    var = described_by(adata.raw.var, adata.var) if array.is_raw else adata.var
    label, file = array.label, adata.filename if adata.isbacked else None
    advise = partial(_suggest_counts, adata, label)
    with naming_the_array(label, file):
        matrix = array.matrix
        if matrix is None:
            if layers := _layer_names(adata):
                remedy = Remedy(f"pass {{option}}; layers here: {layers}.", "layer")
            else:
                remedy = Remedy("put the counts there.")
            raise InputError(f"{file or 'This AnnData'} has no {label}:", *(advise() or [remedy]))
        if tuple(matrix.shape) != (adata.n_obs, len(var)):
            shape = " x ".join(map(str, matrix.shape))
            raise ValueError(f"its shape is {shape}, but there are names for {adata.n_obs} cells and {len(var)} genes")
    source = CountMatrix(matrix, label, adata.obs_names, advise, file)
    genes = find_genes(var, name_columns(var, array.of_var), label)
    return (source, var) if genes.all() else (replace(source, columns=np.flatnonzero(genes)), var[genes])


def open_matrix(
    matrix: Any, gene_ids: Sequence[str] | None, counts: str
) -> tuple[CountMatrix, Mapping[str, Iterable[str]]]:
    """Opens a `(cells, genes)` matrix. The result and errors are the same as for `open_anndata`."""
    if not hasattr(matrix, "shape") or len(matrix.shape) != 2:
        raise InputError(f"Cells must be an AnnData or a (cells, genes) matrix, not {type(matrix).__name__}.")
    if gene_ids is None or len(gene_ids) != matrix.shape[1]:
        given = "none" if gene_ids is None else f"{len(gene_ids)}"
        raise InputError(f"A matrix needs gene_ids, one for each of its {matrix.shape[1]} columns ({given} given).")
    label = "the matrix"
    with naming_the_array(label):
        source = CountMatrix(stored_by_rows(matrix, label), label)
    return _with_kind(source, counts, None), {"gene_ids": gene_ids}


def _with_kind(source: CountMatrix, counts: str, noted: float | None) -> CountMatrix:
    """Returns the array with the kind of its values."""
    if counts not in KINDS:
        raise InputError(f"counts={counts!r} is not one of {', '.join(map(repr, KINDS[:-1]))} and {KINDS[-1]!r}.")
    if counts == "raw":
        return source  # Every chunk is checked for whole numbers when it is read.
    return replace(source, kind=require_kind(counts, _samples(source), source, noted))


def _layer_names(adata) -> list[str]:
    return sorted(name for name in adata.layers if name is not None)  # None is X, since anndata 0.13.


def _suggest_counts(adata: Any, label: str) -> list[Remedy]:
    """
    Finds another array of the AnnData for one that cannot be read: that with counts and, of several, the one whose name
    says so, or else with the most. If the values of the one are of no certain kind, it is another one whose values are,
    of the most genes; or else `raw.X` if it looks like logarithms, as scanpy leaves it.
    """
    counts: list[tuple[bool, float, Remedy]] = []
    others: list[tuple[int, bool, Remedy]] = []
    logarithms: list[Remedy] = []
    for array in _arrays(adata):
        values = None if array.label == label else array.sample()
        if values is None or not len(values.data) or not np.isfinite(values.data).all() or values.data.min() < 0:
            continue
        option, value = next(iter(array.where.items()), ("use_raw" if label == "raw.X" else "layer", None))
        kind = recognise(values, noted_base(adata.uns))
        advice = "leave out {option}." if value is None else "pass {option}."
        if kind == RAW:
            # Zeros and ones may be counts of a shallow cell, but are as often a mask.
            if values.data.max() > 1:
                remedy = Remedy(f"{array.label} looks like counts: {advice}", option, value)
                counts.append((array.is_called_counts, float(values.data.sum()), remedy))
        elif kind is not None:
            also = () if value is None else (("counts", kind.counts),)
            remedy = Remedy(f"{array.label} holds {kind.in_words}: {advice}", option, value, also)
            others.append((array.n_genes, array.is_called_counts, remedy))
        elif array.label == "raw.X" and values.data.max() < LARGEST_LOGARITHM:
            logarithms = [
                Remedy("raw.X looks log-transformed: if so, pass {option}.", "use_raw", True, (("counts", "log1p"),))
            ]
    if counts:
        return [max(counts, key=lambda found: found[:2])[2]]
    asked = next((array.sample() for array in _arrays(adata) if array.label == label), None)
    if asked is not None and recognise(asked, noted_base(adata.uns)) is not None:
        return []
    return [max(others, key=lambda found: found[:2])[2]] if others else logarithms


__all__ = ["open_anndata", "open_matrix", "open_raw_counts"]
