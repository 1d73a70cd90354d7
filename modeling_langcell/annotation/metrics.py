# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Agreement of an annotation with known labels."""

import anndata as ad
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score

from ..io.columns import CELL_TYPE
from ..model.errors import InputError
from .records import candidate_labels


def agreement(adata: ad.AnnData, reference: str) -> dict[str, float]:
    """
    Compares an annotation with known labels.

    Args:
        adata: Annotated cells.
        reference: Column of `obs` with the known labels.

    Returns:
        Number of `cells` whose known label is a candidate, and their `accuracy`, `balanced_accuracy` and
        `macro_f1`.

    Raises:
        InputError: There is no such column, it is the annotation itself, or none of its labels is a candidate.
    """
    truth, predicted = paired_labels(adata, reference)
    over_types = {"average": "macro", "labels": np.unique(truth), "zero_division": 0}
    return {
        "cells": len(truth),
        "accuracy": float(accuracy_score(truth, predicted)),
        "balanced_accuracy": float(recall_score(truth, predicted, **over_types)),
        "macro_f1": float(f1_score(truth, predicted, **over_types)),
    }


def paired_labels(adata: ad.AnnData, reference: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the known and the predicted label of each cell whose known label is a candidate, `(cells,)` each. Arguments
    and errors are the same as for `agreement`.
    """
    if reference not in adata.obs:
        raise InputError(f"No column {reference!r} in obs; columns here: {sorted(map(str, adata.obs.columns))}.")
    if reference == CELL_TYPE:
        raise InputError(f"obs[{CELL_TYPE!r}] is the annotation itself: name the column with the known labels.")
    candidates = set(candidate_labels(adata))
    both = adata.obs[[reference, CELL_TYPE]].dropna()
    both = both[both[reference].isin(candidates)].astype(str)
    if both.empty:
        raise InputError(f"None of the labels in obs[{reference!r}] is a candidate: {', '.join(sorted(candidates))}.")
    return both[reference].to_numpy(), both[CELL_TYPE].to_numpy()


__all__ = ["agreement", "paired_labels"]
