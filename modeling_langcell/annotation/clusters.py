# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""One answer for each cluster of cells."""

from typing import Any

import numpy as np
import pandas as pd

from ..io.columns import AGREEMENT, CONSENSUS, CONSENSUS_ID
from ..model.errors import InputError
from .predictions import DecisionRule, Predictions, found_among, named


class Consensus:
    """
    What the cells of each cluster say together: the answer to the mean of their scores. How many of them say it
    themselves, by their best label or what that is a kind of, is the agreement.

    Args:
        obs: Of all the cells.
        cluster_key: Column with the clusters; cells without one are left out.
        rule: What turns scores into answers.

    Raises:
        InputError: No such column, or one without a cluster.
    """

    def __init__(self, obs: pd.DataFrame, cluster_key: str, rule: DecisionRule):
        if cluster_key not in obs:
            raise InputError(f"No column {cluster_key!r} in obs; columns here: {sorted(map(str, obs.columns))}.")
        self.rule = rule
        self.clusters, self.names = pd.factorize(obs[cluster_key].astype("string"))
        if not len(self.names):
            raise InputError(f"obs[{cluster_key!r}] holds no cluster: every value is missing.")
        self._sums = np.zeros((len(self.names), len(rule.labels)))

    def add(self, rows: range, scores: np.ndarray) -> None:
        """Takes the scores `(cells, labels)` of some rows into account."""
        clusters = self.clusters[rows.start : rows.stop]
        counted = (clusters >= 0) & ~np.isnan(scores[:, 0])
        np.add.at(self._sums, clusters[counted], scores[counted])

    def write(self, obs: pd.DataFrame, answers: Predictions) -> None:
        """Writes each cell's consensus, its id where the ontology has one, and the cluster's agreement into `obs`."""
        totals = self._sums.sum(axis=1, keepdims=True)
        means = np.divide(self._sums, totals, out=np.zeros_like(self._sums), where=totals > 0)
        there = (totals > 0)[:, 0]
        backoff = self.rule.backoff
        names: Any
        if backoff is None:
            said = np.where(there, means.argmax(axis=1), -1)
            names = found_among(self.rule.labels, said)
            agreeing = said[self.clusters] == answers.best
        else:
            said, _ = backoff(means)
            names, ids = named(backoff.hierarchy, said, there)
            obs[CONSENSUS_ID] = ids.take(self.clusters, allow_fill=True)
            agreeing = backoff.hierarchy.holds(said[self.clusters], answers.best)
        counted = (self.clusters >= 0) & (answers.best >= 0)
        shares = pd.Series(agreeing[counted]).groupby(self.clusters[counted]).mean().reindex(range(len(self.names)))
        obs[CONSENSUS] = names.take(self.clusters, allow_fill=True)
        obs[AGREEMENT] = np.where(self.clusters >= 0, shares.to_numpy()[self.clusters], np.nan)


def count_clusters(obs: pd.DataFrame, cluster_key: str) -> dict[str, dict[str, Any]]:
    """
    By cluster, how many `cells` it has, what they say together (`answer`), and how many say it (`agreement`); none of
    both where no cell of a cluster has known genes.
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
