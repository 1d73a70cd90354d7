# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Accuracy, balanced accuracy and macro-F1 of predicted cell types, and precision, recall and F1 of each type."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from modeling_langcell.model.errors import InputError

_DESCRIPTION = """
Accuracy over cells, and means over types, in which a rare type counts as much as a common one. The types are those of
the references: a label that is only predicted lowers the recall of other types and has no scores of its own. A type
that is never predicted has precision 0.
"""

_CITATION = """
@article{scikit-learn,
  title = {Scikit-learn: Machine Learning in {P}ython},
  author = {Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and Grisel, O. and Blondel,
            M. and Prettenhofer, P. and Weiss, R. and Dubourg, V. and Vanderplas, J. and Passos, A. and Cournapeau, D.
            and Brucher, M. and Perrot, M. and Duchesnay, E.},
  journal = {Journal of Machine Learning Research},
  volume = {12},
  pages = {2825--2830},
  year = {2011}
}
"""

_INPUTS = """
Args:
    references: The type of each cell, as text.
    predictions: The predicted type of each cell.

Returns:
    accuracy: Share of cells with the right type.
    balanced_accuracy: Mean recall over the types of the references.
    macro_f1: Mean F1 over the same types.
    per_class: `precision`, `recall`, `f1` and number of `cells` of each type.

Raises:
    InputError: There are no cells.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("eval/metrics/cell_annotation")
    >>> found = metric.compute(references=["B", "B", "B", "T"], predictions=["B", "B", "NK", "B"])
    >>> found["accuracy"], round(found["balanced_accuracy"], 3), round(found["macro_f1"], 3)
    (0.5, 0.333, 0.333)
    >>> found["per_class"]["T"]
    {'precision': 0.0, 'recall': 0.0, 'f1': 0.0, 'cells': 1}
"""


class CellAnnotation(evaluate.Metric):
    """Compares predicted types of cells with their known types."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"references": datasets.Value("string"), "predictions": datasets.Value("string")}
            ),
        )

    def _compute(self, references: list[str], predictions: list[str]) -> dict:
        if not references:
            raise InputError("There are no cells to score: references and predictions are empty.")
        names = sorted(set(references))
        figures = precision_recall_fscore_support(references, predictions, labels=names, zero_division=0)
        _, recall, f1, _ = figures
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "balanced_accuracy": float(recall.mean()),
            "macro_f1": float(f1.mean()),
            "per_class": {
                name: {"precision": float(p), "recall": float(r), "f1": float(f), "cells": int(cells)}
                for name, p, r, f, cells in zip(names, *figures, strict=True)
            },
        }
