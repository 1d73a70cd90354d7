# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Clusters: one label for each cluster of a study, and scores smoothed over neighbours, beside labels of cells."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from modeling_langcell.annotation.calibration import fit
from modeling_langcell.annotation.neighbours import cluster, neighbour_graph
from modeling_langcell.annotation.ontology_backoff import UNKNOWN
from modeling_langcell.eval.task import LANGCELL, Result, Run, Task, metric
from modeling_langcell.io.columns import CELL_TYPE, CLUSTER_ANSWER, CLUSTER_LABEL, CLUSTER_MIXED
from modeling_langcell.ontology import ancestors, find_term, get_term

_STUDIES = ("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc", "pbmc68k_reduced")

TASK = Task(
    name="clusters",
    question="How many cells get the right type by the label of their cluster, and by their neighbours?",
    studies=_STUDIES,
    methods=(LANGCELL,),
    metrics=(
        *("accuracy", "macro_f1", "accuracy_of_vote", "accuracy_of_cells", "macro_f1_of_cells"),
        *("accuracy_smoothed", "macro_f1_smoothed"),
        *("clusters", "purity", "answered", "right", "exact", "mixed_found", "mixed_right"),
    ),
    main_score="accuracy",
    seeded=(LANGCELL,),
    reads_markers=True,
)

_TWO_TYPES = 0.25  # Share of a cluster's cells that must be of a second type for it to hold two.


def measure(run: Run) -> Result:
    """
    Clusters the cells with the seed, and annotates them among the study's types, calibrated on the other studies.

    `accuracy` and `macro_f1` are those of the labels of the clusters; `..._of_vote` takes the commonest label of a
    cluster's cells in its place, `..._of_cells` each cell's own label, and `..._smoothed` its label by smoothed scores.
    `purity` is the share of cells of the commonest type of their cluster, which no labels of clusters exceed.
    `answered` is the share of cells whose cluster has an answer, `right` the share of these whose type is the answer or
    below it, and `exact` the share of all cells whose cluster's answer is a candidate and no broader term. Of the
    clusters in which a quarter of the cells is of a second type, `mixed_found` is the share that is marked; of the
    marked ones, `mixed_right` is the share that are such clusters.
    """
    truth, candidates = run.truth, np.unique(run.truth)
    adata, smoothed = run.cells.copy(), run.cells.copy()
    clusters = cluster(neighbour_graph(run.annotator.chunks(adata, **run.study.read)), run.seed)
    adata.obs["cluster"] = pd.Categorical(clusters)
    with _calibrated_on_others(run):
        run.annotator.annotate(adata, candidates, cluster_key="cluster", **run.study.read)
        run.annotator.annotate(smoothed, candidates, smooth=True, **run.study.read)
    own = adata.obs[CELL_TYPE].astype(str)
    labels = {
        "": adata.obs[CLUSTER_LABEL],
        "_of_vote": own.groupby(clusters).transform(lambda labels: labels.mode()[0]),
        "_of_cells": own,
        "_smoothed": smoothed.obs[CELL_TYPE],
    }
    scores: dict[str, float] = {}
    for name, found in labels.items():
        measured = metric("cell_annotation", references=truth, predictions=found.astype(str).to_numpy())
        scores |= {f"{score}{name}": measured[score] for score in ("accuracy", "macro_f1")}
    return Result(
        {name: float(value) for name, value in (scores | _score_clusters(adata.obs, clusters, truth)).items()}
    )


def _score_clusters(obs: pd.DataFrame, clusters: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Scores the answers of the clusters and the marks on mixed ones."""
    counts = pd.crosstab(clusters, truth).to_numpy()
    answers = obs[CLUSTER_ANSWER].astype(str).to_numpy()
    answered = answers != UNKNOWN
    correct = {
        label: {label, *(get_term(term).name for term in ancestors(find_term(label).id))} for label in set(truth)
    }
    right = np.array([answer in correct[label] for answer, label in zip(answers, truth, strict=True)])
    marked = obs[CLUSTER_MIXED].groupby(clusters).first().to_numpy()
    two_types = np.sort(counts, axis=1)[:, -2] >= _TWO_TYPES * counts.sum(axis=1)
    return {
        "clusters": len(counts),
        "purity": counts.max(axis=1).sum() / len(truth),
        "answered": answered.mean(),
        "exact": np.isin(answers, truth).mean(),
        **({"right": right[answered].mean()} if answered.any() else {}),
        **({"mixed_found": marked[two_types].mean()} if two_types.any() else {}),
        **({"mixed_right": two_types[marked].mean()} if marked.any() else {}),
    }


@contextmanager
def _calibrated_on_others(run: Run) -> Iterator[None]:
    """Calibrates the model on the studies other than the run's, with its own marker weight."""
    config = run.annotator.model.config
    scored = {name: run.context.scores(run.context.study(name)) for name in _STUDIES if name != run.study.name}
    config.calibration = fit(scored, config.alpha, config.marker_weight).to_dict()
    try:
        yield
    finally:
        config.calibration = None
