# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
langcell-mini beside what a user would pick instead: CellTypist (Dominguez Conde et al., 2022) with its own defaults and
a logistic regression of scikit-learn, both trained on the rows that `mini-stage2.yaml` trains on, for the types of each
validation study. The types that they find, and how long they take on the same cells of the same machine.

    pip install celltypist "scikit-learn<1.8"
    python eval/experiments/peers.py --json eval/results/peers.json

The rows are those of `logistic_regression.py`: balanced, of the genes that the study measured; the regression has the
penalty that did best there. CellTypist's majority vote in its own clusters is compared with the labels that
langcell-mini gives to clusters. What is timed is what a user waits for once everything is loaded: the training of one,
and annotation from the counts on, in rounds, of which each measures every method in turn. Ranking genes, the first
step of LangCell and of Geneformer, is timed beside it, with the procedure that both published.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import datasets
import numpy as np
import pandas as pd
import scipy.sparse as sp
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from modeling_langcell import LangCellAnnotator
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.baselines import counts_by_gene, log_normalized
from modeling_langcell.eval.benchmarks.tokenizing_rate import published_tokenize
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.task import EvaluationContext, metric
from modeling_langcell.eval.tasks.zero_shot import TASK
from modeling_langcell.eval.training_rows import Rows, read_rows, rows_of, training_files
from modeling_langcell.io.columns import CELL_TYPE, CLUSTER_LABEL
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor

#: Inverse strength of the regression's penalty.
PENALTY = 0.003
#: Returns the type of each cell.
Method = Callable[[], np.ndarray]


def measure(
    context: EvaluationContext, annotator: LangCellAnnotator, name: str, sources: list[Rows], rounds: int
) -> dict[str, Any]:
    """
    Returns, for a study, the number of `cells` and the seconds of `training`; for each method the scores, the median of
    its `seconds` and those of all rounds; and the same of ranking the genes of the cells.
    """
    study = context.study(name)
    cells = context.cells(study)
    truth = cells.obs[study.label_key].astype(str).to_numpy()
    names = np.unique(truth)
    counts, measured = counts_by_gene(cells, context.extractor, study.read)
    rows, labels = rows_of(sources, names, measured)
    trained, training = {}, {}
    trained["celltypist"], training["celltypist"] = _timed(_train_celltypist, rows, labels, measured, context.extractor)
    trained["regression"], training["regression"] = _timed(_train_regression, rows, labels)

    def celltypist(clusters: bool) -> np.ndarray:
        import celltypist

        prepared = _log_normalized(counts, measured, context.extractor)
        found = celltypist.annotate(prepared, model=trained["celltypist"], majority_voting=clusters)
        return found.predicted_labels["majority_voting" if clusters else "predicted_labels"].astype(str).to_numpy()

    def regression() -> np.ndarray:
        scaler, fitted = trained["regression"]
        return fitted.predict(scaler.transform(log_normalized(counts)))

    def langcell(clusters: bool) -> np.ndarray:
        annotator.annotate(cells, list(names), cluster=clusters, **study.read)
        return cells.obs[CLUSTER_LABEL if clusters else CELL_TYPE].astype(str).to_numpy()

    methods: dict[str, Method] = {
        "celltypist": lambda: celltypist(False),
        "celltypist, clusters": lambda: celltypist(True),
        "regression": regression,
        "langcell": lambda: langcell(False),
        "langcell, clusters": lambda: langcell(True),
    }
    steps = {"langcell": lambda: context.extractor.rank(cells, empty_cells="mark", **study.read)}
    steps["published"] = lambda: _published_ranking(counts, context.extractor)
    found, seconds = _in_turn(methods | {f"ranking, {who}": step for who, step in steps.items()}, rounds)
    timed = {method: {"seconds": float(np.median(times)), "by_round": times} for method, times in seconds.items()}
    return {
        "cells": len(truth),
        "types_without_rows": sorted({*names} - {*labels}),
        "training_seconds": training,
        "methods": {method: _scores(truth, found[method]) | timed[method] for method in methods},
        "ranking": {who: timed[f"ranking, {who}"] for who in steps},
    }


def _in_turn(work: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Does everything once without a clock, and then in rounds; returns the last results, and the seconds."""
    found, seconds = {}, {name: list[float]() for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            found[name], taken = _timed(function)
            if number:
                seconds[name].append(taken)
    return found, seconds


def _train_celltypist(rows, labels: np.ndarray, genes: np.ndarray, extractor: LangCellFeatureExtractor) -> Any:
    import celltypist

    return celltypist.train(_log_normalized(rows, genes, extractor), labels, n_jobs=-1)


def _train_regression(rows, labels: np.ndarray) -> tuple[MaxAbsScaler, LogisticRegression]:
    scaler = MaxAbsScaler()
    fitted = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=2000)
    return scaler, fitted.fit(scaler.fit_transform(log_normalized(rows)), labels)


def _published_ranking(counts: sp.csr_matrix, extractor: LangCellFeatureExtractor) -> datasets.Dataset:
    """Ranks `(cells, ids)` counts by the published procedure, a thousand cells at a time, since it makes them dense."""
    medians = np.array([1.0, 1.0, *extractor.gene_vocabulary["medians"]])
    parts = (counts[start : start + 1000, : len(medians)] for start in range(0, counts.shape[0], 1000))
    ranked = [published_tokenize(part, np.arange(len(medians)), medians, extractor.cls_token_id) for part in parts]
    return datasets.concatenate_datasets(ranked)


def _log_normalized(counts, genes: np.ndarray, extractor: LangCellFeatureExtractor) -> ad.AnnData:
    """Returns cells by measured genes, which have their symbols, as CellTypist reads them."""
    symbols = [extractor.gene_vocabulary["names"][gene - 2].split("|")[0] for gene in genes]
    cells = ad.AnnData(log_normalized(counts)[:, genes].tocsr(), var=pd.DataFrame(index=symbols))
    cells.var_names_make_unique()
    return cells


def _timed(work: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Returns what a function returns, and the seconds that it takes."""
    start = time.perf_counter()
    done = work(*arguments, **options)
    return done, time.perf_counter() - start


def _scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    measured = metric("cell_annotation", references=truth, predictions=found)
    return {name: measured[name] for name in ("accuracy", "macro_f1")}


def main(
    model: Annotated[str, typer.Option(help="Checkpoint.")] = MINI,
    data: Annotated[Path, typer.Option(help="Folder with validation/ and the training rows.")] = Path("../shared/data"),
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 3,
    seed: Annotated[int, typer.Option(help="Random seed of the rows.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure a checkpoint beside CellTypist and a logistic regression, trained on the rows of its training."""
    datasets.disable_progress_bars()
    context = EvaluationContext(resolve_checkpoint(model), None, data)
    sources = [read_rows(path, context.extractor, seed) for path in training_files(data)]
    results, annotator = {}, LangCellAnnotator.from_pretrained(model)
    for name in TASK.studies:
        results[name] = measure(context, annotator, name, sources, rounds)
        for method, one in results[name]["methods"].items():
            rate = results[name]["cells"] / one["seconds"]
            typer.echo(f"{name:22} {method:22} {one['accuracy']:.3f} / {one['macro_f1']:.3f}  {rate:8.0f} cells/s")
    write_record(json_file, {"model": model, "seed": seed, "rounds": rounds, "results": results})


if __name__ == "__main__":
    typer.run(main)
