# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""One label for each cluster of cells, by the evidence of all of them."""

import logging
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit, softmax

from ..io.columns import (
    CLUSTER_AGREEMENT,
    CLUSTER_ANSWER,
    CLUSTER_ANSWER_ID,
    CLUSTER_LABEL,
    CLUSTER_MIXED,
    CLUSTER_SECOND,
    require_column,
    require_own_column,
)
from ..model.errors import InputError
from ..ontology import ancestors, id_of
from .calibration import LEAST_FIT
from .predictions import DecisionRule, Predictions, answer_categories, label_categories

logger = logging.getLogger(__name__)

#: A cluster looks like two types if at least this share of its cells are surely of another type than most.
MIXED = 0.2
_SURE = 0.7  # Score from which a cell is surely of a type.
_LEAST = 0.4  # A cell speaks against a label at most by this part of the score of its own best label.
_TINY = 1e-12
#: Correlation of the errors of the cells of a cluster. Of 0.5, 0.7 and 1, this is the lowest with which at most 10% of
#: the answers to clusters of the validation studies are wrong, as the mean of the studies.
CORRELATION = 0.7


class ClusterLabels:
    """
    One label for each cluster: the one with the highest geometric mean of the scores of its cells (a logarithmic
    opinion pool: Genest & Zidek, 1986), where no cell speaks against a label by more than five to two, so that a few of
    another type do not outvote the rest.

    Where scores are calibrated, a cluster also has an answer: this label, or the term above it that is sure enough by
    the product of the scores of its cells. What misleads one cell of a cluster misleads most of them, so `n` cells
    count as `n / (1 + (n - 1) CORRELATION)` independent ones (the design effect of Kish, 1965): 1.4 at most. The
    cluster is `unknown` if its cells are, on average, more probably of no candidate.

    Args:
        clusters: `(cells,)` clusters; cells without one are left out.
        rule: The rule that turns scores into predictions.
    """

    def __init__(self, clusters: pd.Series, rule: DecisionRule):
        self.rule = rule
        self.clusters, self.names = pd.factorize(clusters.astype("string"))
        if missing := int((self.clusters < 0).sum()):
            logger.info("%d cells have no value in obs[%r] and get no label of a cluster.", missing, clusters.name)
        shape = (len(self.names), len(rule.labels))
        self._evidence, self._logs, self._sure = np.zeros((3, *shape))
        self._cells = np.zeros(len(self.names))

    def add(self, rows: range, scores: np.ndarray) -> None:
        """Adds the `(cells, labels)` scores of some rows to their clusters."""
        clusters = self.clusters[rows.start : rows.stop]
        counted = (clusters >= 0) & ~np.isnan(scores[:, 0])
        clusters, scores = clusters[counted], scores[counted].astype(np.float64)
        best = scores.max(axis=1, keepdims=True)
        np.add.at(self._evidence, clusters, np.log(np.maximum(scores / best, _LEAST)))
        np.add.at(self._logs, clusters, np.log(scores.clip(_TINY)))
        np.add.at(self._sure, clusters, scores >= _SURE)
        np.add.at(self._cells, clusters, 1)

    def write(self, obs: pd.DataFrame, predictions: Predictions) -> None:
        """
        Writes into `obs`, for each cell, the label of its cluster, the label that fits second best, the answer and its
        id where there are answers, the share of the cluster's cells whose own label is the answer (or else the label)
        or a kind of it, and whether the cluster looks like two types.
        """
        has_scores, backoff = self._cells > 0, self.rule.backoff
        ranked = np.argsort(-self._evidence, axis=1, kind="stable")
        best = np.where(has_scores, ranked[:, 0], -1)
        self._write(obs, CLUSTER_LABEL, label_categories(self.rule.labels, best))
        if len(self.rule.labels) > 1:
            self._write(obs, CLUSTER_SECOND, label_categories(self.rule.labels, np.where(has_scores, ranked[:, 1], -1)))
        agrees = best[self.clusters] == predictions.best
        if backoff is not None:
            logs = self._logs / (1 + (np.maximum(self._cells, 1) - 1) * CORRELATION)[:, None]
            answers = backoff.answer_above(softmax(logs, axis=1), best, self.rule.threshold)
            answers[self._mean(logit(predictions.fit.clip(1e-6, 1 - 1e-6))) < logit(LEAST_FIT)] = -1
            names, ids = answer_categories(backoff, answers, has_scores)
            self._write(obs, CLUSTER_ANSWER, names)
            self._write(obs, CLUSTER_ANSWER_ID, ids)
            answered = answers[self.clusters] >= 0
            agrees = np.where(answered, backoff.holds(answers[self.clusters], predictions.best), agrees)
        shares = self._mean(np.where(predictions.best >= 0, agrees, np.nan))
        obs[CLUSTER_AGREEMENT] = np.where(self.clusters >= 0, shares[self.clusters], np.nan)
        obs[CLUSTER_MIXED] = self._is_mixed()[self.clusters] & (self.clusters >= 0)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Returns the `(clusters,)` means of `(cells,)` values, without those that are missing."""
        in_cluster = self.clusters >= 0
        means = pd.Series(values[in_cluster]).groupby(self.clusters[in_cluster]).mean()
        return means.reindex(range(len(self.names))).to_numpy(dtype=float)

    def _write(self, obs: pd.DataFrame, column: str, of_clusters: "pd.Categorical[Any]") -> None:
        obs[column] = of_clusters.take(self.clusters, allow_fill=True)

    def _is_mixed(self) -> np.ndarray:
        """Returns `(clusters,)` true where many cells are surely of a second type, not above or below the first."""
        terms = [id_of(label) for label in self.rule.labels]
        above = [set() if term is None else {term, *ancestors(term)} for term in terms]
        mixed = np.zeros(len(self.names), dtype=bool)
        for number, sure in enumerate(self._sure):
            first = int(sure.argmax())
            others = [terms[first] not in above[one] and terms[one] not in above[first] for one in range(len(terms))]
            others[first] = False
            mixed[number] = sure[others].max(initial=0) >= max(1, MIXED * self._cells[number])
        return mixed


def require_clusters(obs: pd.DataFrame, cluster_key: str) -> None:
    """
    Checks that a column holds clusters.

    Raises:
        InputError: `obs` has no such column, the column holds no cluster, or the annotation writes it itself.
    """
    require_own_column(cluster_key)
    require_column(obs, cluster_key)
    if obs[cluster_key].isna().all():
        raise InputError(f"obs[{cluster_key!r}] holds no cluster: every value is missing.")


def count_clusters(obs: pd.DataFrame, cluster_key: str) -> dict[str, dict[str, Any]]:
    """
    Returns for each cluster the number of `cells`, its `label`, its `answer` (None where there are none), the share of
    cells in `agreement`, the `second` label, and true if it looks `mixed`. The label and all that follows from it are
    None where no cell of the cluster has known genes.
    """
    found = {}
    for cluster, cells in obs.groupby(obs[cluster_key].astype("string"), observed=True):
        label = _known(cells[CLUSTER_LABEL])
        found[str(cluster)] = {
            "cells": len(cells),
            "label": label,
            "answer": _known(cells[CLUSTER_ANSWER]) if CLUSTER_ANSWER in cells else None,
            "agreement": None if label is None else float(cells[CLUSTER_AGREEMENT].iloc[0]),
            "second": _known(cells[CLUSTER_SECOND]) if CLUSTER_SECOND in cells else None,
            "mixed": bool(cells[CLUSTER_MIXED].iloc[0]),
        }
    return dict(sorted(found.items(), key=lambda one: in_order(one[0])))


def _known(values: Iterable[Any]) -> str | None:
    """Returns the first value as a text; None if it is missing."""
    first = next(iter(values))
    return str(first) if pd.notna(first) else None


def in_order(name: str) -> list[tuple[bool, int, str]]:
    """Returns a sort key that puts numbers in names in the order of their size: cluster 2 before cluster 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]


__all__ = ["CORRELATION", "MIXED", "ClusterLabels", "count_clusters", "in_order", "require_clusters"]
