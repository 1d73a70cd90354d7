# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Predictions for cells, the rule that makes them from scores, and the columns of `obs` that hold them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from ..io.columns import (
    ANSWER,
    ANSWER_ID,
    ANSWER_PROBABILITY,
    CELL_TYPE,
    CELL_TYPE_ID,
    CLUSTER_AGREEMENT,
    CLUSTER_ANSWER,
    CLUSTER_ANSWER_ID,
    CLUSTER_LABEL,
    CLUSTER_MIXED,
    CLUSTER_SECOND,
    FIT,
    MARGIN,
    NOVELTY,
    PROVEN,
    SCORE,
    SECOND,
    UNKNOWN_BECAUSE,
)
from ..model.errors import InputError
from ..ontology import id_of
from .calibration import ERROR_RATE, LEAST_FIT, Calibration
from .ontology_backoff import UNKNOWN, OntologyBackoff
from .scorers import Scorer

logger = logging.getLogger(__name__)

_COLUMNS = (
    *(CELL_TYPE, CELL_TYPE_ID, SCORE, SECOND, MARGIN, NOVELTY, ANSWER, ANSWER_ID, ANSWER_PROBABILITY, PROVEN),
    *(FIT, UNKNOWN_BECAUSE),
    *(CLUSTER_LABEL, CLUSTER_SECOND, CLUSTER_ANSWER, CLUSTER_ANSWER_ID, CLUSTER_AGREEMENT, CLUSTER_MIXED),
)


@dataclass(frozen=True)
class Predictions:
    """
    Predictions for some cells. Cells without known genes have -1 and missing values.

    Args:
        best: `(cells,)` number of the label with the highest score.
        score: `(cells,)` highest score.
        second: `(cells,)` number of the label with the second highest score; -1 where there is only one label.
        margin: `(cells,)` difference between the two scores; the score itself where there is only one label.
        novelty: `(cells,)` 1 minus the cosine with the most similar description.
        fit: `(cells,)` probability that the cell is of any candidate; NaN where nothing tells.
        answer: `(cells,)` number of the answer among the nodes of `OntologyBackoff`; -1 for `unknown`.
        confidence: `(cells,)` probability of the answer.
        shortlist_is_exact: `(cells,)` true where no label outside the shortlist can be the best.
        best_of_all: `(cells,)` number of the best label when the matching reads all labels; -1 where that was not
            checked.
        matched_counts: `(cells,)` share of a cell's counts that lies in known genes.
    """

    best: np.ndarray
    score: np.ndarray
    second: np.ndarray
    margin: np.ndarray
    novelty: np.ndarray
    fit: np.ndarray
    answer: np.ndarray
    confidence: np.ndarray
    shortlist_is_exact: np.ndarray
    best_of_all: np.ndarray
    matched_counts: np.ndarray

    @classmethod
    def names(cls) -> list[str]:
        """Returns the names of the arrays."""
        return [field.name for field in fields(cls)]

    def take(self, rows: range) -> "Predictions":
        """Returns the predictions for consecutive cells."""
        return Predictions(**{name: getattr(self, name)[rows.start : rows.stop] for name in self.names()})

    @classmethod
    def concatenate(cls, parts: Iterable["Predictions"]) -> "Predictions":
        """Joins the predictions of consecutive chunks."""
        chunks = list(parts)
        return cls(**{name: np.concatenate([getattr(part, name) for part in chunks]) for name in cls.names()})


#: Why a cell is `unknown`.
UNLIKE, ALIKE = "unlike every candidate", "candidates too alike"


