# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""AUROC and average precision of separating cells of unknown types from cells of known types."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from modeling_langcell.model.errors import InputError

_POINTS = 100  # Enough points of the curve for a figure.

_DESCRIPTION = """
Compares the scores of cells of types that the model does not know with those of types that it knows, over all
thresholds: the area under the receiver operating characteristic (chance 0.5, equal scores count half) and the average
precision (chance is the share of novel cells).
"""

_CITATION = """
@article{fawcett-2006-roc,
  title = {An introduction to {ROC} analysis},
  author = {Fawcett, Tom},
  journal = {Pattern Recognition Letters},
  volume = {27},
  number = {8},
  pages = {861--874},
  year = {2006}
}
"""

_INPUTS = """
Args:
    references: Booleans, true for each cell of an unknown type.
    scores: Novelty score of each cell; higher is more novel.

Returns:
    auroc: Area under the curve, 0 to 1.
    average_precision: Mean precision over the novel cells, from the highest score down, 0 to 1.
    roc: The curve from (0, 0) to (1, 1), as `false_positive_rate` and `true_positive_rate` of at most 100 thresholds.

Raises:
    InputError: No cell is of an unknown type, or every cell is, or a score is not finite.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("eval/metrics/novelty")
    >>> found = metric.compute(references=[True, False, True, False], scores=[0.9, 0.5, 0.4, 0.1])
    >>> found["auroc"], round(found["average_precision"], 3)
    (0.75, 0.833)
    >>> found["roc"][1]
    {'false_positive_rate': 0.0, 'true_positive_rate': 0.5}
"""


class Novelty(evaluate.Metric):
    """Compares novelty scores with the cells that are of unknown types."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"references": datasets.Value("bool"), "scores": datasets.Value("float64")}),
        )

    def _compute(self, references: list[bool], scores: list[float]) -> dict:
        if len(set(references)) < 2:
            raise InputError("references must have cells of unknown types and cells of known types: give both.")
        if not np.isfinite(scores).all():
            raise InputError("scores must be finite numbers.")
        false_positive, true_positive, _ = roc_curve(references, scores)
        shown = np.linspace(0, len(false_positive) - 1, min(len(false_positive), _POINTS)).round().astype(int)
        return {
            "auroc": float(roc_auc_score(references, scores)),
            "average_precision": float(average_precision_score(references, scores)),
            "roc": [
                {"false_positive_rate": float(false_positive[point]), "true_positive_rate": float(true_positive[point])}
                for point in shown
            ],
        }
