# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What is answered of cells, how sure it is, and where an annotated AnnData says so."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..io.columns import (
    AGREEMENT,
    ANSWER,
    ANSWER_ID,
    ANSWER_PROBABILITY,
    CELL_TYPE,
    CONSENSUS,
    CONSENSUS_ID,
    MARGIN,
    NOVELTY,
    PROVEN,
    RUN,
    SCORE,
    SECOND,
)
from ..model.errors import InputError
from ..model.zero_shot import DescriptionScorer
from .calibration import ERROR_RATE, Calibration
from .ontology_backoff import UNKNOWN, OntologyBackoff
from .scorers import Scorer

#: What not every run has to say.
_OPTIONAL = (SECOND, NOVELTY, ANSWER, ANSWER_ID, ANSWER_PROBABILITY, PROVEN, CONSENSUS, CONSENSUS_ID, AGREEMENT)


@dataclass(frozen=True)
class Predictions:
    """
    A few numbers of every cell; of a cell without known genes -1 and missing values.

    Args:
        best: `(cells,)` number of the label with the highest score.
        score: `(cells,)` that score.
        second: `(cells,)` number of the label with the next; -1 where there is one label alone.
        margin: `(cells,)` by how much it is ahead of the second; of a single label the score itself.
        novelty: `(cells,)` 1 minus the cosine with the most similar description.
        answer: `(cells,)` number of the rung of `OntologyBackoff` that is answered, -1 where nothing is sure enough.
        confidence: `(cells,)` the probability of the answer.
        shortlist_is_exact: `(cells,)` whether no label that a shortlist left out can be the best.
        exact: `(cells,)` number of the label that is the best when all are read, -1 where that was not looked at.
        matched_counts: `(cells,)` share of a cell's counts that lies in known genes.
    """

    best: np.ndarray
    score: np.ndarray
    second: np.ndarray
    margin: np.ndarray
    novelty: np.ndarray
    answer: np.ndarray
    confidence: np.ndarray
    shortlist_is_exact: np.ndarray
    exact: np.ndarray
    matched_counts: np.ndarray

    @classmethod
    def names(cls) -> list[str]:
        """Of its arrays."""
        return [field.name for field in fields(cls)]

    @classmethod
    def concatenate(cls, parts: Iterable["Predictions"]) -> "Predictions":
        """Joins chunks, in order."""
        chunks = list(parts)
        return cls(**{name: np.concatenate([getattr(part, name) for part in chunks]) for name in cls.names()})


