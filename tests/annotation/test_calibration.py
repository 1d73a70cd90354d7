# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Calibration: the fit finds a known temperature, and its thresholds keep their error rates."""

import numpy as np
import pytest

from modeling_langcell import InputError, LangCellConfig
from modeling_langcell.annotation.calibration import (
    Calibration,
    LabelledScores,
    calibration_error,
    fit,
    fit_marker_weight,
)
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff

LABELS = ("B cell", "CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "monocyte")


def overconfident_cells(cells, overconfidence, seed):
    """Draws labels from probabilities, and returns as scores these probabilities raised to a power."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(len(LABELS), 0.4), cells)
    truth = (probabilities.cumsum(axis=1) > rng.random((cells, 1))).argmax(axis=1)
    scores = probabilities**overconfidence
    scores /= scores.sum(axis=1, keepdims=True)
    return LabelledScores(LABELS, scores, np.zeros_like(scores), rng.uniform(0, 1, cells), np.array(LABELS)[truth])


def marked_cells(cells, weight, seed):
    """Draws labels from probabilities, and divides their logarithms into scores and `weight` times evidence."""
    rng = np.random.default_rng(seed)
    evidence = rng.normal(0, 0.5, (cells, len(LABELS)))
    logits = rng.normal(0, 1.5, (cells, len(LABELS))) + weight * evidence
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (probabilities.cumsum(axis=1) > rng.random((cells, 1))).argmax(axis=1)
    scores = np.exp(logits - weight * evidence)
    scores /= scores.sum(axis=1, keepdims=True)
    return LabelledScores(LABELS, scores, evidence, np.zeros(cells), np.array(LABELS)[truth])


def test_the_fit_finds_the_temperature():
    found = fit({"study": overconfident_cells(20_000, 2.5, 0)}, 1.0)
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.fitted["error_after"] < 0.02 < found.fitted["error_before"]
    assert found.fitted["cells"] == {"study": 20_000}
    assert found.usual_novelty == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_the_fit_finds_the_marker_weight(weight):
    found = fit({"one": marked_cells(10_000, weight, 0), "two": marked_cells(4_000, weight, 1)}, 1.0)
    assert found.marker_weight == pytest.approx(weight, abs=0.2)
    assert found.temperature == pytest.approx(1, abs=0.1)


def test_a_marker_weight_can_be_given():
    assert fit({"study": marked_cells(2_000, 4.0, 0)}, 1.0, 2.5).marker_weight == 2.5
    with pytest.raises(InputError, match="is not a weight"):
        fit({"study": marked_cells(20, 4.0, 0)}, 1.0, -1)


def test_candidates_that_name_no_gene_have_no_marker_weight():
    assert fit_marker_weight({"study": overconfident_cells(200, 2.0, 0)}) == 0


def test_extreme_evidence_gives_probabilities():
    scores, evidence = np.array([[1.0, 0.0]]), np.array([[-100.0, 100.0]])
    found = LabelledScores(("B cell", "monocyte"), scores, evidence, np.zeros(1), np.array(["B cell"]))
    assert np.isfinite(found.probabilities(2.0, 1.0)).all()


def test_probabilities_add_up_to_1_and_keep_their_order():
    scores = overconfident_cells(50, 2.0, 1).scores
    probabilities = overconfident_cells(50, 2.0, 1).probabilities(3.0, 0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(probabilities.argsort(axis=1), scores.argsort(axis=1))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_answers_for_new_cells_keep_the_error_rate(rate):
    found = fit({"study": overconfident_cells(5_000, 2.0, 2)}, 1.0)
    new = overconfident_cells(20_000, 2.0, 3)
    backoff = OntologyBackoff(LABELS)
    probabilities = backoff.probabilities(new.probabilities(found.temperature, found.marker_weight))
    answers, _ = backoff.answer(probabilities, found.threshold(rate))
    answered = answers >= 0
    wrong = 1 - backoff.right(answers, new.truth.tolist())[answered].mean()
    assert wrong == pytest.approx(rate, abs=0.02) or (wrong < rate and answered.all())
    assert answered.mean() > 0.5


def test_nine_of_ten_studies_keep_the_error_rate():
    hard = overconfident_cells(2_000, 2.0, 4)
    hard.truth[:1_000] = np.random.default_rng(0).permutation(hard.truth[:1_000])
    easy = {str(seed): overconfident_cells(2_000, 2.0, seed) for seed in range(10)}
    one_in_eleven, one_in_two = (fit({**studies, "hard": hard}, 1.0) for studies in (easy, {"0": easy["0"]}))
    assert one_in_eleven.threshold(0.1) < one_in_two.threshold(0.1)


def test_an_error_rate_that_cannot_be_kept_is_left_out(caplog):
    rng = np.random.default_rng(0)
    apart = ("B cell", "fibroblast", "hepatocyte", "neuron")  # The only term above all of them is 'cell'.
    scores = rng.dirichlet(np.ones(4), 300)
    guesses = LabelledScores(apart, scores, np.zeros_like(scores), np.zeros(300), rng.choice(apart, 300))
    found = fit({"study": guesses}, 1.0)
    assert "0.01" not in found.thresholds
    assert "No threshold achieves an error rate of 0.01," in caplog.text
    with pytest.raises(InputError, match=r"not of 0\.01"):
        found.threshold(0.01)


def test_cells_are_required():
    with pytest.raises(InputError, match="no labelled cells"):
        fit({}, 1.0)


def test_calibration_error_by_hand():
    confidence, right = np.array([0.5, 0.5, 0.98, 1.0]), np.array([True, False, True, False])
    assert calibration_error(confidence, right) == pytest.approx((abs(1.0 - 1) + abs(1.98 - 1)) / 4)


def test_the_config_stores_the_calibration(tmp_path):
    calibration = Calibration(2.0, {"0.1": 0.6}, 0.4, 1.0, {"cells": {"study": 3}})
    LangCellConfig(calibration=calibration.to_dict()).save_pretrained(tmp_path)
    assert Calibration.from_dict(LangCellConfig.from_pretrained(tmp_path).calibration) == calibration


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0}, {"temperature": "2"}, {"thresholds": None}, {"thresholds": {"0.1": "x"}}, {"fitted": 3}],
)
def test_a_damaged_calibration_is_refused(change):
    calibration = Calibration(2.0, {"0.1": 0.6}, 0.4, 1.0).to_dict() | change
    with pytest.raises(Exception, match="calibration is not what langcell calibrate writes"):
        LangCellConfig(calibration=calibration)
