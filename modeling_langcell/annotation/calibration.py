# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Calibration: a marker weight, a temperature and thresholds that make scores trustworthy, fitted on known cells."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, softmax

from ..model.errors import InputError
from ..model.prompts import PROMPT_TEMPLATES
from . import open_set
from .ontology_backoff import OntologyBackoff

logger = logging.getLogger(__name__)

#: Error rates that thresholds are fitted for, and the default one.
ERROR_RATES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
ERROR_RATE = 0.1

#: A cell that is less probably than this of any candidate is unlike every candidate.
LEAST_FIT = 0.5

_THRESHOLDS = np.arange(0.3, 1.0, 0.005)
_TEMPERATURES = 0.05, 20.0
_LEAST_PROBABILITY = 1e-9
_HEAVIEST = 20.0  # At this marker weight, similarity and matching no longer count.
_RIDGE = 1e-6  # Bounds the weights where a line separates the cells of a candidate from all others.
_MOST = 0.9  # Share of the studies whose answers keep an error rate.
_USUAL = 0.95  # Share of the labelled cells whose novelty counts as usual.


@dataclass(frozen=True)
class Calibration:
    """
    The calibration in a checkpoint's config.

    Args:
        temperature: Turns scores into probabilities: they are raised to 1 / temperature and scaled to add up to 1.
        thresholds: Lowest probability of an answer for each error rate, which nine of ten studies keep.
        usual_novelty: Novelty that 95% of the labelled cells do not exceed.
        alpha: Weight of the similarity that the calibration was fitted with and is valid for.
        fitted: Record of the fit: cells by study, and calibration errors.
        prompt_templates: Prompt templates that the calibration was fitted with and is valid for.
        marker_weight: Weight of the marker evidence that the calibration was fitted with and is valid for.
        lead: Weight of the lead of the best candidate, and the intercept, of the log-odds that a cell is of any
            candidate: see `open_set.lead`. None where the checkpoint does not name the types that it knows.
    """

    temperature: float
    thresholds: dict[str, float]
    usual_novelty: float
    alpha: float
    fitted: dict[str, Any] = field(default_factory=dict)
    prompt_templates: tuple[str, ...] = PROMPT_TEMPLATES
    marker_weight: float = 0.0
    lead: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_templates", tuple(self.prompt_templates))  # JSON stores it as a list.
        if self.lead is not None:
            object.__setattr__(self, "lead", tuple(self.lead))

    def fit_probability(self, lead: np.ndarray) -> np.ndarray:
        """
        Returns `(cells,)` probabilities that a cell is of any candidate, from its lead; NaN where no other types are
        known.
        """
        if self.lead is None:
            return np.full(len(lead), np.nan)
        weight, intercept = self.lead
        return expit(weight * lead + intercept)

    def threshold(self, error_rate: float) -> float:
        """
        Returns the lowest probability of an answer for an error rate.

        Raises:
            InputError: No threshold was fitted for this rate.
        """
        found = self.thresholds.get(f"{error_rate:g}")
        if found is None:
            known = ", ".join(self.thresholds)
            raise InputError(f"The checkpoint is calibrated for error rates of {known}, not of {error_rate:g}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields in the form that a checkpoint's config stores."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Calibration":
        """
        Reads the fields from a checkpoint's config, and skips others. Older configs call the prompt templates
        `wordings`.
        """
        given = {"prompt_templates" if name == "wordings" else name: value for name, value in found.items()}
        return cls(**{one.name: given[one.name] for one in fields(cls) if one.name in given})


@dataclass(frozen=True)
class RivalScores:
    """
    How well the candidates of a study, and other types that the checkpoint knows, fit its cells: see `open_set`.

    Args:
        logits: `(cells, labels)` how well each candidate fits each cell, without the marker evidence.
        other_logits: `(cells, types)` how well each type that the checkpoint knows fits, without the marker evidence.
        other_evidence: `(cells, types)` marker evidence of these types.
        related: `(labels, types)` true where a type is the label's own, above it or below it.
        alike: `(labels, types)` true where a type is too much like the label to compete with it.
        labels_alike: `(labels, labels)` the same for labels among each other.
    """

    logits: np.ndarray
    other_logits: np.ndarray
    other_evidence: np.ndarray
    related: np.ndarray
    alike: np.ndarray
    labels_alike: np.ndarray

    def take(self, rows: np.ndarray) -> "RivalScores":
        """Returns some of the cells."""
        cells = {name: getattr(self, name)[rows] for name in ("logits", "other_logits", "other_evidence")}
        return replace(self, **cells)

    def lead(self, offered: np.ndarray, evidence: np.ndarray, marker_weight: float) -> np.ndarray:
        """
        Returns the `(cells,)` lead of the best of some labels.

        Args:
            offered: `(labels,)` true for the labels that are candidates.
            evidence: `(cells, labels)` marker evidence.
            marker_weight: Weight of the evidence.
        """
        competes = ~self.related[offered].any(axis=0) & ~self.alike[offered]
        logits = (self.logits + marker_weight * evidence)[:, offered]
        return open_set.lead(logits, self.other_logits + marker_weight * self.other_evidence, competes)


@dataclass(frozen=True)
class LabelledScores:
    """
    Cells of known types with their scores against the candidates of their study.

    Args:
        labels: The candidates.
        scores: `(cells, labels)` uncalibrated scores, without the marker evidence.
        evidence: `(cells, labels)` marker evidence.
        novelty: `(cells,)` 1 minus the cosine with the most similar description.
        truth: `(cells,)` known labels.
        rivals: How well other types fit; None where none are known.
    """

    labels: Sequence[str]
    scores: np.ndarray
    evidence: np.ndarray
    novelty: np.ndarray
    truth: np.ndarray
    rivals: RivalScores | None = None

    def take(self, rows: np.ndarray) -> "LabelledScores":
        """Returns some of the cells."""
        cells = {name: getattr(self, name)[rows] for name in ("scores", "evidence", "novelty", "truth")}
        of_cells = None if self.rivals is None else self.rivals.take(rows)
        return replace(self, **cells, rivals=of_cells)

    def fit_probability(self, calibration: Calibration, offered: np.ndarray) -> np.ndarray:
        """
        Returns `(cells,)` probabilities that cells are of any of the labels that are `offered`, `(labels,)` booleans.
        """
        if self.rivals is None:
            return np.full(len(self.truth), np.nan)
        found = self.rivals.lead(offered, self.evidence, calibration.marker_weight)
        return calibration.fit_probability(found)

    @property
    def truth_index(self) -> np.ndarray:
        """`(cells,)` numbers of the known labels."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return np.array([numbers[label] for label in self.truth], dtype=int)

    def probabilities(self, temperature: float, marker_weight: float) -> np.ndarray:
        """Returns the probabilities of the candidates, as `DescriptionScorer` computes them: `(cells, labels)`."""
        with np.errstate(divide="ignore"):
            logits = np.log(self.scores.astype(np.float64)) + marker_weight * self.evidence
        return softmax(logits / temperature, axis=1)

    def confidence(self, temperature: float, marker_weight: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(cells,)` probabilities of the best labels, and `(cells,)` true where they are the known ones."""
        probabilities = self.probabilities(temperature, marker_weight)
        return probabilities.max(axis=1), np.asarray(self.labels)[probabilities.argmax(axis=1)] == self.truth

    def log_loss(self, temperature: float, marker_weight: float) -> float:
        """Returns the negative log-likelihood of the known labels, the mean over cells."""
        known = self.probabilities(temperature, marker_weight)[np.arange(len(self.truth)), self.truth_index]
        return float(-np.log(known.clip(_LEAST_PROBABILITY)).mean())

    def brier_score(self, temperature: float, marker_weight: float) -> float:
        """Returns the Brier score of all candidates (Brier, 1950): the mean over cells, from 0 for the best to 2."""
        is_truth = np.asarray(self.labels) == self.truth[:, None]
        return float(((self.probabilities(temperature, marker_weight) - is_truth) ** 2).sum(axis=1).mean())


def fit_marker_weight(studies: Mapping[str, LabelledScores]) -> float:
    """
    Fits the weight of the marker evidence, to one decimal: with the best temperature beside it, it minimises the Brier
    score of all candidates, with equal weight for each study. It is 0 where no candidate names a gene.
    """
    if not any(np.ptp(study.evidence, axis=1).any() for study in studies.values()):
        return 0.0

    def loss(parameters: np.ndarray) -> float:
        marker_weight, log_temperature = parameters
        return float(np.mean([s.brier_score(np.exp(log_temperature), marker_weight) for s in studies.values()]))

    bounds = (0, _HEAVIEST), np.log(_TEMPERATURES)
    return round(float(minimize(loss, (1.0, 0.5), method="Nelder-Mead", bounds=bounds).x[0]), 1)


def candidate_sets(study: LabelledScores) -> list[tuple[str, np.ndarray]]:
    """
    Returns sets of a study's labels that users might offer, `(labels,)` booleans, with their kind: `all`; all but those
    of a branch of the ontology (`branch`); and each label as the only candidate (`alone`).
    """
    n_labels = len(study.labels)
    branches = np.unique(OntologyBackoff(study.labels).probabilities(np.eye(n_labels)).T.astype(bool), axis=0)
    return [
        ("all", np.ones(n_labels, dtype=bool)),
        *(("branch", ~branch) for branch in branches if not branch.all()),
        *(("alone", label) for label in np.eye(n_labels, dtype=bool)),
    ]


def fit_lead(studies: Mapping[str, LabelledScores], marker_weight: float) -> tuple[float, float] | None:
    """
    Fits the log-odds that a cell is of any candidate: see `Calibration`. They minimise the Brier score, so a few cells
    with wrong labels do not decide it, as they would by their likelihood. Cells are offered the candidate sets of
    `candidate_sets`. Cells of a candidate and others have the same weight in each set, as have the kinds of sets, and
    studies; cells whose type is too much like a candidate that they are offered are left out. None where no other types
    are known.
    """
    rows, belongs, weights = [], [], []
    for study in studies.values():
        if study.rivals is None:
            return None
        sets, truth = candidate_sets(study), study.truth_index
        kinds = [kind for kind, _ in sets]
        for kind, offered in sets:
            own = offered[truth]
            alike_to_offered = np.any(study.rivals.labels_alike[:, offered], axis=1)
            alike = np.take(alike_to_offered, truth) & ~own
            found = study.rivals.lead(offered, study.evidence, marker_weight)
            share = np.where(own, 0.5 / max(1, own.sum()), 0.5 / max(1, (~own & ~alike).sum()))
            rows.append(found[~alike])
            belongs.append(own[~alike])
            weights.append(share[~alike] / kinds.count(kind))
    if np.concatenate(belongs).all():
        return None
    leads, share = np.concatenate(rows), np.concatenate(weights)

    def loss(weights: np.ndarray) -> float:
        errors = expit(weights[0] * leads + weights[1]) - np.concatenate(belongs)
        return float(np.average(errors**2, weights=share) + _RIDGE * (weights**2).sum())

    slope, intercept = minimize(loss, np.zeros(2)).x
    return float(slope), float(intercept)


def fit(studies: Mapping[str, LabelledScores], alpha: float, marker_weight: float | None = None) -> Calibration:
    """
    Fits a calibration on the cells of some studies, with equal weight for each study. The marker weight is fitted
    first: see `fit_marker_weight`; then what tells that a cell is of no candidate: see `fit_lead`.

    The temperature minimises the negative log-likelihood of the known labels. The threshold for an error rate is the
    lowest at which `(w + 1) / (n + 1)` does not exceed the rate, for `n` answers to the cells of a study of which `w`
    are wrong (the finite-sample correction of split conformal prediction), in nine of ten studies (the 0.9 quantile).
    An answer is right if it is the cell's type or a term above it in the ontology. Error rates that no threshold
    achieves are left out.

    Args:
        studies: Labelled cells by study, scored against the types of the study.
        alpha: Weight of the similarity that the cells were scored with.
        marker_weight: Weight of the marker evidence; fitted by default.

    Raises:
        InputError: There are no cells, or the marker weight is below 0.
    """
    if not any(len(study.truth) for study in studies.values()):
        raise InputError("There are no labelled cells to calibrate on.")
    if marker_weight is not None and not 0 <= marker_weight < np.inf:
        raise InputError(f"marker_weight={marker_weight} is not a weight: give 0 or more.")
    weight = fit_marker_weight(studies) if marker_weight is None else float(marker_weight)

    studies = {name: study for name, study in studies.items() if len(study.truth)}

    def loss(log_temperature: float) -> float:
        return float(np.mean([study.log_loss(np.exp(log_temperature), weight) for study in studies.values()]))

    temperature = float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))
    found = Calibration(temperature, {}, 0.0, alpha, marker_weight=weight, lead=fit_lead(studies, weight))
    error_rates = np.quantile([_error_rates(study, found) for study in studies.values()], _MOST, axis=0)
    thresholds = {
        f"{rate:g}": round(float(_THRESHOLDS[(error_rates <= rate).argmax()]), 4)
        for rate in ERROR_RATES
        if (error_rates <= rate).any()
    }
    if left_out := [f"{rate:g}" for rate in ERROR_RATES if f"{rate:g}" not in thresholds]:
        logger.warning("No threshold achieves an error rate of %s: it is left out.", ", ".join(left_out))
    novelty = np.concatenate([study.novelty for study in studies.values()])
    errors = {
        name: calibration_error(*_pooled(study.confidence(t, weight) for study in studies.values()))
        for name, t in (("error_before", 1.0), ("error_after", temperature))
    }
    return replace(
        found,
        thresholds=thresholds,
        usual_novelty=float(np.quantile(novelty, _USUAL)),
        alpha=float(alpha),
        fitted={"cells": {name: len(study.truth) for name, study in studies.items()}, **errors},
    )


