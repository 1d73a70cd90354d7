# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Calibration: a marker weight, a temperature and thresholds that make scores trustworthy, fitted on known cells."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax

from ..model.errors import InputError
from ..model.prompts import PROMPT_TEMPLATES
from .ontology_backoff import OntologyBackoff

logger = logging.getLogger(__name__)

#: Error rates that thresholds are fitted for, and the default one.
ERROR_RATES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
ERROR_RATE = 0.1

_THRESHOLDS = np.arange(0.3, 1.0, 0.005)
_TEMPERATURES = 0.05, 20.0
_HEAVIEST = 20.0  # At this marker weight, similarity and matching no longer count.
_USUAL = 0.95  # Share of the labelled cells whose novelty counts as usual.


@dataclass(frozen=True)
class Calibration:
    """
    The calibration in a checkpoint's config.

    Args:
        temperature: Turns scores into probabilities: they are raised to 1 / temperature and scaled to add up to 1.
        thresholds: Lowest probability of an answer for each error rate.
        usual_novelty: Novelty that 95% of the labelled cells do not exceed.
        alpha: Weight of the similarity that the calibration was fitted with and is valid for.
        fitted: Record of the fit: cells by study, and calibration errors.
        prompt_templates: Prompt templates that the calibration was fitted with and is valid for.
        marker_weight: Weight of the marker evidence that the calibration was fitted with and is valid for.
    """

    temperature: float
    thresholds: dict[str, float]
    usual_novelty: float
    alpha: float
    fitted: dict[str, Any] = field(default_factory=dict)
    prompt_templates: tuple[str, ...] = PROMPT_TEMPLATES
    marker_weight: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_templates", tuple(self.prompt_templates))  # JSON stores it as a list.

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
class LabelledScores:
    """
    Cells of known types with their scores against the candidates of their study.

    Args:
        labels: The candidates.
        scores: `(cells, labels)` uncalibrated scores, without the marker evidence.
        evidence: `(cells, labels)` marker evidence.
        novelty: `(cells,)` 1 minus the cosine with the most similar description.
        truth: `(cells,)` known labels.
    """

    labels: Sequence[str]
    scores: np.ndarray
    evidence: np.ndarray
    novelty: np.ndarray
    truth: np.ndarray

    def take(self, rows: np.ndarray) -> "LabelledScores":
        """Returns some of the cells."""
        return LabelledScores(self.labels, self.scores[rows], self.evidence[rows], self.novelty[rows], self.truth[rows])

    def probabilities(self, temperature: float, marker_weight: float) -> np.ndarray:
        """Returns the probabilities of the candidates, as `DescriptionScorer` computes them: `(cells, labels)`."""
        with np.errstate(divide="ignore"):
            logits = np.log(self.scores.astype(np.float64)) + marker_weight * self.evidence
        return softmax(logits / temperature, axis=1)

    def confidence(self, temperature: float, marker_weight: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(cells,)` probabilities of the best labels, and `(cells,)` true where they are the known ones."""
        probabilities = self.probabilities(temperature, marker_weight)
        return probabilities.max(axis=1), np.asarray(self.labels)[probabilities.argmax(axis=1)] == self.truth

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


def fit(studies: Mapping[str, LabelledScores], alpha: float, marker_weight: float | None = None) -> Calibration:
    """
    Fits a calibration on the cells of some studies, with equal weight for each cell. The marker weight is fitted first:
    see `fit_marker_weight`.

    The temperature minimises the Brier score (Brier, 1950) of the best label being right. The threshold for an error
    rate is the lowest at which `(w + 1) / (n + 1)` does not exceed the rate, for `n` answers of which `w` are wrong:
    the finite-sample correction of split conformal prediction. An answer is right if it is the cell's type or a term
    above it in the ontology. Error rates that no threshold achieves are left out.

    Args:
        studies: Labelled cells by study.
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

    def loss(log_temperature: float) -> float:
        confidence, right = _pooled(study.confidence(np.exp(log_temperature), weight) for study in studies.values())
        return float(((confidence - right) ** 2).mean())

    temperature = float(np.exp(minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded").x))
    answered, wrong = np.zeros((2, len(_THRESHOLDS)))
    for study in studies.values():
        backoff = OntologyBackoff(study.labels)
        probabilities = backoff.probabilities(study.probabilities(temperature, weight))
        for number, threshold in enumerate(_THRESHOLDS):
            answers, _ = backoff.answer(probabilities, threshold)
            answered[number] += (answers >= 0).sum()
            wrong[number] += ((answers >= 0) & ~backoff.right(answers, study.truth.tolist())).sum()
    error_rates = (wrong + 1) / (answered + 1)
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
    return Calibration(
        temperature,
        thresholds,
        float(np.quantile(novelty, _USUAL)),
        float(alpha),
        {"cells": {name: len(study.truth) for name, study in studies.items()}, **errors},
        marker_weight=weight,
    )


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
    "Calibration",
    "LabelledScores",
    "calibration_error",
    "fit",
    "fit_marker_weight",
]
