# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How far a calibration travels."""

import numpy as np

from modeling_langcell.annotation.calibration import Calibration, LabelledScores
from modeling_langcell.eval.experiments.travel import measure, measure_catalogue


def _sure(labels, truth, said):
    """Cells of the known types `truth`, each surely called what `said` says."""
    scores = np.full((len(truth), len(labels)), 0.01)
    scores[np.arange(len(truth)), [labels.index(one) for one in said]] = 0.9
    scores /= scores.sum(axis=1, keepdims=True)
    return LabelledScores(labels, scores, np.zeros_like(scores), np.zeros(len(truth)), np.array(truth))


def test_kinds_of_the_known_type_are_told_from_wrong_answers():
    labels = ["B cell", "CD4-positive, alpha-beta T cell", "fibroblast"]
    cells = _sure(labels, ["T cell", "T cell", "B cell", "B cell"], [labels[1], labels[0], labels[0], labels[2]])
    found = measure_catalogue(cells, Calibration(1.0, {"0.1": 0.8}, 0.0, 1.0))
    assert (found["coverage"], found["right"], found["narrower"]) == (1, 0.25, 0.25)


def test_a_study_is_not_calibrated_on_itself():
    labels = ["B cell", "fibroblast", "neuron"]
    good = _sure(labels, labels * 40, labels * 40)
    studies = {name: {"named": good, "catalogue": good} for name in ("a", "b", "c")}
    found = measure(studies, ("a", "b"), 0.0)
    calibrated_on = {name: set(scores["calibration"]["fitted"]["cells"]) for name, scores in found.items()}
    assert calibrated_on == {"a": {"b"}, "b": {"a"}, "c": {"a", "b"}}
    assert all(scores["named"]["right"] == scores["catalogue"]["right"] == 1 for scores in found.values())