def _error_rates(study: LabelledScores, calibration: Calibration) -> np.ndarray:
    """Returns the corrected error rate of the answers to a study's cells at each threshold."""
    backoff, truth = OntologyBackoff(study.labels), study.truth.tolist()
    probabilities = backoff.probabilities(study.probabilities(calibration.temperature, calibration.marker_weight))
    unlike = study.fit_probability(calibration, np.ones(len(study.labels), dtype=bool)) < LEAST_FIT
    rates = []
    for threshold in _THRESHOLDS:
        answers, _ = backoff.answer(probabilities, threshold)
        answered = (answers >= 0) & ~unlike
        rates.append((float((answered & ~backoff.right(answers, truth)).sum()) + 1) / (answered.sum() + 1))
    return np.array(rates)


def _pooled(parts: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = zip(*parts, strict=True)
    return np.concatenate(first), np.concatenate(second)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """
    Returns the expected calibration error (Naeini et al., 2015): the gap between mean confidence and share of right
    labels in each bin, averaged over cells. Bins have equal width.

    Args:
        confidence: `(cells,)` probabilities of the best labels.
        right: `(cells,)` true where the best label is right.
        bins: Number of bins.
    """
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, confidence, bins) - np.bincount(bin_of, right, bins)
    return float(np.abs(gaps).sum() / len(confidence))


__all__ = [
    "ERROR_RATE",
    "ERROR_RATES",
    "LEAST_FIT",
    "Calibration",
    "LabelledScores",
    "RivalScores",
    "calibration_error",
    "candidate_sets",
    "fit",
    "fit_lead",
    "fit_marker_weight",
]
