# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Doubt: whether calibrated answers are wrong as seldom as they should be, and how much they still say."""

import numpy as np

from modeling_langcell.annotation.calibration import ERROR_RATE, LabelledScores, calibrated, calibration_error, fit
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
)


def measure(run: Run) -> Result:
    """
    A random half of the cells of each study is calibrated on (`all`: of all the studies; `itself`: of this one;
    `others`: all cells of the others), and the other half judged. `right` is the share of answers that are the cell's
    type or above it; `coverage` the share of cells with an answer; `depth` the mean depth of
    the answers in the ontology, beside that of the same cells' types. Calibration errors are those of the best label.
    `..._of_all` is of the judged halves of all the studies together.
    """
    names = list(dict.fromkeys([*_STUDIES, run.study.name]))
    scored = {name: run.context.scores(run.context.study(name)) for name in names}
    halves = {name: _split_in_halves(len(scored[name].truth), run.seed) for name in names}
    judged = {name: scored[name].take(halves[name][1]) for name in names}
    calibrated_on = run.setting["calibrated_on"]
    if calibrated_on == "others":
        learnt_from = {name: scored[name] for name in names if name != run.study.name}
    else:
        chosen = names if calibrated_on == "all" else [run.study.name]
        learnt_from = {name: scored[name].take(halves[name][0]) for name in chosen}
    calibration = fit(learnt_from, run.annotator.model.config.alpha)
    threshold = calibration.thresholds.get(f"{ERROR_RATE:g}", np.inf)

    own = judged[run.study.name]
    answered, right, depths, truths = _answers(own, calibration.temperature, threshold)
    confidence, best = own.confidence(calibration.temperature)
    scores = {
        "coverage": float(answered.mean()),
        "accuracy": float(best.mean()),
        "expected_calibration_error": calibration_error(confidence, best),
        "uncalibrated_error": calibration_error(*own.confidence(1.0)),
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
    return Result(scores | _of_all(judged, calibration.temperature, threshold), drawings={"reliability": reliability})


def _split_in_halves(cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(cells)
    return np.sort(order[: cells // 2]), np.sort(order[cells // 2 :])


def _answers(cells: LabelledScores, temperature: float, threshold: float) -> tuple[np.ndarray, ...]:
    """Of each cell whether it is answered, whether rightly, and the depths of the answer and of the truth."""
    hierarchy = OntologyBackoff(cells.labels)
    answers, _ = hierarchy.answer(hierarchy.probabilities(calibrated(cells.scores, temperature)), threshold)
    truth = cells.truth.tolist()
    depths = np.array([node.depth for node in hierarchy.nodes])[answers]
    of_types = {label: depth(find_term(label).id) for label in cells.labels}
    return answers >= 0, hierarchy.right(answers, truth), depths, np.array([of_types[label] for label in truth])


def _of_all(judged: dict[str, LabelledScores], temperature: float, threshold: float) -> dict[str, float]:
    parts = [_answers(cells, temperature, threshold)[:2] for cells in judged.values()]
    answered, right = (np.concatenate(part) for part in zip(*parts, strict=True))
    scores = {"coverage_of_all": float(answered.mean())}
    if answered.any():
        scores["error_of_all"] = float(1 - right[answered].mean())
    for name, of in (("expected_calibration_error_of_all", temperature), ("uncalibrated_error_of_all", 1.0)):
        confidence, best = (
            np.concatenate(part) for part in zip(*(cells.confidence(of) for cells in judged.values()), strict=True)
        )
        scores[name] = calibration_error(confidence, best)
    return scores
