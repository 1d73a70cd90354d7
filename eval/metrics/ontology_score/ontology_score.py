# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Closeness of predicted cell types to the known ones in the Cell Ontology."""

import datasets
import evaluate
import numpy as np

from modeling_langcell.model.errors import InputError
from modeling_langcell.ontology import agreement

_DESCRIPTION = """
The mean over cells of the closeness of the predicted type to the known one in the Cell Ontology, by the measure of Wu &
Palmer on its graph (`modeling_langcell.ontology.agreement`): 1 for the type itself, less for a parent, less still for a
sibling, and 0 for types that have nothing in common but being cells. It grades errors that accuracy treats as equal.
"""

_CITATION = """
@inproceedings{wu-palmer-1994-verb,
  title = {Verb Semantics and Lexical Selection},
  author = {Wu, Zhibiao and Palmer, Martha},
  booktitle = {32nd Annual Meeting of the Association for Computational Linguistics},
  pages = {133--138},
  year = {1994}
}
"""

_INPUTS = """
Args:
    references: The type of each cell, as an id of the Cell Ontology.
    predictions: The id of each cell's predicted type.

Returns:
    ontology_score: Mean agreement, 0 to 1.

Raises:
    InputError: There are no cells, or an id is not a current term of the Cell Ontology.

Examples:
    One T cell predicted as a T cell, another as a lymphocyte:

    >>> import evaluate
    >>> metric = evaluate.load("eval/metrics/ontology_score")
    >>> metric.compute(references=["CL:0000084", "CL:0000084"], predictions=["CL:0000084", "CL:0000542"])
    {'ontology_score': 0.9}
"""


class OntologyScore(evaluate.Metric):
    """Compares predicted terms of the Cell Ontology with the known ones."""

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
        return {"ontology_score": float(np.mean(list(map(agreement, references, predictions))))}
