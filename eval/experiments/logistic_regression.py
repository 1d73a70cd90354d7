# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Logistic regression on the rows that `mini-stage2.yaml` trains on, for the types of each validation study: alone, and
with the catalogue's marker evidence added to the logarithms of its probabilities.

    python eval/experiments/logistic_regression.py --json eval/results/logistic_regression.json

The rows are balanced: each type of each source has at most 60, and all types have the same weight. Five cells are drawn
from each profile, as for the corpus. A row belongs to the candidate that is its type, or to the nearest one above it.
The regression reads the genes that the study measured, and no source that measured less than half of them. Its settings
are the best on the same studies, all in all, which flatters it.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from modeling_langcell.annotation.calibrate import score_labelled
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.baselines import counts_by_gene, log_normalized, restrict_to_genes
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.task import EvaluationContext, score_predictions
from modeling_langcell.eval.tasks.zero_shot import TASK
from modeling_langcell.eval.training_rows import MOST_ROWS, Rows, read_rows, rows_of, training_files

#: Inverse strengths of the penalty, and weights of the evidence, that are tried.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 1.0)
MARKER_WEIGHTS = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 12.0, 15.0)
#: Logarithm of the probability of a candidate that no row belongs to.
NO_ROWS = -30.0
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def measure(context: EvaluationContext, name: str, sources: list[Rows]) -> dict[tuple[float, float], dict[str, float]]:
    """Returns the scores of the regression on a study, by penalty and weight of the evidence."""
    study = context.study(name)
    cells = context.cells(study)
    scored = score_labelled(context.annotator, cells, study.label_key, **study.read)
    names, truth = np.asarray(scored.labels), scored.truth
    counts, measured = counts_by_gene(cells, context.extractor, study.read)
    rows, labels = rows_of(sources, names, measured)
    scaler = MaxAbsScaler()
    values = scaler.fit_transform(log_normalized(rows))
    of_cells = scaler.transform(log_normalized(restrict_to_genes(counts, measured)))
    found = {}
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000).fit(values, labels)
        logits = np.full((len(truth), len(names)), NO_ROWS)
        logits[:, np.searchsorted(names, fitted.classes_)] = fitted.predict_log_proba(of_cells)
        for weight in MARKER_WEIGHTS:
            probabilities = softmax(logits + weight * scored.evidence, axis=1)
            scores = score_predictions(truth, names, probabilities).scores
            found[penalty, weight] = {metric: scores[metric] for metric in METRICS}
    return found


def main(
    model: Annotated[str, typer.Option(help="Checkpoint, whose genes and markers are read.")] = MINI,
    data: Annotated[Path, typer.Option(help="Folder with validation/ and the training rows.")] = Path("../shared/data"),
    seed: Annotated[int, typer.Option(help="Random seed of the rows.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure a logistic regression on the rows of the training, without and with the marker evidence."""
    context = EvaluationContext(resolve_checkpoint(model), None, data)
    sources = [read_rows(path, context.extractor, seed) for path in training_files(data)]
    found = {name: measure(context, name, sources) for name in TASK.studies}
    results: dict[str, Any] = {}
    for described, weights in (("alone", MARKER_WEIGHTS[:1]), ("with the evidence", MARKER_WEIGHTS[1:])):
        settings = [(penalty, weight) for penalty in PENALTIES for weight in weights]
        best = max(settings, key=lambda one: np.mean([[*of_study[one].values()] for of_study in found.values()]))
        scores = {name: of_study[best] for name, of_study in found.items()}
        results[described] = {"penalty": best[0], "marker_weight": best[1], "scores": scores}
        typer.echo(f"{described}: C {best[0]:g}, marker weight {best[1]:g}")
        for name, by_metric in scores.items():
            typer.echo(f"  {name:22} {' / '.join(f'{value:.3f}' for value in by_metric.values())}")
    write_record(json_file, {"model": model, "seed": seed, "rows": MOST_ROWS, "results": results})


if __name__ == "__main__":
    typer.run(main)
