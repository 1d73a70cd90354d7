# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Few-shot annotation (LangCell, section 4.3): 1, 3, 5, 7 and 9 cells of each type."""

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from modeling_langcell.adaptation.adapt import AdaptationConfig, adapt
from modeling_langcell.eval.baselines import counts_by_gene, log_normalized
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM, Result, Run, Task, score_predictions
from modeling_langcell.io.columns import PROBABILITIES, RUN
from modeling_langcell.io.labels import rank_cells
from modeling_langcell.model.errors import InputError

MOST = 9
#: Largest share of a type's cells that shots are drawn from: the rest is for testing.
LEARNT_SHARE = 3 / 5
PROTOTYPES = "prototypes"
#: Regressions on the model's input, the order of a cell's first genes, and on the counts of these genes: they show how
#: much is lost because the model reads nothing else.
ON_RANKS, ON_READ = "regression_on_ranks", "regression_on_read_genes"
LEARNERS = (ON_RANKS, ON_READ, *CLASSIFIERS)

TASK = Task(
    name="few-shot",
    question="Which of a study's types is a cell, when a few cells of each are known?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc"),
    methods=(LANGCELL, PROTOTYPES, RANDOM, *LEARNERS),
    metrics=("macro_f1", "accuracy", "balanced_accuracy", "ontology_score", "expected_calibration_error"),
    main_score="macro_f1",
    settings=tuple({"shots": shots} for shots in (0, 1, 3, 5, 7, 9)),
    seeded=(LANGCELL, PROTOTYPES, RANDOM, *LEARNERS),
    applies=lambda method, setting: setting["shots"] > 0 or method == LANGCELL,
    adapts=True,
    reads_markers=True,
)


def measure(run: Run) -> Result:
    """
    Scores one run. The cells of fewer shots are among those of more, and all runs are scored on the same cells, which
    no run learns from. Without shots the model has the descriptions only; random weights use the prototypes only.

    Raises:
        InputError: There are fewer than two types, or a type has fewer than two cells: one to learn from, one to test.
    """
    truth, shots = run.truth, run.setting["shots"]
    names, sizes = np.unique(truth, return_counts=True)
    if sizes.min() < 2 or len(names) < 2:
        raise InputError(
            f"{run.study.name}: two types with two cells each are needed; the rarest is {names[sizes.argmin()]!r}."
        )
    train, test = split(truth, shots, run.seed)
    known, others = run.cells[train], run.cells[test].copy()
    if run.method in LEARNERS:
        genes, _ = counts_by_gene(run.cells, run.context.extractor, run.study.read)
        if run.method in (ON_RANKS, ON_READ):
            read = ranks(run)
            genes = read if run.method == ON_RANKS else log_normalized(genes).multiply(read > 0).tocsr()
            classifier = LogisticRegression(max_iter=5000)
        else:
            classifier = run.context.classifiers(run.seed)[run.method]
        classifier.fit(genes[train], truth[train])
        return score_predictions(truth[test], classifier.classes_, classifier.predict_proba(genes[test]))
    if shots == 0:
        annotated = run.annotator.annotate(others, names, alpha=run.context.alpha, **run.study.read)
    else:
        config = AdaptationConfig(
            head="descriptions" if run.method == LANGCELL else "prototypes",
            prototype_weight=1.0 if run.method == RANDOM else None,
            seed=run.seed,
        )
        adapted = adapt(
            run.checkpoint, known, run.study.label_key, config=config, device=run.context.device, **run.study.read
        )
        annotated = adapted.annotator(device=run.context.device).annotate(others, **run.study.read)
    return score_predictions(truth[test], annotated.uns[RUN]["labels"], annotated.obsm[PROBABILITIES].to_numpy())


def ranks(run: Run) -> sp.csr_matrix:
    """Returns `3 / log2(1 + rank)` of the genes that the model reads, `(cells, vocabulary)`, scaled like log counts."""
    ranked = rank_cells(run.cells, np.arange(run.cells.n_obs), run.context.extractor, **run.study.read)
    lengths = ranked.lengths
    place = np.concatenate([np.arange(1, length + 1) for length in lengths])
    rows = np.repeat(np.arange(len(ranked)), lengths)
    shape = (len(ranked), len(run.context.extractor))
    return sp.csr_matrix((3 / np.log2(1 + place), (rows, ranked.token_ids)), shape=shape)


def split(truth: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the shots and of the cells for testing."""
    order = np.random.default_rng(seed).permutation(len(truth))
    by_type = [order[truth[order] == name] for name in np.unique(truth)]
    pools = [cells[: min(MOST, int(LEARNT_SHARE * len(cells)))] for cells in by_type]
    train = np.concatenate([pool[:shots] for pool in pools])
    return np.sort(train), np.setdiff1d(np.arange(len(truth)), np.concatenate(pools))
