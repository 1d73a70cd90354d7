# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How far a checkpoint's probabilities can be trusted: a temperature and thresholds, fitted on cells of known types."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from ..model.errors import InputError
from ..model.prompts import PROMPT_TEMPLATES
from .ontology_backoff import OntologyBackoff

#: Rates of wrong answers that thresholds are fitted for; the default is the one that most users name.
ERROR_RATES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
ERROR_RATE = 0.1

_THRESHOLDS = np.arange(0.3, 1.0, 0.005)
_USUAL = 0.95  # Share of labelled cells that are no more novel than is usual.


@dataclass(frozen=True)
class Calibration:
    """
    What a checkpoint's config says of its doubt.

    Args:
        temperature: Scores to the power of its inverse, made to add up to 1, are probabilities.
        thresholds: By rate of wrong answers, the least probability that an answer must have for it.
        usual_novelty: 95% of the labelled cells were no more novel.
        alpha: Weight of the similarity that it was fitted with, and holds for.
        fitted: How it was fitted: cells by study, and calibration errors.
        prompt_templates: How the labels were worded that it was fitted with, and holds for.
    """

    temperature: float
    thresholds: dict[str, float]
    usual_novelty: float
    alpha: float
    fitted: dict[str, Any] = field(default_factory=dict)
    prompt_templates: tuple[str, ...] = PROMPT_TEMPLATES

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_templates", tuple(self.prompt_templates))  # A config's JSON has a list.

    def threshold(self, error_rate: float) -> float:
        """
        Raises:
            InputError: No threshold was fitted for this rate.
        """
        found = self.thresholds.get(f"{error_rate:g}")
        if found is None:
            known = ", ".join(self.thresholds)
            raise InputError(f"The checkpoint is calibrated for an error rate of {known}, not of {error_rate:g}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The fields, as a checkpoint's config holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Calibration":
        """Reads the fields from a checkpoint's config; older ones call the prompt templates `wordings`."""
        return cls(**{"prompt_templates" if name == "wordings" else name: value for name, value in found.items()})


@dataclass(frozen=True)
class LabelledScores:
    """
    Cells of known types, scored against the candidates of their study.

    Args:
        labels: The candidates.
        scores: `(cells, labels)` uncalibrated.
        novelty: `(cells,)`.
        truth: `(cells,)` labels.
    """

    labels: Sequence[str]
    scores: np.ndarray
    novelty: np.ndarray
    truth: np.ndarray

    def take(self, rows: np.ndarray) -> "LabelledScores":
        """Some of the cells."""
        return LabelledScores(self.labels, self.scores[rows], self.novelty[rows], self.truth[rows])

    def confidence(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """`(cells,)` probability of the best label, and whether it is the cell's own."""
        probabilities = calibrated(self.scores, temperature)
        return probabilities.max(axis=1), np.asarray(self.labels)[probabilities.argmax(axis=1)] == self.truth


def calibrated(scores: np.ndarray, temperature: float) -> np.ndarray:
    """`(cells, labels)` scores to probabilities that add up to 1."""
    powers = scores.astype(np.float64) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def fit(studies: Mapping[str, LabelledScores], alpha: float) -> Calibration:
    """
    Fits a calibration on the cells of some studies, all cells alike.

    The temperature has the least Brier score (Brier, 1950) of the best label, which is what is answered, being right.
    The threshold for a rate is the least at which, of `n` answers with `w` wrong ones, `(w + 1) / (n + 1)` is no more
    than the rate: the correction of split conformal prediction for a finite sample. An answer that is true of the cell
    at a higher level of the ontology is right. A rate that no threshold keeps is left out.

    Raises:
        InputError: No cells.
    """
    if not any(len(study.truth) for study in studies.values()):
        raise InputError("There are no labelled cells to calibrate on.")

    def loss(log_temperature: float) -> float:
        confidence, right = _pooled(study.confidence(np.exp(log_temperature)) for study in studies.values())
        return float(((confidence - right) ** 2).mean())

    temperature = float(np.exp(minimize_scalar(loss, bounds=np.log((0.05, 20)), method="bounded").x))
    answered, wrong = np.zeros((2, len(_THRESHOLDS)))
    for study in studies.values():
        hierarchy = OntologyBackoff(study.labels)
        probabilities = hierarchy.probabilities(calibrated(study.scores, temperature))
        for number, threshold in enumerate(_THRESHOLDS):
            answers, _ = hierarchy.answer(probabilities, threshold)
            answered[number] += (answers >= 0).sum()
            wrong[number] += ((answers >= 0) & ~hierarchy.right(answers, study.truth.tolist())).sum()
    kept = (wrong + 1) / (answered + 1)
    thresholds = {
        f"{rate:g}": round(float(_THRESHOLDS[(kept <= rate).argmax()]), 4)
        for rate in ERROR_RATES
        if (kept <= rate).any()
    }
    novelty = np.concatenate([study.novelty for study in studies.values()])
    errors = {
        name: calibration_error(*_pooled(study.confidence(t) for study in studies.values()))
        for name, t in (("error_before", 1.0), ("error_after", temperature))
    }
    return Calibration(
        temperature,
        thresholds,
        float(np.quantile(novelty, _USUAL)),
        float(alpha),
        {"cells": {name: len(study.truth) for name, study in studies.items()}, **errors},
    )


def _pooled(parts: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = zip(*parts, strict=True)
    return np.concatenate(first), np.concatenate(second)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """
    The expected calibration error (Naeini et al., 2015): how far, on average over cells, the probability of a bin is
    from the share of right labels in it. Bins are of one width.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, confidence, bins) - np.bincount(which, right, bins)
    return float(np.abs(gaps).sum() / len(confidence))


__all__ = ["ERROR_RATE", "ERROR_RATES", "Calibration", "LabelledScores", "calibrated", "calibration_error", "fit"]
