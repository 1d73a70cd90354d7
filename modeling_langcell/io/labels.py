# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Labelled cells: reads the labels that a checkpoint is adapted to or evaluated with."""

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd

from ..model.errors import InputError, Remedy
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.prompts import check_labels
from ..model.ranking import RankedCells
from ..ontology import same_types
from .h5ad import require_anndata

logger = logging.getLogger(__name__)

_CHUNK = 4096  # Cells read at a time.
#: What people and programs write where a cell has no label, in small letters alone; CELLxGENE writes "unknown".
_NO_LABEL = frozenset(
    {
        *("", "na", "nan", "none", "null", "nil", "tbd", "missing", "nolabel", "noannotation"),
        *(f"un{word}" for word in ("known", "assigned", "annotated", "labelled", "labeled", "classified", "defined")),
        *(f"un{word}" for word in ("determined", "identified", "specified", "resolved", "certain", "clear")),
        *(f"un{word}" for word in ("characterized", "characterised", "typed")),
        *(f"not{word}" for word in ("known", "available", "annotated", "assigned", "determined", "applicable")),
        *(f"not{word}" for word in ("classified", "labelled", "labeled", "specified", "identified", "provided")),
        *(
            f"{word}{what}"
            for word in ("unknown", "unassigned", "unclassified")
            for what in ("cell", "cells", "celltype")
        ),
        *("unknowntype", "unknownlabel", "celltypeunknown", "nocelltype", "unk", "undef", "notreported"),
    }
)
#: The same, where other capitals and no points make a label of it: normal adjacent tissue, not diabetic.
_NO_LABEL_AS_WRITTEN = frozenset({"NaT", "N.D.", "n.d.", "N/D", "n/d"})
_NO_LETTER = r"[\W_]+"


@dataclass(frozen=True)
class Labels:
    """
    The labelled cells of an AnnData.

    Args:
        names: All labels.
        rows: `(cells,)` rows of the AnnData that have a label.
        truth: `(cells,)` index of each cell's label in `names`; or `(cells, labels)` booleans, if a cell may have
            several labels, or none.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    truth: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def multilabel(self) -> bool:
        """True if a cell may have several labels."""
        return self.truth.ndim == 2

    def sizes(self) -> dict[str, int]:
        """Returns the number of cells with each label."""
        counts = self.truth.sum(axis=0) if self.multilabel else np.bincount(self.truth, minlength=len(self.names))
        return dict(zip(self.names, map(int, counts), strict=True))

    def take(self, chosen: np.ndarray) -> "Labels":
        """Selects some of these cells by their index."""
        return replace(self, rows=self.rows[chosen], truth=self.truth[chosen])

    def shots(self, number: int, seed: int) -> "Labels":
        """
        Draws `number` cells of each label at random; with the same seed, a larger draw contains the smaller ones.

        Raises:
            InputError: A label with fewer cells, or cells that may have several labels.
        """
        if self.multilabel:
            raise InputError("A number of cells per label can be drawn only if every cell has one label.")
        if number < 1:
            raise InputError(f"{number} is not a number of cells per label.")
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
        Splits the cells into two parts. The second has this share of the cells, and of each label if cells have one
        each.

        Raises:
            InputError: Too few cells to hold any out.
        """
        from sklearn.model_selection import train_test_split  # A second to import, and explanations need only labels.

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


