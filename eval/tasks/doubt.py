# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Doubt: tests whether calibrated answers keep to the stated error rate, and how specific they still are."""

from collections.abc import Sequence

import numpy as np

from modeling_langcell.annotation.calibration import (
    ERROR_RATE,
    LEAST_FIT,
    Calibration,
    LabelledScores,
    calibration_error,
    fit,
)
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.eval.task import LANGCELL, Result, Run, Task, metric
from modeling_langcell.ontology import ancestors, depth, find_term

#: Studies that calibrations are fitted on.
_STUDIES = ("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc")
#: Terms above the lineages that are left out of the candidates.
_LINEAGES = ("CL:0000084", "CL:0000763", "CL:0000945")  # T cells, myeloid cells, lymphocytes of the B lineage.

TASK = Task(
    name="doubt",
    question="At an error rate of 10%, how many answers are wrong, how specific are they, and how many cells of no "
    "candidate are unknown?",
    studies=(*_STUDIES, "pbmc68k_reduced"),
    methods=(LANGCELL,),
    metrics=(
        *("right", "coverage", "exact", "depth", "depth_of_truth", "accuracy"),
        *("foreign_unknown_without_lineage", "own_unknown_without_lineage"),
        *("foreign_unknown_alone", "own_unknown_alone"),
        *("expected_calibration_error", "uncalibrated_error"),
    ),
    main_score="right",
    settings=({"calibrated_on": "all"}, {"calibrated_on": "itself"}, {"calibrated_on": "others"}),
    seeded=(LANGCELL,),
    reads_markers=True,
    version=3,
)


def measure(run: Run) -> Result:
    """
    Calibrates on a random half of the cells of each study (`all`: of three studies; `itself`: of this study; `others`:
    on all cells of the other ones of the three), and scores the other half of this study, or all of its cells where
    none was calibrated on.

    `right` is the share of answers that are the cell's type or an ancestor of it; `coverage` is the share of cells with
    an answer, and `exact` of those answered with a candidate; `depth` is the mean depth of the answers in the ontology,
    and `depth_of_truth` that of the same cells' types. Calibration errors are those of the best label.

    Candidates are then left out: a lineage at a time (`..._without_lineage`), or all but one (`..._alone`), as the mean
    over these sets. `foreign_unknown_...` is the share of the cells of no candidate that are unknown, and
    `own_unknown_...` that of the others.
    """
    names = list(dict.fromkeys([*_STUDIES, run.study.name]))
    scored = {name: run.context.scores(run.context.study(name)) for name in names}
    halves = {name: _split_in_halves(len(scored[name].truth), run.seed) for name in names}
    calibrated_on, own = run.setting["calibrated_on"], scored[run.study.name]
    if calibrated_on == "others":
        fitted_on = {name: scored[name] for name in _STUDIES if name != run.study.name}
    else:
        chosen = _STUDIES if calibrated_on == "all" else (run.study.name,)
        fitted_on = {name: scored[name].take(halves[name][0]) for name in chosen}
        if run.study.name in chosen:
            own = own.take(halves[run.study.name][1])
    config = run.annotator.model.config
    calibration = fit(fitted_on, config.alpha, config.marker_weight)
    scores = measure_answers(own, calibration)
    if calibrated_on != "all":
        return Result(scores)
    confidence, best = own.confidence(calibration.temperature, calibration.marker_weight)
    reliability = metric("calibration_error", references=best, confidences=confidence.clip(0, 1))["reliability"]
    return Result(scores, drawings={"reliability": reliability, "risk": _risk_curves(own, calibration)})


