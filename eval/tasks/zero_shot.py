# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation (LangCell, section 4.2)."""

import numpy as np

from modeling_langcell.eval.baselines import CELLTYPIST, counts_by_gene, has_celltypist, only_genes
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM, Result, Run, Task, drawing_of_cells, judge
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
    drawn=(RANDOM,),
    learns_elsewhere=True,
)


def measure(cell: Run) -> Result:
    """The candidates are the study's types. Baselines learn from the labelled training cells of these types."""
    truth, candidates = cell.truth, np.unique(cell.truth)
    if cell.method not in (LANGCELL, RANDOM):
        return seen_apart(cell, judge(truth, *learnt_elsewhere(cell, candidates)))
    # Of random weights the similarity alone is asked: their matching would only cost time.
    alpha = 1.0 if cell.method == RANDOM else cell.context.alpha
    adata = cell.annotator.annotate(cell.cells.copy(), candidates, alpha=alpha, **cell.study.read)
    found = judge(truth, candidates, adata.obsm[PROBABILITIES].to_numpy())
    if cell.method == LANGCELL:
        named = adata.obs["langcell_cell_type"].astype(str).to_numpy()
        found.drawings["umap"] = drawing_of_cells(adata.obsm[EMBEDDING], label=truth, prediction=named)
    return seen_apart(cell, found)


def seen_apart(cell: Run, found: Result) -> Result:
    """Adds the mean recall of the types that training cells had, and of those that none had, where they are at hand."""
    if not (cell.context.data / "train").is_dir():
        return found
    _, types = cell.context.training_cells
    for name, seen in (("recall_seen", True), ("recall_never_seen", False)):
        recalls = [one["recall"] for label, one in found.per_class.items() if (label in types) == seen]
        if recalls:
            found.scores[name] = float(np.mean(recalls))
    return found


def learnt_elsewhere(cell: Run, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a baseline trained on the training cells of the candidates says of a study: labels, probabilities."""
    counts, genes = counts_by_gene(cell.cells, cell.context.extractor, cell.study.read)
    training, types = cell.context.training_cells
    chosen = np.isin(types, candidates)
    classifier = cell.context.classifiers(cell.seed)[cell.method]
    classifier.fit(only_genes(training[chosen], genes), types[chosen])
    return classifier.classes_, classifier.predict_proba(only_genes(counts, genes))
