# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Few-shot annotation (LangCell, section 4.3): 1, 3, 5, 7 and 9 cells of each type."""

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from modeling_langcell.adaptation import AdaptationConfig, adapt
from modeling_langcell.annotation import PROBABILITIES
from modeling_langcell.eval.baselines import counts_by_gene
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM, Cell, Found, Task, judge
from modeling_langcell.labelled_cells import rank_cells

MOST = 9
#: Of a type with few cells, so much at most is learnt from: the rest is what it is judged by.
LEARNT_SHARE = 3 / 5
PROTOTYPES = "prototypes"
#: What a regression makes of what the model reads: the order of a cell's genes, without their counts.
ON_RANKS = "regression_on_ranks"


def measure(cell: Cell) -> Found:
    """
    The cells of fewer shots are among those of more, and all are judged by the same cells, those that nobody learns
    from. Without shots the model is told the descriptions alone; random weights learn as prototypes do.
    """
    truth, shots = cell.truth, cell.setting["shots"]
    learnt, judged = draw(truth, shots, cell.seed)
    labels = np.unique(truth)
    known, others = cell.cells[learnt], cell.cells[judged].copy()
    if cell.method in (ON_RANKS, *CLASSIFIERS):
        if cell.method == ON_RANKS:
            genes, classifier = ranks(cell), LogisticRegression(max_iter=5000)
        else:
            genes, _ = counts_by_gene(cell.cells, cell.bench.extractor, cell.study.read)
            classifier = cell.bench.classifiers(cell.seed)[cell.method]
        classifier.fit(genes[learnt], truth[learnt])
        return judge(truth[judged], classifier.classes_, classifier.predict_proba(genes[judged]))
    if shots == 0:
        annotated = cell.bench.annotator.annotate(others, labels, alpha=cell.bench.alpha, **cell.study.read)
    else:
        checkpoint = cell.bench.untrained_folder if cell.method == RANDOM else cell.bench.model
        config = AdaptationConfig(head="descriptions" if cell.method == LANGCELL else "prototypes", seed=cell.seed)
        adapted = adapt(
            checkpoint, known, cell.study.label_key, config=config, device=cell.bench.device, **cell.study.read
        )
        annotated = adapted.annotator().annotate(others, **cell.study.read)
    return judge(truth[judged], labels, annotated.obsm[PROBABILITIES].to_numpy())


def ranks(cell: Cell) -> sp.csr_matrix:
    """`(cells, vocabulary)`: of the genes that the model reads, `3 / log2(1 + rank)`, on the scale of log counts."""
    ranked = rank_cells(cell.cells, np.arange(cell.cells.n_obs), cell.bench.extractor, **cell.study.read)
    lengths = ranked.lengths
    place = np.concatenate([np.arange(1, length + 1) for length in lengths])
    rows = np.repeat(np.arange(len(ranked)), lengths)
    shape = (len(ranked), len(cell.bench.extractor))
    return sp.csr_matrix((3 / np.log2(1 + place), (rows, ranked.token_ids)), shape=shape)


def draw(truth: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells learnt from, and those judged by."""
    order = np.random.default_rng(seed).permutation(len(truth))
    by_type = [order[truth[order] == name] for name in np.unique(truth)]
    pools = [cells[: min(MOST, int(LEARNT_SHARE * len(cells)))] for cells in by_type]
    learnt = np.concatenate([pool[:shots] for pool in pools])
    return np.sort(learnt), np.setdiff1d(np.arange(len(truth)), np.concatenate(pools))


TASK = Task(
    name="few-shot",
    question="Which of a study's types is a cell, when a few cells of each are known?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc"),
    methods=(LANGCELL, PROTOTYPES, RANDOM, ON_RANKS, *CLASSIFIERS),
    metrics=("macro_f1", "accuracy", "balanced_accuracy", "ontology_score", "expected_calibration_error"),
    main_score="macro_f1",
    measure=measure,
    settings=tuple({"shots": shots} for shots in (0, 1, 3, 5, 7, 9)),
    drawn=(LANGCELL, PROTOTYPES, RANDOM, ON_RANKS, *CLASSIFIERS),
    has=lambda method, setting: setting["shots"] > 0 or method == LANGCELL,
)
