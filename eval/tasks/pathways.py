# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pathway identification: multilabel prediction of the gene sets that a cell expresses highly."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.multiclass import OneVsRestClassifier

from modeling_langcell.adaptation.adapt import adapt
from modeling_langcell.adaptation.config import AdaptationConfig, Method
from modeling_langcell.eval.baselines import counts_by_gene, log_normalized
from modeling_langcell.eval.task import LANGCELL, RANDOM, Result, Run, Task, bootstrap
from modeling_langcell.io.columns import PROBABILITIES
from modeling_langcell.io.documents import read_text
from modeling_langcell.model.errors import InputError

EXAMPLE = Path(__file__).with_name("example_pathways.gmt")
PATHWAYS = "pathways"
TRAIN_SHARE = 0.3
HIGHEST = 1 / 4
LEAST_GENES, LEAST_CELLS = 5, 10
EPOCHS = 10
#: Training of the encoder: by LoRA, or none.
ADAPTATION: dict[str, Method] = {LANGCELL: "lora", "frozen": "frozen", RANDOM: "frozen"}
LEARNERS = ("majority", "logistic_regression")

TASK = Task(
    name="pathways",
    question="Which gene sets does a cell express highly?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card"),
    methods=(*ADAPTATION, *LEARNERS),
    metrics=("macro_auroc", "macro_average_precision", "macro_f1"),
    main_score="macro_auroc",
    seeded=(*ADAPTATION, *LEARNERS),
    adapts=True,
)


def measure(run: Run) -> Result:
    """
    Trains on 30% of the cells and scores the others. The targets are a function of counts, which the logistic
    regression (one set against the rest) sees and the model, which reads ranks, does not: the regression has an
    advantage.
    """
    targets = find_targets(run)
    has = targets.to_numpy()
    train, test = train_test_split(np.arange(len(has)), train_size=TRAIN_SHARE, random_state=run.seed)
    if run.method in LEARNERS:
        counts, _ = counts_by_gene(run.cells, run.context.extractor, run.study.read)
        classifier = OneVsRestClassifier(run.context.classifiers(run.seed)[run.method])
        found = classifier.fit(counts[train], has[train].astype(int)).predict_proba(counts[test])
    else:
        cells = run.cells.copy()
        cells.obsm[PATHWAYS] = targets
        adapted = adapt(
            run.checkpoint,
            cells[train],
            PATHWAYS,
            config=AdaptationConfig(head="classes", method=ADAPTATION[run.method], epochs=EPOCHS, seed=run.seed),
            device=run.context.device,
            **run.study.read,
        )
        annotator = adapted.annotator(device=run.context.device)
        found = annotator.annotate(cells[test].copy(), **run.study.read).obsm[PROBABILITIES].to_numpy()
    return score_gene_sets(has[test], found, list(targets.columns), run.seed)


def find_targets(run: Run) -> pd.DataFrame:
    """
    Returns `(cells, sets)` booleans, one column per gene set: true for cells in the top quarter of the study by the
    set's score (`scanpy.tl.score_genes` of log-normalised counts) that also score above 0, the score of random genes of
    similar expression. Sets with fewer than 5 genes in the study, or fewer than 10 such cells, are left out.

    Raises:
        InputError: Fewer than two sets are left.
    """
    extractor, file = run.context.extractor, run.context.gene_sets or EXAMPLE
    counts, there = counts_by_gene(run.cells, extractor, run.study.read)
    space = ad.AnnData(log_normalized(counts)[:, there], obs=pd.DataFrame(index=run.cells.obs_names))
    space.var_names = there.astype(str)
    targets = pd.DataFrame(index=run.cells.obs_names)
    for name, genes in read_gene_sets(file).items():
        known = np.intersect1d(extractor.match_genes(genes).token_ids, there)
        if len(known) < LEAST_GENES:
            continue
        sc.tl.score_genes(space, known.astype(str), ctrl_as_ref=False, random_state=0)
        score = space.obs["score"].to_numpy()
        has = (score > 0) & (score >= np.quantile(score, 1 - HIGHEST))
        if has.sum() >= LEAST_CELLS:
            targets[name] = has
    if targets.shape[1] < 2:
        raise InputError(
            f"Fewer than two sets of {file} have {LEAST_GENES} genes and {LEAST_CELLS} cells in {run.study.name}: "
            "name a different file with --gene-sets."
        )
    return targets


def read_gene_sets(file: Path) -> dict[str, list[str]]:
    """
    Reads the gene sets of a `.gmt` file: on each line a name, a description and genes, separated by tabs.

    Raises:
        InputError: The file cannot be read, or a line is malformed.
    """
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = (part.strip() for part in line.split("\t"))
        genes = [gene for gene in rest[1:] if gene]
        if not name or not genes or name in sets:
            raise InputError(f"{file}, line {number}: give a new name, a description and genes, separated by tabs.")
        sets[name] = genes
    return sets


def score_gene_sets(has: np.ndarray, found: np.ndarray, names: list[str], seed: int = 0) -> Result:
    """
    Returns AUROC, average precision and F1 at 0.5 of every set, their means, and the bootstrap interval of the mean
    AUROC.

    Args:
        has: `(cells, sets)` booleans.
        found: `(cells, sets)` probabilities.
        names: Names of the sets.
        seed: Seed of the bootstrap.
    """
    per_set = {
        name: {
            "auroc": float(roc_auc_score(has[:, i], found[:, i])),
            "average_precision": float(average_precision_score(has[:, i], found[:, i])),
            "f1": float(f1_score(has[:, i], found[:, i] >= 0.5, zero_division=0)),
            "share": float(has[:, i].mean()),
        }
        for i, name in enumerate(names)
    }
    means = {f"macro_{score}": score for score in ("auroc", "average_precision", "f1")}
    scores = {macro: float(np.mean([one[score] for one in per_set.values()])) for macro, score in means.items()}

    def macro_auroc(rows: np.ndarray) -> dict[str, float]:
        there = has[rows].any(axis=0) & ~has[rows].all(axis=0)
        areas = [roc_auc_score(has[rows, i], found[rows, i]) for i in np.flatnonzero(there)]
        return {"macro_auroc": float(np.mean(areas)) if areas else np.nan}

    return Result(scores, bootstrap(len(has), macro_auroc, seed, draws=200), per_set)
