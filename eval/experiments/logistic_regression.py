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
from typing import Annotated, Any, NamedTuple

import anndata as ad
import numpy as np
import scipy.sparse as sp
import typer
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from modeling_langcell.annotation.calibrate import score_labelled
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.corpus.profiles import draw_cells
from modeling_langcell.corpus.sources import cell_facts
from modeling_langcell.eval.baselines import counts_by_gene, log_normalized, restrict_to_genes
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.task import EvaluationContext, score_predictions
from modeling_langcell.eval.tasks.zero_shot import TASK
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor
from modeling_langcell.ontology import ancestors, depth, id_of

FOLDERS = ("train", "more/cells", "more/profiles")
#: Most rows of one type of one source.
ROWS = 60
#: Inverse strengths of the penalty, and weights of the evidence, that are tried.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 1.0)
MARKER_WEIGHTS = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0)
#: Logarithm of the probability of a candidate that no row belongs to.
NO_ROWS = -30.0
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


class Rows(NamedTuple):
    """Training rows of a source: counts by gene, types by id, and the ids of the genes that were measured."""

    counts: sp.csr_matrix
    types: np.ndarray
    genes: np.ndarray


def read_rows(path: Path, extractor: LangCellFeatureExtractor, seed: int) -> Rows:
    """Reads the training rows of a source."""
    adata = ad.read_h5ad(path)
    facts = cell_facts(adata.obs, path.stem)
    counts, genes = counts_by_gene(adata, extractor, {})
    counts, row_of = draw_cells(counts, facts["profile"].to_numpy(), seed)
    types = facts["cell_type"].to_numpy()[row_of]
    order = np.random.default_rng(seed).permutation(len(types))
    chosen = np.concatenate([order[types[order] == one][:ROWS] for one in np.unique(types)])
    return Rows(counts[chosen], types[chosen], genes)


def nearest_candidate(term: str, candidates: dict[str, str]) -> str:
    """Returns the candidate, of a mapping by id, that is a term or the deepest one above it; empty if there is none."""
    if term in candidates:
        return candidates[term]
    above = ancestors(term) & candidates.keys() if term.startswith("CL:") else ()
    return candidates[max(above, key=depth)] if above else ""


def measure(context: EvaluationContext, name: str, sources: list[Rows]) -> dict[tuple[float, float], dict[str, float]]:
    """Returns the scores of the regression on a study, by penalty and weight of the evidence."""
    study = context.study(name)
    cells = context.cells(study)
    scored = score_labelled(context.annotator, cells, study.label_key, **study.read)
    names, truth = np.asarray(scored.labels), scored.truth
    counts, measured = counts_by_gene(cells, context.extractor, study.read)
    candidates = {str(id_of(label)): str(label) for label in names}
    parts, labels = [], []
    for source in sources:
        own = np.array([nearest_candidate(one, candidates) for one in source.types])
        if (own != "").any() and len(np.intersect1d(source.genes, measured)) >= len(measured) / 2:
            parts.append(source.counts[own != ""])
            labels += own[own != ""].tolist()
    scaler = MaxAbsScaler()
    values = scaler.fit_transform(log_normalized(restrict_to_genes(sp.vstack(parts).tocsr(), measured)))
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
    paths = sorted(path for folder in FOLDERS for path in (data / folder).glob("*.h5ad"))
    sources = [read_rows(path, context.extractor, seed) for path in paths]
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
    write_record(json_file, {"model": model, "seed": seed, "rows": ROWS, "results": results})


if __name__ == "__main__":
    typer.run(main)
