# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Kinds of values: raw counts, counts that were corrected or scaled, and logarithms of such values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import scipy.sparse as sp

from .errors import InputError, Remedy

#: `raw` are counts; `corrected` ones lost a part of each, such as ambient RNA; `normalized` ones were scaled by one
#: factor per cell; `log1p` are logarithms of such values plus one. `auto` is whichever it certainly is.
Counts = Literal["auto", "raw", "corrected", "normalized", "log1p"]
KINDS: tuple[str, ...] = get_args(Counts)
#: Bases of logarithms that people take, the most usual first.
BASES = (math.e, 2.0, 10.0)
#: Values from here on are hardly logarithms, which would be those of more than `e ** 16` counts.
LARGEST_LOGARITHM = 16
#: Values from here on are no logarithms to any base.
_NO_LOGARITHM = 30
#: Largest value that is accepted, about that of float32: sums and ratios of such values are finite in float64.
LARGEST_VALUE = 1e38
_FEWEST = 30  # Values of a sample that are needed to tell their kind.
_CERTAIN = 0.9  # Share of them that must be whole multiples.
_TOLERANCE = 1e-4  # Relative error of a whole multiple: float32 leaves less, and chance seldom comes so near.
_MULTIPLES = 1.5, 1000  # Multiples between these tell: one is whole always, and a large one may be by chance.
_SAME_TOTALS = 0.01  # Relative spread of the cells' totals below which they were made equal.
_SAMPLE = 64  # Cells of a chunk by which its kind is compared with that of the first ones.
_CELLS = 8  # Fewest cells whose totals tell.
#: Shares of whole numbers between which values are corrected counts: few logarithms are whole, and a few others among
#: whole ones are faults.
_WHOLE = 0.2, 0.98
#: Distance from a whole number, and share of the values within it from which large ones are corrected counts. A fifth
#: of those that were scaled by gene, for example, is so close by chance; of counts without ambient RNA it is over half.
_NEARLY, _NEARLY_WHOLE = 0.1, 0.35


@dataclass(frozen=True)
class ValueKind:
    """
    The kind of an array's values.

    Args:
        counts: One of `Counts` except `auto`.
        base: Base of logarithms.
    """

    counts: str
    base: float = math.e

    @property
    def in_words(self) -> str:
        """Words for such values, for messages."""
        if self.counts != "log1p":
            return f"{self.counts} values"
        return "natural logarithms" if self.base == math.e else f"logarithms to base {self.base:g}"

    def is_like(self, other: "ValueKind") -> bool:
        """Returns true if values of both kinds are read alike, but for a factor per cell."""
        is_logarithm = self.counts == "log1p"
        return is_logarithm == (other.counts == "log1p") and (not is_logarithm or self.base == other.base)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Returns the values without the logarithm, float64."""
        if self.counts != "log1p":
            return values.astype(np.float64)
        return np.expm1(values.astype(np.float64) * math.log(self.base))


RAW = ValueKind("raw")
SCALED = ValueKind("normalized")


def recognise(sample: sp.csr_matrix, noted_base: float | None = None) -> ValueKind | None:
    """
    Tells the kind of values from some cells; None where it is not certain.

    Whole numbers are raw counts. Values that become whole multiples of the smallest of their cell once a logarithm is
    undone were counts, scaled by one factor per cell, before it was taken; so were those whose totals become equal.

    Args:
        sample: `(cells, genes)` values of some cells.
        noted_base: Base of the logarithms, where the data say that there are such.
    """
    values = sample.data[sample.data != 0]
    if not len(values) or not np.isfinite(values).all() or values.min() < 0:
        return None
    if is_whole(values):
        return RAW
    if (whole := (values == np.rint(values)).mean()) > _WHOLE[1]:
        return None
    kinds = [SCALED]
    if (high := values.max()) < _NO_LOGARITHM:
        kinds += [ValueKind("log1p", base) for base in BASES]
    # Several bases may fit values that are small throughout: the one that fits most closely is taken.
    misfits = {kind: _misfit(kind, sample) for kind in kinds}
    best = min(misfits, key=lambda kind: misfits[kind])
    if misfits[best] < np.inf:
        return best
    if equal := [kind for kind in kinds if _makes_totals_equal(kind, sample)]:
        return equal[0]
    if are_square_roots(sample):
        return None
    if high < _NO_LOGARITHM and noted_base is not None:
        return ValueKind("log1p", noted_base)
    if high >= _NO_LOGARITHM:
        nearly = (np.abs(values - np.rint(values)) <= _NEARLY).mean()
        return ValueKind("corrected") if nearly >= _NEARLY_WHOLE else None
    return ValueKind("corrected") if whole >= _WHOLE[0] else None


def are_square_roots(sample: sp.csr_matrix) -> bool:
    """Returns true for values whose squares are counts, scaled by one factor per cell or not at all."""
    if is_whole(sample.data) or _misfit(SCALED, sample) < np.inf:  # The squares of multiples are multiples.
        return False
    squares = sp.csr_matrix((sample.data.astype(np.float64) ** 2, sample.indices, sample.indptr), sample.shape)
    return _misfit(SCALED, squares) < np.inf


def is_whole(values: np.ndarray) -> bool:
    """Returns true if all values are whole numbers."""
    return values.dtype.kind != "f" or bool((values == np.rint(values)).all())


def _misfit(kind: ValueKind, sample: sp.csr_matrix) -> float:
    """Returns how far values are from whole multiples of their cell's smallest one; infinity if they are none."""
    cells = np.split(kind.undo(sample.data), sample.indptr[1:-1])
    with np.errstate(over="ignore"):  # An infinite multiple tells nothing and is left out.
        ratios = np.concatenate([cell[cell > 0] / cell[cell > 0].min() for cell in cells if (cell > 0).any()])
    ratios = ratios[(ratios > _MULTIPLES[0]) & (ratios < _MULTIPLES[1])]
    if len(ratios) < _FEWEST:
        return np.inf
    errors = np.abs(ratios - np.rint(ratios)) / ratios
    return float(np.median(errors)) if (errors <= _TOLERANCE).mean() >= _CERTAIN else np.inf