class DecisionRule:
    """
    Turns scores into predictions: the best label and, where the scores are calibrated, an answer. The answer is
    the most specific term of the Cell Ontology whose probability is high enough for an error rate. It is `unknown`
    where no term is, and for a cell that is more probably of no candidate than of any.

    Args:
        scorer: The source of the scores.
        error_rate: Accepted share of wrong answers; by default 0.1 where the checkpoint is calibrated for it.

    Raises:
        InputError: An error rate was given, but the checkpoint is not calibrated, or not for this rate.
    """

    def __init__(self, scorer: Scorer, error_rate: float | None = None):
        self.labels = list(scorer.descriptions)
        self.has_shortlist = "shortlist" in scorer.settings
        #: None where the scores are not calibrated; there are then no answers.
        self.calibration = None if scorer.calibration is None else Calibration.from_dict(scorer.calibration)
        self.backoff: OntologyBackoff | None = None
        self.error_rate, self.threshold = error_rate, 1.0
        if self.calibration is None:
            if error_rate is not None:
                raise InputError(
                    f"error_rate={error_rate:g} needs a checkpoint that is calibrated for these settings: langcell "
                    "calibrate makes one from cells whose types are known."
                )
        elif error_rate is not None or f"{ERROR_RATE:g}" in self.calibration.thresholds:
            self.error_rate = ERROR_RATE if error_rate is None else error_rate
            self.threshold = self.calibration.threshold(self.error_rate)
            self.backoff = OntologyBackoff(self.labels)

    @property
    def settings(self) -> dict[str, float]:
        """The numbers that turn scores into predictions, by name."""
        if self.calibration is None:
            return {}
        found = {"temperature": self.calibration.temperature, "usual_novelty": self.calibration.usual_novelty}
        if self.backoff is not None and self.error_rate is not None:
            found |= {"error_rate": self.error_rate, "threshold": self.threshold}
        return found

    def fit(self, lead: np.ndarray) -> np.ndarray:
        """Returns `(cells,)` probabilities that cells are of any candidate, from their `(cells,)` lead."""
        if self.calibration is None:
            return np.full(len(lead), np.nan, dtype=np.float32)
        return self.calibration.fit_probability(lead).astype(np.float32)

    def __call__(
        self,
        scores: np.ndarray,
        max_cosine: np.ndarray,
        shortlist_is_exact: np.ndarray,
        best_of_all: np.ndarray,
        matched_counts: np.ndarray,
        fit: np.ndarray,
    ) -> Predictions:
        """
        Makes predictions from scores.

        Args:
            scores: `(cells, labels)`; NaN for cells without known genes.
            max_cosine: `(cells,)` cosine with the most similar description.
            shortlist_is_exact, best_of_all, matched_counts, fit: Same as in `Predictions`.
        """
        known = ~np.isnan(scores[:, 0])
        cells = np.arange(len(scores))
        best, others = np.argmax(scores, axis=1), scores.copy()
        others[cells, best] = -1
        second = np.argmax(others, axis=1)
        # A single label has no second: its margin is its score.
        score, second_score = scores[cells, best], np.maximum(others[cells, second], 0)
        answer, confidence = np.full(len(scores), -1, np.int32), np.full(len(scores), np.nan, np.float32)
        if self.backoff is not None and known.any():
            answer[known], confidence[known] = self.backoff.answer_labels(scores[known], self.threshold)
            answer[fit < LEAST_FIT] = -1
        return Predictions(
            best=np.where(known, best, -1).astype(np.int32),
            score=score,
            second=np.where(known & (scores.shape[1] > 1), second, -1).astype(np.int32),
            margin=score - second_score,
            novelty=1 - max_cosine,
            fit=fit,
            answer=answer,
            confidence=confidence,
            shortlist_is_exact=shortlist_is_exact,
            best_of_all=best_of_all,
            matched_counts=matched_counts,
        )

    def write(self, obs: pd.DataFrame, predictions: Predictions) -> None:
        """Writes predictions into `obs` in place of those of an earlier run."""
        delete_predictions(obs)
        obs[CELL_TYPE] = label_categories(self.labels, predictions.best)
        ids = np.array([*(id_of(label) or "" for label in self.labels), None], dtype=object)
        obs[CELL_TYPE_ID] = pd.Categorical(ids[predictions.best])  # -1, for no label, is the last.
        obs[SCORE], obs[MARGIN] = predictions.score, predictions.margin
        if len(self.labels) > 1:
            obs[SECOND] = label_categories(self.labels, predictions.second)
        if not np.isnan(predictions.novelty).all():
            obs[NOVELTY] = predictions.novelty
        if not np.isnan(predictions.fit).all():
            obs[FIT] = predictions.fit
        if self.backoff is not None:
            obs[UNKNOWN_BECAUSE] = _reasons(predictions)
            obs[ANSWER], obs[ANSWER_ID] = answer_categories(self.backoff, predictions.answer, predictions.best >= 0)
            obs[ANSWER_PROBABILITY] = predictions.confidence
        if self.has_shortlist:
            obs[PROVEN] = predictions.shortlist_is_exact

    def summarize_shortlist(self, predictions: Predictions) -> dict[str, Any]:
        """
        Returns the share of cells for which the shortlist is `proven` to be exact, the number of cells `checked`
        against all labels, and their `agreement`; nothing where there is no shortlist.
        """
        if not self.has_shortlist:
            return {}
        checked = predictions.best_of_all >= 0
        summary: dict[str, Any] = {
            "proven": float(predictions.shortlist_is_exact.sum() / max(1, (predictions.best >= 0).sum())),
            "checked": int(checked.sum()),
        }
        if checked.any():
            summary["agreement"] = float((predictions.best_of_all == predictions.best)[checked].mean())
        return summary


def _reasons(predictions: Predictions) -> "pd.Categorical[str]":
    """Returns why cells are unknown, missing for the others."""
    unknown = (predictions.answer < 0) & (predictions.best >= 0)
    reasons = np.where(unknown, np.where(predictions.fit < LEAST_FIT, 0, 1), -1)
    return label_categories((UNLIKE, ALIKE), reasons)


def delete_predictions(obs: pd.DataFrame) -> None:
    """Deletes the columns of an earlier run, if they are there: not every run writes all of them."""
    for name in _COLUMNS:
        if name in obs:
            del obs[name]


def replace_annotation(obs: pd.DataFrame) -> None:
    """Deletes an earlier annotation, whose record that of embeddings replaces, and says so."""
    if CELL_TYPE in obs:
        logger.warning("The cells were annotated before. Their embeddings replace the annotation, in the result.")
    delete_predictions(obs)


def label_categories(labels: Sequence[str], numbers: np.ndarray) -> "pd.Categorical[str]":
    """
    Returns labels by their `(cells,)` numbers, missing for -1. The categories are the labels that at least one
    cell has, in order: scanpy's tests and plots fail on a category without cells.
    """
    return pd.Categorical.from_codes(numbers.tolist(), pd.Index(labels)).remove_unused_categories()


def answer_categories(
    backoff: OntologyBackoff, answers: np.ndarray, known: np.ndarray
) -> tuple[pd.Categorical, pd.Categorical]:
    """
    Returns the names and the ids of answers.

    Args:
        backoff: The nodes that answers are chosen from.
        answers: `(cells,)` numbers of nodes; -1 gives the name `unknown` and an empty id.
        known: `(cells,)` false where the cell has no known genes; its name and id are missing.
    """
    names = np.array([*(node.name for node in backoff.nodes), UNKNOWN], dtype=object)[answers]
    ids = np.array([*(node.id for node in backoff.nodes), ""], dtype=object)[answers]
    names[~known] = ids[~known] = None
    return pd.Categorical(names), pd.Categorical(ids)


__all__ = [
    "ALIKE",
    "UNLIKE",
    "DecisionRule",
    "Predictions",
    "answer_categories",
    "delete_predictions",
    "label_categories",
    "replace_annotation",
]