def measure_answers(cells: LabelledScores, calibration: Calibration) -> dict[str, float]:
    """Returns the scores of a calibration on cells that it was not fitted on: see `measure`."""
    backoff, answers = _answer(cells, calibration, np.ones(len(cells.labels), dtype=bool))
    confidence, best = cells.confidence(calibration.temperature, calibration.marker_weight)
    answered, right = answers >= 0, backoff.right(answers, cells.truth.tolist())
    names_of_nodes = np.array([*(node.name for node in backoff.nodes), ""])
    scores = {
        "coverage": float(answered.mean()),
        "exact": float(np.isin(names_of_nodes[answers], list(cells.labels)).mean()),
        "accuracy": float(best.mean()),
        "expected_calibration_error": calibration_error(confidence, best),
        "uncalibrated_error": calibration_error(*cells.confidence(1.0, calibration.marker_weight)),
        **_unknown_without(cells, calibration),
    }
    if answered.any():
        type_depths = {label: depth(find_term(label).id) for label in cells.labels}
        scores |= {
            "right": float(right[answered].mean()),
            "depth": float(np.array([node.depth for node in backoff.nodes])[answers[answered]].mean()),
            "depth_of_truth": float(np.mean([type_depths[label] for label in cells.truth[answered]])),
        }
    return scores


def _split_in_halves(cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(cells)
    return np.sort(order[: cells // 2]), np.sort(order[cells // 2 :])


def _answer(
    cells: LabelledScores, calibration: Calibration, offered: np.ndarray, least_fit: float = LEAST_FIT
) -> tuple[OntologyBackoff, np.ndarray]:
    """
    Returns the possible answers where some of the labels are offered, `(labels,)` booleans, and the numbers of the
    cells' answers at an error rate of 10%; -1 for cells that are less probably than `least_fit` of any of these labels.
    """
    backoff = OntologyBackoff([label for label, one in zip(cells.labels, offered, strict=True) if one])
    threshold = calibration.thresholds.get(f"{ERROR_RATE:g}", np.inf)
    probabilities = cells.probabilities(calibration.temperature, calibration.marker_weight)[:, offered]
    # With fewer candidates, the softmax is over these alone.
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True).clip(np.finfo(float).tiny)
    answers, _ = backoff.answer_labels(probabilities, threshold)
    return backoff, np.where(cells.fit_probability(calibration, offered) < least_fit, -1, answers)


def _sets_without(labels: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Returns what is offered when a lineage is left out, and when one candidate is alone: `(labels,)` booleans."""
    terms = [find_term(label).id for label in labels]
    lineages = [np.array([root not in {term, *ancestors(term)} for term in terms]) for root in _LINEAGES]
    sets = {"without_lineage": lineages, "alone": list(np.eye(len(terms), dtype=bool))}
    return {kind: [one for one in found if one.any() and not one.all()] for kind, found in sets.items()}


def _unknown_without(cells: LabelledScores, calibration: Calibration) -> dict[str, float]:
    """Returns the shares of cells that are unknown when candidates are left out."""
    found: dict[str, list[float]] = {}
    for kind, sets in _sets_without(cells.labels).items():
        for offered in sets:
            unknown, own = _answer(cells, calibration, offered)[1] < 0, offered[cells.truth_index]
            for whose, rows in (("foreign", ~own), ("own", own)):
                if rows.any():
                    found.setdefault(f"{whose}_unknown_{kind}", []).append(float(unknown[rows].mean()))
    return {name: float(np.mean(shares)) for name, shares in found.items()}


def _risk_curves(cells: LabelledScores, calibration: Calibration) -> dict[str, list[dict[str, float]]]:
    """
    Returns the shares of answered cells and of wrong answers, by what is offered, as cells must fit the candidates
    better and better to get an answer.
    """
    truth, curves = cells.truth.tolist(), {}
    everything = {"all types": [np.ones(len(cells.labels), dtype=bool)]}
    for kind, sets in (everything | _sets_without(cells.labels)).items():
        points = []
        for least_fit in np.linspace(0, 1, 41):
            found = [_answer(cells, calibration, offered, least_fit) for offered in sets]
            answered = np.concatenate([answers >= 0 for _, answers in found])
            right = np.concatenate([backoff.right(answers, truth) for backoff, answers in found])
            if answered.any():
                shares = {"coverage": answered.mean(), "risk": 1 - right[answered].mean(), "least_fit": least_fit}
                points.append({name: round(float(share), 4) for name, share in shares.items()})
        curves[kind.replace("_", " ")] = points
    return curves
