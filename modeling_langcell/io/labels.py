# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells whose labels are known: what a checkpoint is adapted to."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from ..model.errors import InputError, Remedy
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.ranking import RankedCells

_CHUNK = 4096  # Cells read at a time.
_NO_LABEL = ("", "unknown")  # As CELLxGENE has it of a type that is not known.


@dataclass(frozen=True)
class Labels:
    """
    What is known of the cells of an AnnData.

    Args:
        names: The labels there are.
        rows: `(cells,)` where the labelled cells stand in the AnnData.
        truth: `(cells,)` each one's label, as its place in `names`; or `(cells, labels)` booleans, where a cell may
            have several labels, or none.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    truth: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def multilabel(self) -> bool:
        """Whether a cell may have several labels."""
        return self.truth.ndim == 2

    def sizes(self) -> dict[str, int]:
        """How many cells have each label."""
        counts = self.truth.sum(axis=0) if self.multilabel else np.bincount(self.truth, minlength=len(self.names))
        return dict(zip(self.names, map(int, counts), strict=True))

    def take(self, chosen: np.ndarray) -> "Labels":
        """Some of the cells, by their places here."""
        return replace(self, rows=self.rows[chosen], truth=self.truth[chosen])

    def shots(self, number: int, seed: int) -> "Labels":
        """
        So many cells of each label, drawn at random: with the same seed, those of a smaller number are among them.

        Raises:
            InputError: A label with fewer cells, or cells that may have several.
        """
        if self.multilabel:
            raise InputError("So many cells of each label can be drawn only where a cell has one label.")
        if number < 1:
            raise InputError(f"{number} is no number of cells to learn a label from.")
        few = [f"{name!r} ({size})" for name, size in self.sizes().items() if size < number]
        if few:
            raise InputError(
                f"Fewer than {number} cells have the label {', '.join(few)}: ask for fewer, or merge labels."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        drawn = [order[self.truth[order] == label][:number] for label in range(len(self.names))]
        return self.take(np.sort(np.concatenate(drawn)))

    def held_out(self, share: float, seed: int) -> tuple["Labels", "Labels"]:
        """
        Two parts, the second with this share of the cells, and of each label where a cell has one.

        Raises:
            InputError: Too few cells to hold any out.
        """
        try:
            parts = train_test_split(
                np.arange(len(self)),
                test_size=share,
                random_state=seed,
                stratify=None if self.multilabel else self.truth,
            )
        except ValueError as error:
            raise InputError(f"A share of {share} cannot be held out of {len(self)} labelled cells: {error}") from error
        return self.take(np.sort(parts[0])), self.take(np.sort(parts[1]))


def read_labels(adata: ad.AnnData, label_key: str, *, unlabelled: Literal["error", "skip"] = "error") -> Labels:
    """
    The labels in a column of `obs`, one a cell; or in a table of `obsm` with a column a label, true (or 1) where a cell
    has it.

    Args:
        adata: The cells.
        label_key: The column or table.
        unlabelled: Cells without a label (missing, empty, or `unknown`): an error, or left out.

    Raises:
        InputError: No such column or table, cells without a label, fewer than two labels, or a table that holds
            anything but true and false, or that says the same of all cells.
    """
    if unlabelled not in ("error", "skip"):
        raise InputError(f"unlabelled={unlabelled!r} is not one of 'error' and 'skip'.")
    if label_key in adata.obs:
        column = adata.obs[label_key].astype(object)
        known = (column.notna() & ~column.astype(str).str.strip().isin(_NO_LABEL)).to_numpy()
        _check_known(known, f"obs[{label_key!r}]", unlabelled)
        names, truth = np.unique(column[known].astype(str).to_numpy(), return_inverse=True)
    elif label_key in adata.obsm:
        table = adata.obsm[label_key]
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"obsm[{label_key!r}] must be a table with a named column for each label.")
        try:
            values = table.to_numpy(dtype=float, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise InputError(f"obsm[{label_key!r}] must say of each label true or false: {error}") from error
        known = ~np.isnan(values).any(axis=1)
        _check_known(known, f"obsm[{label_key!r}]", unlabelled)
        if not np.isin(values[known], (0, 1)).all():
            raise InputError(f"obsm[{label_key!r}] must say of each label true or false, and holds other numbers.")
        names, truth = table.columns.astype(str).to_numpy(), values[known].astype(bool)
        for name, column in zip(names, truth.T, strict=True):
            if column.all() or not column.any():
                which = "every" if column.all() else "no"
                raise InputError(f"obsm[{label_key!r}]: {which} cell has {str(name)!r}, so it cannot be learnt.")
    else:
        raise InputError(
            f"No column {label_key!r} in obs, nor table in obsm; columns: {sorted(map(str, adata.obs.columns))}."
        )
    if len(names) < 2:
        raise InputError(f"{label_key!r} holds {len(names)} label{'' if len(names) else 's'}: nothing to tell apart.")
    return Labels(tuple(map(str, names)), np.flatnonzero(known), truth)


def _check_known(known: np.ndarray, where: str, unlabelled: str) -> None:
    missing = int((~known).sum())
    if missing and unlabelled == "error":
        raise InputError(
            f"{missing:,} of {len(known):,} cells have no label in {where}:",
            Remedy("name them, or leave them out with {option}.", "unlabelled", "skip"),
        )


def rank_cells(
    adata: ad.AnnData, rows: np.ndarray, extractor: LangCellFeatureExtractor, **cell_options: Any
) -> RankedCells:
    """
    Some cells of an AnnData, in memory or backed, by their ranked genes.

    Raises:
        InputError: Cells that cannot be read.
    """
    parts: list[RankedCells] = []
    for start in range(0, len(rows), _CHUNK):
        parts.extend(extractor.stream(adata[rows[start : start + _CHUNK]], chunk_size=_CHUNK, **cell_options))
    return RankedCells.concatenate(parts)


__all__ = ["Labels", "rank_cells", "read_labels"]
