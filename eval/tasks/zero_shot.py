# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation (LangCell, section 4.2)."""

from collections.abc import Iterable

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
from modeling_langcell.eval.training_rows import rows_of, training_files, types_seen
from modeling_langcell.io.columns import EMBEDDING, PROBABILITIES
from modeling_langcell.ontology import id_of

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
    uses_training_rows=True,
    reads_markers=True,
)


def measure(run: Run) -> Result:
    """Scores annotation among the study's types. Baselines learn from the training's rows of these types."""
    truth, candidates = run.truth, np.unique(run.truth)
    if run.method not in (LANGCELL, RANDOM):
        return add_recall_of_seen_types(run, score_predictions(truth, *predict_from_training_rows(run, candidates)))
    # Random weights are scored by similarity alone: their matching would only cost time.
    alpha = 1.0 if run.method == RANDOM else run.context.alpha
    adata = run.annotator.annotate(run.cells.copy(), candidates, alpha=alpha, **run.study.read)
    found = score_predictions(truth, candidates, adata.obsm[PROBABILITIES].to_numpy())
    if run.method == LANGCELL:
        named = adata.obs["langcell_cell_type"].astype(str).to_numpy()
        found.drawings["umap"] = umap_coordinates(adata.obsm[EMBEDDING], label=truth, prediction=named)
    return add_recall_of_seen_types(run, found)


def add_recall_of_seen_types(run: Run, found: Result) -> Result:
    """Adds the mean recall of types that training showed and of others, if the rows of the training are there."""
    if not training_files(run.context.data):
        return found
    types = types_seen(run.context.training_rows)
    for name, seen in (("recall_seen", True), ("recall_never_seen", False)):
        recalls = [one["recall"] for label, one in found.per_class.items() if (id_of(label) in types) == seen]
        if recalls:
            found.scores[name] = float(np.mean(recalls))
    return found


def predict_from_training_rows(run: Run, candidates: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and probabilities of a baseline that learns from the training rows of the candidates."""
    counts, genes = counts_by_gene(run.cells, run.context.extractor, run.study.read)
    classifier = run.context.classifiers(run.seed)[run.method]
    classifier.fit(*rows_of(run.context.training_rows, candidates, genes))
    return classifier.classes_, classifier.predict_proba(restrict_to_genes(counts, genes))
