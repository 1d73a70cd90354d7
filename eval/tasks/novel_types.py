# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Novel types (LangCell, section 4.2): separates cells of types that no training cell had from the known ones."""

import numpy as np
from sklearn.metrics import roc_auc_score

from modeling_langcell.eval.task import LANGCELL, RANDOM, Result, Run, Task, bootstrap, metric
from modeling_langcell.eval.tasks.zero_shot import predict_from_training_cells
from modeling_langcell.io.columns import EMBEDDING
from modeling_langcell.model.errors import InputError

TASK = Task(
    name="novel-types",
    question="Is a cell of a type that no training cell had?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card"),
    methods=(LANGCELL, RANDOM, "logistic_regression", "knn_pca", "gene_name_embeddings"),
    metrics=("auroc", "average_precision", "novel_share"),
    main_score="auroc",
    seeded=(RANDOM,),
    uses_training_cells=True,
)


def measure(run: Run) -> Result:
    """
    Scores novelty: the negative similarity of a cell to the most similar description of the study's known types; for a
    baseline, the negative probability of the most probable known type.

    Raises:
        InputError: The study has no cells of a type with training cells, or none of a type without.
    """
    _, seen = run.context.training_cells
    known = np.intersect1d(run.truth, seen)
    novel = ~np.isin(run.truth, known)
    if not len(known) or not novel.any():
        raise InputError(
            f"{run.study.name} needs cells of types with training cells and of types without. Choose a different study."
        )
    if run.method in (LANGCELL, RANDOM):
        annotator = run.annotator
        cells = annotator.embed(run.cells.copy(), **run.study.read).obsm[EMBEDDING]
        max_cosine = (cells @ annotator.embed_texts(annotator.texts_of(known).values()).T).max(axis=1)
    else:
        max_cosine = predict_from_training_cells(run, known)[1].max(axis=1)
    found = metric("novelty", references=novel, scores=-max_cosine)
    roc = found.pop("roc")

    def area(rows: np.ndarray) -> dict[str, float]:
        both = 0 < novel[rows].sum() < len(rows)
        return {"auroc": float(roc_auc_score(novel[rows], -max_cosine[rows])) if both else np.nan}

    scores = {**found, "novel_share": float(novel.mean())}
    return Result(scores, bootstrap(len(novel), area, run.seed, draws=1000), drawings={"roc": roc})
