# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Doubt: tests whether calibrated answers keep to the stated error rate, and how specific they still are."""

import numpy as np

from modeling_langcell.annotation.calibration import ERROR_RATE, Calibration, LabelledScores, calibration_error, fit
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.eval.task import LANGCELL, Result, Run, Task, metric
from modeling_langcell.ontology import depth, find_term

_STUDIES = ("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc")

TASK = Task(
    name="doubt",
    question="At an error rate of 10%, how often are answers wrong, and how much do they say?",
    studies=_STUDIES,
    methods=(LANGCELL,),
    metrics=(
        "right",
        "coverage",
        "depth",
        "depth_of_truth",
        "accuracy",
        "expected_calibration_error",
        "uncalibrated_error",
        "error_of_all",
        "coverage_of_all",
        "expected_calibration_error_of_all",
        "uncalibrated_error_of_all",
    ),
    main_score="right",
    settings=({"calibrated_on": "all"}, {"calibrated_on": "itself"}, {"calibrated_on": "others"}),
    seeded=(LANGCELL,),
    reads_markers=True,
)


def measure(run: Run) -> Result:
    """
    Calibrates, and fits the marker weight, on a random half of the cells of each study (`all`: of all studies;
    `itself`: of this study; `others`: on all cells of the other studies), and scores the other half. `right` is the
    share of answers that are the cell's type or an ancestor of it; `coverage` is the share of cells with an answer;
    `depth` is the mean depth of the answers in the ontology, and `depth_of_truth` that of the same cells' types.
    Calibration errors are those of the best label.
    `..._of_all` scores the held-out halves of all studies together.
    """
    names = list(dict.fromkeys([*_STUDIES, run.study.name]))
    scored = {name: run.context.scores(run.context.study(name)) for name in names}
    halves = {name: _split_in_halves(len(scored[name].truth), run.seed) for name in names}
    held_out = {name: scored[name].take(halves[name][1]) for name in names}
    calibrated_on = run.setting["calibrated_on"]
    if calibrated_on == "others":
        fitted_on = {name: scored[name] for name in names if name != run.study.name}
    else:
        chosen = names if calibrated_on == "all" else [run.study.name]
        fitted_on = {name: scored[name].take(halves[name][0]) for name in chosen}
    calibration = fit(fitted_on, run.annotator.model.config.alpha)
    weight = calibration.marker_weight

    own = held_out[run.study.name]
    answered, right, depths, truths = _answers(own, calibration)
    confidence, best = own.confidence(calibration.temperature, weight)
    scores = {
        "coverage": float(answered.mean()),
        "accuracy": float(best.mean()),
        "expected_calibration_error": calibration_error(confidence, best),
        "uncalibrated_error": calibration_error(*own.confidence(1.0, weight)),
    }
    if answered.any():
        scores |= {
            "right": float(right[answered].mean()),
            "depth": float(depths[answered].mean()),
            "depth_of_truth": float(truths[answered].mean()),
        }
    if calibrated_on != "all":
        return Result(scores)
    reliability = metric("calibration_error", references=best, confidences=confidence.clip(0, 1))["reliability"]
    pooled = _pooled_scores(held_out, calibration)
    return Result(scores | pooled, drawings={"reliability": reliability})


def _split_in_halves(cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(cells)
    return np.sort(order[: cells // 2]), np.sort(order[cells // 2 :])


def _answers(cells: LabelledScores, calibration: Calibration) -> tuple[np.ndarray, ...]:
    """Returns for each cell: true if answered, true if answered right, and the depths of the answer and of its type."""
    backoff = OntologyBackoff(cells.labels)
    threshold = calibration.thresholds.get(f"{ERROR_RATE:g}", np.inf)
    probabilities = cells.probabilities(calibration.temperature, calibration.marker_weight)
    answers, _ = backoff.answer(backoff.probabilities(probabilities), threshold)
    truth = cells.truth.tolist()
    depths = np.array([node.depth for node in backoff.nodes])[answers]
    type_depths = {label: depth(find_term(label).id) for label in cells.labels}
    return answers >= 0, backoff.right(answers, truth), depths, np.array([type_depths[label] for label in truth])


def _pooled_scores(studies: dict[str, LabelledScores], calibration: Calibration) -> dict[str, float]:
    """Returns the scores of all studies' cells together."""
    parts = [_answers(cells, calibration)[:2] for cells in studies.values()]
    answered, right = (np.concatenate(part) for part in zip(*parts, strict=True))
    scores = {"coverage_of_all": float(answered.mean())}
    if answered.any():
        scores["error_of_all"] = float(1 - right[answered].mean())
    temperatures = {"expected_calibration_error_of_all": calibration.temperature, "uncalibrated_error_of_all": 1.0}
    for name, temperature in temperatures.items():
        by_study = [cells.confidence(temperature, calibration.marker_weight) for cells in studies.values()]
        confidence, best = (np.concatenate(part) for part in zip(*by_study, strict=True))
        scores[name] = calibration_error(confidence, best)
    return scores
