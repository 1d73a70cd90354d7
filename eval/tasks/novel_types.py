# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Novel types (LangCell, section 4.2): separates cells of types that are not among the candidates from the others."""

import numpy as np
from sklearn.metrics import roc_auc_score

from modeling_langcell.eval.task import LANGCELL, RANDOM, Result, Run, Task, bootstrap, metric
from modeling_langcell.eval.tasks.zero_shot import predict_from_training_rows
from modeling_langcell.io.columns import NOVELTY
from modeling_langcell.model.errors import InputError

TASK = Task(
    name="novel-types",
    question="Is a cell of a type that nobody thought of?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card"),
    methods=(LANGCELL, RANDOM, "logistic_regression", "knn_pca", "gene_name_embeddings"),
    metrics=("auroc", "average_precision", "novel_share"),
    main_score="auroc",
    seeded=(RANDOM,),
    version=2,
    uses_training_rows=True,
)


def measure(run: Run) -> Result:
    """
    Scores novelty. Every second type of the study, by name, is left out of the candidates, and then the others, so that
    each cell is judged once as novel and once as known. Novelty is that of annotation, or 1 minus the probability of
    the most probable candidate for a baseline.

    Raises:
        InputError: The study has one type only.
    """
    types = np.unique(run.truth)
    if len(types) < 2:
        raise InputError(f"{run.study.name} has one type only, and none to leave out. Choose a different study.")
    halves = [types[::2], types[1::2]]
    novel = np.concatenate([~np.isin(run.truth, known) for known in halves])
    novelty = np.concatenate([novelty_of(run, known) for known in halves])
    found = metric("novelty", references=novel, scores=novelty)
    roc = found.pop("roc")
    cells = len(run.truth)

    def area(rows: np.ndarray) -> dict[str, float]:
        twice = np.concatenate([rows, rows + cells])
        return {"auroc": float(roc_auc_score(novel[twice], novelty[twice]))}

    scores = {**found, "novel_share": float(novel.mean())}
    return Result(scores, bootstrap(cells, area, run.seed, draws=1000), drawings={"roc": roc})


def novelty_of(run: Run, known: np.ndarray) -> np.ndarray:
    """Returns the `(cells,)` novelty of cells among the candidates `known`."""
    if run.method in (LANGCELL, RANDOM):
        adata = run.annotator.annotate(run.cells.copy(), known, alpha=1.0, **run.study.read)
        return adata.obs[NOVELTY].to_numpy(dtype=float)
    return 1 - predict_from_training_rows(run, known)[1].max(axis=1)