def _makes_totals_equal(kind: ValueKind, sample: sp.csr_matrix) -> bool:
    totals = np.asarray(
        sp.csr_matrix((kind.undo(sample.data), sample.indices, sample.indptr), sample.shape).sum(axis=1)
    )
    return len(totals) >= _CELLS and float(totals.std()) < _SAME_TOTALS * float(totals.mean())


class NamedArray(Protocol):
    """The part of a `CountMatrix` that messages need."""

    @property
    def label(self) -> str:
        """Its name."""

    def list_cells(self, rows: np.ndarray) -> str:
        """Returns the names of some cells."""

    def advise(self) -> Sequence[Remedy]:
        """Returns remedies that name other arrays."""


def require_kind(
    stated: str, samples: Mapping[int, sp.csr_matrix], source: NamedArray, noted_base: float | None
) -> ValueKind:
    """
    Returns the kind of an array's values as it was stated, with the base of logarithms.

    Args:
        stated: One of `Counts`.
        samples: Some cells of `source` by the row where they begin.
        source: The array, for messages.
        noted_base: Same as for `recognise`. It counts if no other kind is stated.

    Raises:
        InputError: The values are certainly of another kind, or of several, or the kind should be told from the values
            and cannot.
    """
    sample = sp.vstack(list(samples.values()), format="csr")
    found = recognise(sample, noted_base if stated in ("auto", "log1p") else None)
    if found is None or found.counts == "corrected":
        _require_one_kind(samples, source)
    if stated == "auto":
        kind = found or RAW
    elif stated == "log1p":
        kind = found if found is not None and found.counts == "log1p" else ValueKind("log1p", noted_base or math.e)
    else:
        kind = ValueKind(stated)
    for start, cells in samples.items():
        check_values(cells, kind, source, start)
    if are_square_roots(sample):
        raise InputError(
            f"{source.label} holds square roots, which cannot be ranked: go back to the counts.", *source.advise()
        )
    if found is not None and (found.counts == "log1p") != (kind.counts == "log1p"):
        are = "logarithms" if found.counts == "log1p" else "no logarithms"
        raise InputError(
            f"The values of {source.label} are {are}:",
            Remedy("pass {option}.", "counts", found.counts),
            *source.advise(),
        )
    return kind


def _require_one_kind(samples: Mapping[int, sp.csr_matrix], source: NamedArray) -> None:
    """
    Raises:
        InputError: Some cells hold logarithms and others hold none, or logarithms to another base.
    """
    found = {start: recognise(cells) for start, cells in samples.items()}
    kinds = {start: kind for start, kind in found.items() if kind is not None and kind.counts != "corrected"}
    first = next(iter(kinds), 0)
    for start, kind in kinds.items():
        if not kind.is_like(kinds[first]):
            cells = [source.list_cells(np.array([row])) for row in (first, start)]
            raise InputError(
                f"{source.label} holds values of several kinds: {kinds[first].in_words} in cell {cells[0]}, and "
                f"{kind.in_words} in cell {cells[1]}. Bring all cells to one kind."
            )


