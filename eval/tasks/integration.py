# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Batch integration: scIB's measures of whether embeddings keep types apart and batches together."""

import logging

import anndata as ad
import numpy as np
import scib_metrics as scib
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from modeling_langcell.eval.baselines import counts_by_gene, log_normalized
from modeling_langcell.eval.task import LANGCELL, RANDOM, Result, Run, Task, umap_coordinates
from modeling_langcell.io.columns import EMBEDDING
from modeling_langcell.model.errors import InputError

scib.settings.verbosity = logging.WARNING  # It reports every label that occurs in one batch only.

MOST_CELLS = 3000
COMPONENTS = 50
PRINCIPAL = "pca"
BIO = ("nmi", "ari", "silhouette_label", "clisi")
BATCH = ("ilisi", "kbet", "graph_connectivity", "bras")

TASK = Task(
    name="integration",
    question="Do embeddings keep types apart, and batches of a type together?",
    studies=("sc_mixology_lines", "zheng_sorted"),
    methods=(LANGCELL, RANDOM, PRINCIPAL),
    metrics=("total", "bio_conservation", "batch_correction", *BIO, *BATCH),
    main_score="total",
    seeded=(LANGCELL, RANDOM, PRINCIPAL),
)


def measure(run: Run) -> Result:
    """
    Scores the embeddings of at most 3,000 cells of a study with batches. No method gets the batches or the labels of
    these cells; `pca` does no integration and is the baseline to beat.

    Raises:
        InputError: The study has no batches, or no label occurs in two batches.
    """
    batch_key = run.study.batch_key
    if batch_key is None:
        raise InputError(f"{run.study.name} has no batches to integrate: name their column as batch_key.")
    rows = np.random.default_rng(run.seed).permutation(run.cells.n_obs)[:MOST_CELLS]
    cells = run.cells[np.sort(rows)].copy()
    labels, batches = (cells.obs[key].astype(str).to_numpy() for key in (run.study.label_key, batch_key))
    if not any(len(set(batches[labels == label])) > 1 for label in set(labels)):
        raise InputError(f"No label of {run.study.name} is in two batches: batches and types cannot be told apart.")
    if run.method == PRINCIPAL:
        embeds = principal_components(run, cells, batches)
    else:
        embeds = run.annotator.embed(cells, **run.study.read).obsm[EMBEDDING]
    drawn = run.method != RANDOM and run.seed == 0  # Figures show one seed.
    drawings = {"umap": umap_coordinates(embeds, label=labels, batch=batches)} if drawn else {}
    return Result(integration_scores(embeds, labels, batches), drawings=drawings)


def principal_components(run: Run, cells: ad.AnnData, batches: np.ndarray) -> np.ndarray:
    """Returns up to 50 components, `(cells, components)`, of log-normalised counts of the genes seen in every batch."""
    counts, _ = counts_by_gene(cells, run.context.extractor, run.study.read)
    seen = np.all([counts[batches == batch].getnnz(axis=0) > 0 for batch in np.unique(batches)], axis=0)
    values = log_normalized(counts[:, seen])
    components = min(COMPONENTS, min(values.shape) - 1)
    return PCA(components, svd_solver="arpack", random_state=run.seed).fit_transform(values)


def integration_scores(embeds: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> dict[str, float]:
    """
    Returns the scIB metrics (Luecken et al. 2022) with the settings of scib-metrics' benchmark, each from 0 to about 1,
    higher is better; the means of both groups; and `total`, 0.6 of bio conservation and 0.4 of batch correction. iLISI,
    kBET and BRAS measure how well batches mix, graph connectivity whether a label's cells are connected.

    Args:
        embeds: `(cells, width)` embeddings.
        labels, batches: `(cells,)` labels and batches.
    """
    distances, indices = NearestNeighbors(n_neighbors=min(90, len(embeds))).fit(embeds).kneighbors(embeds)

    def nearest(number: int) -> NeighborsResults:
        return NeighborsResults(indices[:, :number], distances[:, :number])

    found = {
        **scib.nmi_ari_cluster_labels_kmeans(embeds, labels),
        "silhouette_label": scib.silhouette_label(embeds, labels),
        "clisi": scib.clisi_knn(nearest(90), labels),
        "ilisi": scib.ilisi_knn(nearest(90), batches),
        "kbet": scib.kbet_per_label(nearest(50), batches, labels),
        "graph_connectivity": scib.graph_connectivity(nearest(15), labels),
        "bras": scib.bras(embeds, labels, batches),
    }
    scores = {name: float(value) for name, value in found.items()}
    scores["bio_conservation"] = float(np.mean([scores[name] for name in BIO]))
    scores["batch_correction"] = float(np.mean([scores[name] for name in BATCH]))
    scores["total"] = 0.6 * scores["bio_conservation"] + 0.4 * scores["batch_correction"]
    return scores
