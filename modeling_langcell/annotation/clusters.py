# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""One answer for each cluster of cells."""

import logging
from typing import Any

import numpy as np
import pandas as pd

from ..io.columns import AGREEMENT, CONSENSUS, CONSENSUS_ID
from ..model.errors import InputError
from .predictions import DecisionRule, Predictions, answer_categories, label_categories

logger = logging.getLogger(__name__)


class Consensus:
    """
    The consensus of each cluster: the prediction from the mean scores of its cells. The agreement is the share of the
    cells whose own best label is the consensus or a subtype of it.

    Args:
        obs: `obs` of all cells.
        cluster_key: Column of `obs` with the clusters; cells without a cluster are left out.
        rule: The rule that turns scores into predictions.

    Raises:
        InputError: `obs` has no such column, or the column holds no cluster.
    """

    def __init__(self, obs: pd.DataFrame, cluster_key: str, rule: DecisionRule):
        if cluster_key not in obs:
            raise InputError(f"No column {cluster_key!r} in obs; columns here: {sorted(map(str, obs.columns))}.")
        self.rule = rule
        self.clusters, self.names = pd.factorize(obs[cluster_key].astype("string"))
        if not len(self.names):
            raise InputError(f"obs[{cluster_key!r}] holds no cluster: every value is missing.")
        if missing := int((self.clusters < 0).sum()):
            logger.info("%d cells have no value in obs[%r] and are left out of the consensus.", missing, cluster_key)
        self._sums = np.zeros((len(self.names), len(rule.labels)))

    def add(self, rows: range, scores: np.ndarray) -> None:
        """Adds the `(cells, labels)` scores of some rows to the sums of their clusters."""
        clusters = self.clusters[rows.start : rows.stop]
        counted = (clusters >= 0) & ~np.isnan(scores[:, 0])
        np.add.at(self._sums, clusters[counted], scores[counted])

    def write(self, obs: pd.DataFrame, predictions: Predictions) -> None:
        """Writes the consensus, its id where answers have one, and the agreement of each cell's cluster into `obs`."""
        totals = self._sums.sum(axis=1, keepdims=True)
        means = np.divide(self._sums, totals, out=np.zeros_like(self._sums), where=totals > 0)
        has_scores = (totals > 0)[:, 0]
        backoff = self.rule.backoff
        names: Any
        if backoff is None:
            consensus = np.where(has_scores, means.argmax(axis=1), -1)
            names = label_categories(self.rule.labels, consensus)
            agrees = consensus[self.clusters] == predictions.best
        else:
            consensus, _ = backoff.answer_labels(means, self.rule.threshold)
            names, ids = answer_categories(backoff, consensus, has_scores)
            obs[CONSENSUS_ID] = ids.take(self.clusters, allow_fill=True)
            agrees = backoff.holds(consensus[self.clusters], predictions.best)
        counted = (self.clusters >= 0) & (predictions.best >= 0)
        shares = pd.Series(agrees[counted]).groupby(self.clusters[counted]).mean().reindex(range(len(self.names)))
        obs[CONSENSUS] = names.take(self.clusters, allow_fill=True)
        obs[AGREEMENT] = np.where(self.clusters >= 0, shares.to_numpy()[self.clusters], np.nan)


def count_clusters(obs: pd.DataFrame, cluster_key: str) -> dict[str, dict[str, Any]]:
    """
    Returns the number of `cells`, the consensus (`answer`) and the `agreement` of each cluster; the last two are None
    where no cell of the cluster has known genes.
    """
    found = {}
    for cluster, cells in obs.groupby(obs[cluster_key].astype("string"), observed=True):
        answer, agreement = cells[CONSENSUS].iloc[0], cells[AGREEMENT].iloc[0]
        known = pd.notna(answer)
        found[str(cluster)] = {
            "cells": len(cells),
            "answer": str(answer) if known else None,
            "agreement": float(agreement) if known else None,
        }
    return found


__all__ = ["Consensus", "count_clusters"]