@dataclass(frozen=True)
class Backoff:
    """
    Predictions as specific as is sure enough.

    Args:
        hierarchy: What can be answered.
        error_rate: Of the answers.
        threshold: The least probability of an answer for it.
    """

    hierarchy: OntologyBackoff
    error_rate: float
    threshold: float

    def __call__(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rungs that are answered, and their probabilities, of calibrated `(cells, labels)`."""
        return self.hierarchy.answer(self.hierarchy.probabilities(probabilities), self.threshold)


class DecisionRule:
    """
    Turns scores into answers: the best label always, and where the scores are calibrated the most specific term of the
    Cell Ontology whose probability is high enough for a rate of wrong answers, or `unknown`.

    Args:
        scorer: Whose scores.
        error_rate: Of the answers; by default 0.1 where the checkpoint is calibrated for it.

    Raises:
        InputError: An error rate is asked for of a checkpoint that is not calibrated, or not for it.
    """

    def __init__(self, scorer: Scorer, error_rate: float | None = None):
        self.labels = list(scorer.descriptions)
        self.shortlisted = "shortlist" in scorer.settings
        found = scorer.calibration if isinstance(scorer, DescriptionScorer) else None
        self.calibration = None if found is None else Calibration.from_dict(found)
        #: None where the scores are not calibrated.
        self.backoff: Backoff | None = None
        if self.calibration is None:
            if error_rate is not None:
                raise InputError(
                    f"error_rate={error_rate:g} needs a checkpoint that is calibrated for these settings: langcell "
                    "calibrate makes one from cells whose types are known."
                )
        elif error_rate is not None or f"{ERROR_RATE:g}" in self.calibration.thresholds:
            rate = ERROR_RATE if error_rate is None else error_rate
            self.backoff = Backoff(OntologyBackoff(self.labels), rate, self.calibration.threshold(rate))

    @property
    def settings(self) -> dict[str, float]:
        """What decides the answers beyond the scores."""
        if self.calibration is None:
            return {}
        found = {"temperature": self.calibration.temperature, "usual_novelty": self.calibration.usual_novelty}
        if self.backoff is not None:
            found |= {"error_rate": self.backoff.error_rate, "threshold": self.backoff.threshold}
        return found

    def __call__(
        self,
        scores: np.ndarray,
        max_cosine: np.ndarray,
        shortlist_is_exact: np.ndarray,
        exact: np.ndarray,
        matched_counts: np.ndarray,
    ) -> Predictions:
        """
        Args:
            scores: `(cells, labels)`, NaN for cells without known genes.
            max_cosine: `(cells,)` cosine with the most similar description.
            shortlist_is_exact, exact, matched_counts: As of `Predictions`.
        """
        known = ~np.isnan(scores[:, 0])
        cells = np.arange(len(scores))
        best, others = np.argmax(scores, axis=1), scores.copy()
        others[cells, best] = -1
        second = np.argmax(others, axis=1)
        # Of a single label, what it is ahead of is nothing.
        score, next_score = scores[cells, best], np.maximum(others[cells, second], 0)
        answer, confidence = np.full(len(scores), -1, np.int32), np.full(len(scores), np.nan, np.float32)
        if self.backoff is not None and known.any():
            answer[known], confidence[known] = self.backoff(scores[known])
        return Predictions(
            best=np.where(known, best, -1).astype(np.int32),
            score=score,
            second=np.where(known & (scores.shape[1] > 1), second, -1).astype(np.int32),
            margin=score - next_score,
            novelty=1 - max_cosine,
            answer=answer,
            confidence=confidence,
            shortlist_is_exact=shortlist_is_exact,
            exact=exact,
            matched_counts=matched_counts,
        )

    def write(self, obs: pd.DataFrame, answers: Predictions) -> None:
        """Writes the answers into `obs`, and takes out what an earlier run wrote there and this one does not."""
        for name in _OPTIONAL:
            if name in obs:
                del obs[name]
        obs[CELL_TYPE] = found_among(self.labels, answers.best)
        obs[SCORE], obs[MARGIN] = answers.score, answers.margin
        if len(self.labels) > 1:
            obs[SECOND] = found_among(self.labels, answers.second)
        if not np.isnan(answers.novelty).all():
            obs[NOVELTY] = answers.novelty
        if self.backoff is not None:
            obs[ANSWER], obs[ANSWER_ID] = named(self.backoff.hierarchy, answers.answer, answers.best >= 0)
            obs[ANSWER_PROBABILITY] = answers.confidence
        if self.shortlisted:
            obs[PROVEN] = answers.shortlist_is_exact


def found_among(labels: Sequence[str], numbers: np.ndarray) -> "pd.Categorical[str]":
    """
    Labels by their `(cells,)` numbers, missing for -1. The categories are those that a cell has, in the order of the
    labels: scanpy's tests and plots fail on a category without a cell.
    """
    return pd.Categorical.from_codes(numbers.tolist(), pd.Index(labels)).remove_unused_categories()


def candidates_of(annotated: ad.AnnData) -> list[str]:
    """The labels that an annotation chose from, in order, whether or not a cell has them."""
    return [str(label) for label in annotated.uns[RUN]["labels"]]


def best_of(annotated: ad.AnnData) -> pd.Series:
    """The label found for each cell, with all the candidates as categories: its codes are their numbers."""
    return annotated.obs[CELL_TYPE].cat.set_categories(candidates_of(annotated))


def named(hierarchy: OntologyBackoff, nodes: np.ndarray, known: np.ndarray) -> tuple[pd.Categorical, pd.Categorical]:
    """Names and ids of rungs: `unknown` and no id where nothing is sure enough, missing where nothing is known."""
    names = np.array([*(node.name for node in hierarchy.nodes), UNKNOWN], dtype=object)[nodes]
    ids = np.array([*(node.id for node in hierarchy.nodes), ""], dtype=object)[nodes]
    names[~known] = ids[~known] = None
    return pd.Categorical(names), pd.Categorical(ids)


def count_answers(obs: pd.DataFrame) -> list[dict[str, Any]]:
    """What is answered (`answer`, `id`) of how many `cells`, the most frequent first; none where nothing can be."""
    if ANSWER not in obs:
        return []
    sizes = obs.groupby([ANSWER, ANSWER_ID], observed=True).size().sort_values(ascending=False, kind="stable")
    names, ids = sizes.index.get_level_values(ANSWER), sizes.index.get_level_values(ANSWER_ID)
    return [
        {"answer": str(name), "id": str(term_id), "cells": int(cells)}
        for name, term_id, cells in zip(names, ids, sizes, strict=True)
    ]


def facts_of(answers: Predictions, rule: DecisionRule) -> dict[str, Any]:
    """What is known of the answers of a shortlist: shares of cells."""
    if not rule.shortlisted:
        return {}
    checked = answers.exact >= 0
    facts: dict[str, Any] = {
        "proven": float(answers.shortlist_is_exact.sum() / max(1, (answers.best >= 0).sum())),
        "checked": int(checked.sum()),
    }
    if checked.any():
        facts["agreement"] = float((answers.exact == answers.best)[checked].mean())
    return facts


__all__ = [
    "Backoff",
    "DecisionRule",
    "Predictions",
    "best_of",
    "candidates_of",
    "count_answers",
    "facts_of",
    "found_among",
    "named",
]
