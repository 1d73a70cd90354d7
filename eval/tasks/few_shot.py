# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Few-shot annotation (LangCell, section 4.3): 1, 3, 5, 7 and 9 cells of each type."""

import numpy as np

from modeling_langcell.adaptation import AdaptationConfig, adapt
from modeling_langcell.annotation import PROBABILITIES
from modeling_langcell.eval.baselines import counts_by_gene
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM, Cell, Found, Task, judge

MOST = 9
#: Of a type with few cells, so much at most is learnt from: the rest is what it is judged by.
LEARNT_SHARE = 3 / 5
PROTOTYPES = "prototypes"


def measure(cell: Cell) -> Found:
    """
    The cells of fewer shots are among those of more, and all are judged by the same cells, those that nobody learns
    from. Without shots the model is told the descriptions alone; random weights learn as prototypes do.
    """
    truth, shots = cell.truth, cell.setting["shots"]
    learnt, judged = draw(truth, shots, cell.seed)
    labels = np.unique(truth)
    known, others = cell.cells[learnt], cell.cells[judged].copy()
    if cell.method in CLASSIFIERS:
        counts, _ = counts_by_gene(cell.cells, cell.bench.extractor, cell.study.read)
        classifier = cell.bench.classifiers(cell.seed)[cell.method].fit(counts[learnt], truth[learnt])
        return judge(truth[judged], classifier.classes_, classifier.predict_proba(counts[judged]))
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
    methods=(LANGCELL, PROTOTYPES, RANDOM, *CLASSIFIERS),
    metrics=("macro_f1", "accuracy", "balanced_accuracy", "ontology_score", "expected_calibration_error"),
    main_score="macro_f1",
    measure=measure,
    settings=tuple({"shots": shots} for shots in (0, 1, 3, 5, 7, 9)),
    drawn=(LANGCELL, PROTOTYPES, RANDOM, *CLASSIFIERS),
    has=lambda method, setting: setting["shots"] > 0 or method == LANGCELL,
)
