# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation (LangCell, section 4.2)."""

import numpy as np

from modeling_langcell.eval.baselines import CELLTYPIST, counts_by_gene, has_celltypist, restrict_to_genes
from modeling_langcell.eval.task import (
    CLASSIFIERS,
    LANGCELL,
    RANDOM,
    Result,
    Run,
    Task,
    score_predictions,
    umap_coordinates,
)
from modeling_langcell.io.columns import EMBEDDING, PROBABILITIES

TASK = Task(
    name="zero-shot",
    question="Which of a study's types is a cell, when nothing but their descriptions is known?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc", "pbmc68k_reduced"),
    methods=(LANGCELL, RANDOM, *CLASSIFIERS, *([CELLTYPIST] if has_celltypist() else [])),
    metrics=(
        *("accuracy", "balanced_accuracy", "macro_f1", "recall_seen", "recall_never_seen"),
        *("ontology_score", "expected_calibration_error"),
    ),
    main_score="macro_f1",
    seeded=(RANDOM,),
    uses_training_cells=True,
    reads_markers=True,
)


def measure(run: Run) -> Result:
    """Scores annotation among the study's types. Baselines learn from the labelled training cells of these types."""
    truth, candidates = run.truth, np.unique(run.truth)
    if run.method not in (LANGCELL, RANDOM):
        return add_recall_of_seen_types(run, score_predictions(truth, *predict_from_training_cells(run, candidates)))
    # Random weights are scored by similarity alone: their matching would only cost time.
    alpha = 1.0 if run.method == RANDOM else run.context.alpha
    adata = run.annotator.annotate(run.cells.copy(), candidates, alpha=alpha, **run.study.read)
    found = score_predictions(truth, candidates, adata.obsm[PROBABILITIES].to_numpy())
    if run.method == LANGCELL:
        named = adata.obs["langcell_cell_type"].astype(str).to_numpy()
        found.drawings["umap"] = umap_coordinates(adata.obsm[EMBEDDING], label=truth, prediction=named)
    return add_recall_of_seen_types(run, found)


def add_recall_of_seen_types(run: Run, found: Result) -> Result:
    """Adds the mean recall of types with and without training cells, if the training cells are there."""
    if not (run.context.data / "train").is_dir():
        return found
    _, types = run.context.training_cells
    for name, seen in (("recall_seen", True), ("recall_never_seen", False)):
        recalls = [one["recall"] for label, one in found.per_class.items() if (label in types) == seen]
        if recalls:
            found.scores[name] = float(np.mean(recalls))
    return found


def predict_from_training_cells(run: Run, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and probabilities of a baseline that learns from the training cells of the candidates."""
    counts, genes = counts_by_gene(run.cells, run.context.extractor, run.study.read)
    training, types = run.context.training_cells
    chosen = np.isin(types, candidates)
    classifier = run.context.classifiers(run.seed)[run.method]
    classifier.fit(restrict_to_genes(training[chosen], genes), types[chosen])
    return classifier.classes_, classifier.predict_proba(restrict_to_genes(counts, genes))
