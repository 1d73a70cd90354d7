# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Retrieval between cells and texts, both ways (LangCell, section 4.5)."""

import numpy as np

from modeling_langcell.eval.task import LANGCELL, RANDOM, Result, Run, Task, bootstrap, metric
from modeling_langcell.io.columns import EMBEDDING

TASK = Task(
    name="retrieval",
    question="Which text describes a cell, and which cell fits a text?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc"),
    methods=(LANGCELL, RANDOM),
    metrics=(
        *("cell_to_text_r1", "cell_to_text_r5", "cell_to_text_r10", "cell_to_text_mean_rank"),
        *("text_to_cell_r1", "text_to_cell_r5", "text_to_cell_r10", "text_to_cell_mean_rank"),
        "chance_cell_to_text_r1",
    ),
    main_score="cell_to_text_r1",
    seeded=(RANDOM,),
)


def measure(run: Run) -> Result:
    """
    Scores retrieval among the descriptions of the types of all the task's studies; for another study, among the
    descriptions of its own types.
    """
    names = np.unique(types_of_all(run) if run.study.name in TASK.studies else run.truth)
    annotator = run.annotator
    cells = annotator.embed(run.cells.copy(), **run.study.read).obsm[EMBEDDING]
    similarities = cells @ annotator.embed_texts(annotator.texts_of(names).values()).T
    own = np.searchsorted(names, run.truth)
    found = metric("cell_text_retrieval", references=own, similarities=similarities)
    nearest = similarities >= similarities[np.arange(len(own)), own][:, None]
    first = nearest.sum(axis=1) == 1
    drawn = bootstrap(len(own), lambda rows: {"cell_to_text_r1": float(first[rows].mean())}, run.seed, draws=1000)
    return Result(found, drawn)


def types_of_all(run: Run) -> list[str]:
    """Returns the sorted types of all the task's studies."""
    types: set[str] = set()
    for study in map(run.context.study, TASK.studies):
        types |= set(run.context.cells(study).obs[study.label_key].astype(str))
    return sorted(types)
