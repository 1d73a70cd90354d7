# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
CellTypist (Dominguez Conde et al., 2022), trained with its own defaults on the rows that `mini-stage2.yaml` trains on,
for the types of each validation study, beside langcell-mini: the types that they find, and how long they take.

    pip install celltypist "scikit-learn<1.8"
    python eval/experiments/celltypist_models.py --json eval/results/celltypist.json

The rows are those of `logistic_regression.py`: balanced, of the genes that the study measured. CellTypist's majority
vote in its own clusters is compared with the labels that langcell-mini gives to clusters. What is timed is what a user
waits for once everything is loaded: the training and the annotation of one, the annotation of the other.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import numpy as np
import pandas as pd
import typer

from modeling_langcell import LangCellAnnotator
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.baselines import counts_by_gene, log_normalized
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.task import EvaluationContext, metric
from modeling_langcell.eval.tasks.zero_shot import TASK
from modeling_langcell.eval.training_rows import Rows, read_rows, rows_of, training_files
from modeling_langcell.io.columns import CELL_TYPE, CLUSTER_LABEL
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor


def measure(context: EvaluationContext, annotator: LangCellAnnotator, name: str, sources: list[Rows]) -> dict[str, Any]:
    """Returns the scores and seconds of both on a study."""
    import celltypist

    study = context.study(name)
    cells = context.cells(study)
    truth = cells.obs[study.label_key].astype(str).to_numpy()
    names = np.unique(truth)
    counts, measured = counts_by_gene(cells, context.extractor, study.read)
    rows, labels = rows_of(sources, names, measured)
    training = _log_normalized(rows, measured, context.extractor)
    model, training_seconds = _timed(celltypist.train, training, labels, n_jobs=-1)
    found: dict[str, Any] = {"types_without_rows": sorted({*names} - {*labels}), "celltypist": {}, "langcell": {}}
    found["celltypist"]["training_seconds"] = training_seconds
    for way, column in (("cells", "predicted_labels"), ("clusters", "majority_voting")):
        prepared = _log_normalized(counts, measured, context.extractor)
        voted, seconds = _timed(celltypist.annotate, prepared, model=model, majority_voting=way == "clusters")
        scores = _scores(truth, voted.predicted_labels[column].astype(str).to_numpy())
        found["celltypist"][way] = scores | {"seconds": seconds}
    for way, column in (("cells", CELL_TYPE), ("clusters", CLUSTER_LABEL)):
        _, seconds = _timed(annotator.annotate, cells, list(names), cluster=way == "clusters", **study.read)
        found["langcell"][way] = _scores(truth, cells.obs[column].astype(str).to_numpy()) | {"seconds": seconds}
    return found


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
    seed: Annotated[int, typer.Option(help="Random seed of the rows.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure CellTypist, trained on the rows of the training, beside a checkpoint."""
    context = EvaluationContext(resolve_checkpoint(model), None, data)
    sources = [read_rows(path, context.extractor, seed) for path in training_files(data)]
    results, annotator = {}, LangCellAnnotator.from_pretrained(model)
    for name in TASK.studies:
        results[name] = measure(context, annotator, name, sources)
        for method in ("celltypist", "langcell"):
            ways = {way: results[name][method][way] for way in ("cells", "clusters")}
            shown = "  ".join(f"{way} {one['accuracy']:.3f} / {one['macro_f1']:.3f}" for way, one in ways.items())
            typer.echo(f"{name:22} {method:10} {shown}")
    write_record(json_file, {"model": model, "seed": seed, "results": results})


if __name__ == "__main__":
    typer.run(main)