def check_values(chunk: sp.csr_matrix, kind: ValueKind, source: NamedArray, start: int) -> None:
    """
    Checks that values are of one kind.

    Args:
        chunk: Rows of `source`.
        kind: The kind.
        source: The array, for messages.
        start: Row of `source` where the chunk begins.

    Raises:
        InputError: The values are of a different kind; the message names the array, a value and its cell.
    """

    def refuse(wrong: np.ndarray, problem: str, advice: str, *remedies: Remedy) -> None:
        if wrong.any():
            first = np.flatnonzero(wrong)[:1]
            cell = source.list_cells(start + np.searchsorted(chunk.indptr, first, side="right") - 1)
            raise InputError(
                f"{source.label} holds {problem} ({chunk.data[first[0]]} in cell {cell}). {advice}".rstrip(),
                *remedies,
                *source.advise(),
            )

    data = chunk.data
    low, high = data.min(initial=0), data.max(initial=0)  # Both are NaN if any value is NaN.
    if not -np.inf < low <= high < np.inf:
        refuse(~np.isfinite(data), "values that are not finite", "Go back to the counts, or remove such cells.")
    if low < 0:
        refuse(data < 0, "negative values", "Scaled data cannot be ranked: go back to the counts.")
    if high > LARGEST_VALUE:
        refuse(data > LARGEST_VALUE, "values larger than any count", "Go back to the counts.")
    if kind.counts == "raw" and not is_whole(data):
        found = recognise(chunk)
        looks = "It looks log-transformed." if found is not None and found.counts == "log1p" else ""
        remedies = [
            Remedy("For counts that were corrected (SoupX, DecontX), pass {option}.", "counts", "corrected"),
            Remedy("For counts scaled by cell (CPM, TPM), pass {option}.", "counts", "normalized"),
            Remedy("For logarithms, pass {option}.", "counts", "log1p"),
        ]
        if found is not None:
            remedies = [remedy for remedy in remedies if remedy.value == found.counts]
        elif are_square_roots(chunk):
            looks, remedies = "They are square roots: go back to the counts.", []
        else:
            del remedies[1 if high < _NO_LOGARITHM else 2]  # Small scaled counts are read as corrected ones are.
            if (data == np.rint(data)).mean() < _WHOLE[0]:
                remedies.append(Remedy("If they were scaled by gene, go back to the counts."))
        refuse(data != np.rint(data), "values that are not whole, so not raw counts", looks, *remedies)
    # The logarithms to base 2 of a shallow cell may all be of 1.
    if kind.counts == "log1p" and is_whole(data) and (data > 0).sum() >= _FEWEST:
        refuse(
            data > 0, "only whole numbers, so not logarithms", "", Remedy("Pass {option} for counts.", "counts", "raw")
        )
    if kind.counts == "log1p" and high > _NO_LOGARITHM:
        remedy = Remedy("Pass {option} if they are not logarithms.", "counts", "corrected")
        refuse(data > _NO_LOGARITHM, "values too large for logarithms", "", remedy)


def check_kind(chunk: sp.csr_matrix, kind: ValueKind, source: NamedArray, start: int) -> None:
    """
    Checks that the first cells of a chunk hold no values that are certainly of another kind, as those of another study
    may do. Arguments are those of `check_values`.

    Raises:
        InputError: They are of another kind.
    """
    first = chunk[:_SAMPLE]
    found = None if kind == RAW or first.nnz < _FEWEST else recognise(first)
    if found is not None and found.counts != "corrected" and not found.is_like(kind):
        cell = source.list_cells(np.array([start]))
        raise InputError(
            f"{source.label} holds {found.in_words} from about cell {cell} on, and {kind.in_words} before. Bring all "
            "cells to one kind."
        )


def noted_base(uns: Mapping[str, Any]) -> float | None:
    """Returns the base of logarithms that scanpy noted in `uns`; None where it noted none."""
    noted = uns.get("log1p")
    if not isinstance(noted, Mapping):
        return None
    base = noted.get("base")
    try:
        return math.e if base is None else float(base)
    except (TypeError, ValueError):
        return None


__all__ = [
    "BASES",
    "KINDS",
    "LARGEST_LOGARITHM",
    "LARGEST_VALUE",
    "RAW",
    "SCALED",
    "Counts",
    "ValueKind",
    "are_square_roots",
    "check_kind",
    "check_values",
    "is_whole",
    "noted_base",
    "recognise",
    "require_kind",
]
