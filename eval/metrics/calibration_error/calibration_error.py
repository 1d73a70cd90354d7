# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Expected calibration error and the reliability diagram: confidence against accuracy."""

import datasets
import evaluate
import numpy as np

from modeling_langcell.model.errors import InputError

_DESCRIPTION = """
Predictions are binned by confidence into bins of equal width; in each bin, mean confidence is compared with accuracy.
The expected calibration error is the mean absolute difference, weighted by the number of cells in a bin. With few cells
it grows with the number of bins: compare only figures for the same numbers of cells and bins.
"""

_CITATION = """
@inproceedings{guo-2017-calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {Proceedings of the 34th International Conference on Machine Learning},
  pages = {1321--1330},
  year = {2017}
}
"""

_INPUTS = """
Args:
    references: Booleans, true for each cell whose prediction is right.
    confidences: The model's confidence in each prediction, 0 to 1.
    n_bins: Number of bins from 0 to 1. A confidence on the edge of two bins falls into the lower one.

Returns:
    expected_calibration_error: 0 to 1, lower is better.
    reliability: Mean `confidence`, `accuracy` and number of `cells` of each bin with cells, the least confident first.

Raises:
    InputError: There are no cells or no bins, or a confidence is not from 0 to 1.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("eval/metrics/calibration_error")
    >>> found = metric.compute(references=[True, False, True, True], confidences=[0.5, 0.5, 0.75, 0.75], n_bins=2)
    >>> found["expected_calibration_error"]
    0.125
    >>> found["reliability"]
    [{'confidence': 0.5, 'accuracy': 0.5, 'cells': 2}, {'confidence': 0.75, 'accuracy': 1.0, 'cells': 2}]
"""


class CalibrationError(evaluate.Metric):
    """Compares confidences with the accuracy of the predictions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"references": datasets.Value("bool"), "confidences": datasets.Value("float64")}
            ),
        )

    def _compute(self, references: list[bool], confidences: list[float], n_bins: int = 15) -> dict:
        if not references:
            raise InputError("There are no cells to score: references and confidences are empty.")
        if n_bins < 1:
            raise InputError(f"n_bins must be 1 or more, not {n_bins}.")
        right, confidence = np.array(references), np.array(confidences)
        outside = confidence[~((confidence >= 0) & (confidence <= 1))]
        if outside.size:
            raise InputError(f"confidences must be numbers from 0 to 1, not {outside[0]}.")
        bins = np.digitize(confidence, np.arange(1, n_bins) / n_bins, right=True)
        reliability = [
            {
                "confidence": float(confidence[bins == number].mean()),
                "accuracy": float(right[bins == number].mean()),
                "cells": int((bins == number).sum()),
            }
            for number in np.unique(bins)
        ]
        gaps = [abs(one["accuracy"] - one["confidence"]) for one in reliability]
        error = np.average(gaps, weights=[one["cells"] for one in reliability])
        return {"expected_calibration_error": float(error), "reliability": reliability}