def read_labels(
    adata: ad.AnnData,
    label_key: str,
    *,
    unlabelled: Literal["error", "skip"] = "error",
    merge_names: bool = False,
) -> Labels:
    """
    Reads labels from a column of `obs`, one per cell; or from a table of `obsm` with a column for each label, true (or
    1) for the cells that have it.

    Args:
        adata: The cells.
        label_key: The column or table.
        unlabelled: Treatment of cells without a label (missing, empty, or a word for that, such as `unknown` or `NA`):
            `error`, or `skip`.
        merge_names: Give cells whose labels are names of one type in the Cell Ontology the first of these names.

    Raises:
        InputError: No such column or table, cells without a label, fewer than two labels, a table that holds
            anything but true and false, or a label that every cell or no cell has.
    """
    if unlabelled not in ("error", "skip"):
        raise InputError(f"unlabelled={unlabelled!r} is not one of 'error' and 'skip'.")
    require_anndata(adata)
    if label_key in adata.obs:
        column = adata.obs[label_key]
        known = is_known(column)
        _check_known(known, f"obs[{label_key!r}]", unlabelled)
        written = column[known].astype(str)
        again = same_types(sorted(set(written))) if merge_names else {}
        for name, first in again.items():
            logger.info("%r is read as %r: they are one type.", name, first)
        names, truth = np.unique(written.replace(again).to_numpy(), return_inverse=True)
    elif label_key in adata.obsm:
        table = adata.obsm[label_key]
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"obsm[{label_key!r}] must be a table with a named column for each label.")
        try:
            values = table.to_numpy(dtype=float, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise InputError(f"obsm[{label_key!r}] must hold true or false for each label: {error}") from error
        known = ~np.isnan(values).any(axis=1)
        _check_known(known, f"obsm[{label_key!r}]", unlabelled)
        if not np.isin(values[known], (0, 1)).all():
            raise InputError(f"obsm[{label_key!r}] must hold true or false for each label, not other numbers.")
        names, truth = table.columns.astype(str).to_numpy(), values[known].astype(bool)
        for name, column in zip(names, truth.T, strict=True):
            if column.all() or not column.any():
                which = "every" if column.all() else "no"
                raise InputError(f"obsm[{label_key!r}]: {which} cell has {str(name)!r}, so it cannot be learnt.")
    else:
        raise InputError(
            f"No column {label_key!r} in obs, nor table in obsm; columns: {sorted(map(str, adata.obs.columns))}."
        )
    try:
        check_labels(map(str, names))
    except InputError as error:
        raise InputError(f"{label_key!r}: {error}") from error
    if len(names) < 2:
        raise InputError(f"{label_key!r} holds {len(names)} label{'' if len(names) else 's'}: at least two are needed.")
    return Labels(tuple(map(str, names)), np.flatnonzero(known), truth)


def is_known(labels: pd.Series) -> np.ndarray:
    """Returns `(cells,)` booleans: true where a label is neither missing nor a word for that, such as `unknown`."""
    named = labels.astype(object)
    texts = named.astype(str)
    words = texts.str.casefold().str.replace(_NO_LETTER, "", regex=True)
    return (named.notna() & ~words.isin(_NO_LABEL) & ~texts.str.strip().isin(_NO_LABEL_AS_WRITTEN)).to_numpy()


def _check_known(known: np.ndarray, where: str, unlabelled: str) -> None:
    missing = int((~known).sum())
    if missing and unlabelled == "error":
        raise InputError(
            f"{missing:,} of {len(known):,} cells have no label in {where}:",
            Remedy("label them, or skip them with {option}.", "unlabelled", "skip"),
        )
    if missing:
        logger.info("%d of %d cells have no label in %s and are skipped.", missing, len(known), where)


def rank_cells(
    adata: ad.AnnData, rows: np.ndarray, extractor: LangCellFeatureExtractor, **cell_options: Any
) -> RankedCells:
    """
    Ranks the genes of some cells of an AnnData, in memory or backed.

    Raises:
        InputError: Cells that cannot be read.
    """
    try:
        cells = extractor.chunks(adata, **cell_options)
        return RankedCells.concatenate([cells.take(part) for part in np.split(rows, range(_CHUNK, len(rows), _CHUNK))])
    except InputError as error:
        raise error.without("empty_cells") from None  # Training cells without genes cannot be kept.


__all__ = ["Labels", "is_known", "rank_cells", "read_labels"]
