# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Zero-shot annotation of held-out studies, beside what a majority vote, a model with random weights and a logistic
regression on the same training cells reach.

    python eval/zero_shot.py --json eval/results/zero_shot_mini.json

Of several models, such as those of several seeds, each and their mean are given: `--model A --model B`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, recall_score

from modeling_langcell import LangCellAnnotator, LangCellFeatureExtractor, LangCellModel
from modeling_langcell.annotation import CELL_TYPE
from modeling_langcell.eval.record import write_record
from modeling_langcell.example import CELL_OPTIONS, LABEL_COLUMN, load_example

SEED = 0
CELL_TYPES = "cell_type"
UNKNOWN = "unknown"


@dataclass
class Study:
    """Cells with known types, and how to read them."""

    name: str
    cells: ad.AnnData
    types: np.ndarray
    options: dict

    @property
    def candidates(self) -> list[str]:
        """The types to choose from: the study's own."""
        return sorted(set(self.types))


def studies(data: Path) -> Iterator[Study]:
    """The validation files, and scanpy's bundled blood cells."""
    for path in sorted((data / "validation").glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        adata = adata[(adata.obs[CELL_TYPES] != UNKNOWN).to_numpy()].copy()
        yield Study(path.stem, adata, adata.obs[CELL_TYPES].astype(str).to_numpy(), {})
    adata = load_example()
    yield Study("pbmc68k_reduced", adata, adata.obs[LABEL_COLUMN].astype(str).to_numpy(), dict(CELL_OPTIONS))


def score(truth: np.ndarray, predicted: np.ndarray, seen: set[str]) -> dict:
    """Accuracy (with a bootstrap interval over cells), balanced accuracy, macro-F1, and recall by type."""
    names = sorted(set(truth))
    over_types = {"labels": names, "average": "macro", "zero_division": 0}
    recalls = dict(zip(names, recall_score(truth, predicted, labels=names, average=None, zero_division=0), strict=True))
    right = truth == predicted
    draws = np.random.default_rng(SEED).choice(right, size=(1000, len(right))).mean(axis=1)
    never = [recall for name, recall in recalls.items() if name not in seen]
    return {
        "accuracy": accuracy_score(truth, predicted),
        "accuracy_95": np.quantile(draws, [0.025, 0.975]).tolist(),
        "balanced_accuracy": recall_score(truth, predicted, **over_types),
        "macro_f1": f1_score(truth, predicted, **over_types),
        "mean_recall_seen": float(np.mean([recall for name, recall in recalls.items() if name in seen] or [np.nan])),
        "mean_recall_never_seen": float(np.mean(never)) if never else None,
        "recall": recalls,
    }


def mean(scores: list[dict]) -> dict:
    """Each figure's mean over several models; the intervals are a model's own."""
    first = scores[0]
    figures = {
        name: float(np.mean([one[name] for one in scores])) for name, value in first.items() if isinstance(value, float)
    }
    return figures | {
        "recall": {name: float(np.mean([one["recall"][name] for one in scores])) for name in first["recall"]}
    }


class TrainingCells:
    """The labelled training cells as counts by gene, for the logistic regression."""

    def __init__(self, folder: Path, extractor: LangCellFeatureExtractor):
        self.extractor = extractor
        counts, types = [], []
        for path in sorted(folder.glob("*.h5ad")):
            adata = ad.read_h5ad(path)
            labels = adata.obs[CELL_TYPES].astype(str).to_numpy()
            if set(labels) != {UNKNOWN}:
                counts.append(self.by_gene(adata[labels != UNKNOWN], {})[0])
                types.append(labels[labels != UNKNOWN])
        self.counts, self.types = sp.vstack(counts, format="csr"), np.concatenate(types)

    def by_gene(self, adata: ad.AnnData, options: dict) -> tuple[sp.csr_matrix, np.ndarray]:
        """Counts `(cells, vocabulary)` and the ids of the genes that the matrix has."""
        source, match = self.extractor.open(adata, use_raw=options.get("use_raw", False))
        matrix = source.rows(0, len(source))
        if options.get("counts") == "log1p":
            matrix = matrix.expm1()
        return self.extractor.by_gene(matrix, match), np.unique(match.token_ids[match.token_ids >= 0])

    def classify(self, study: Study) -> np.ndarray:
        """
        Types of a study's cells by a regression (C 0.1) on log-normalised counts of the shared genes, trained on the
        training cells of the study's types.
        """
        counts, genes = self.by_gene(study.cells, study.options)
        chosen = np.isin(self.types, study.candidates)
        model = LogisticRegression(C=0.1, max_iter=300, random_state=SEED)
        model.fit(_log_normalized(self.counts[chosen][:, genes]), self.types[chosen])
        return model.predict(_log_normalized(counts[:, genes]))


def _log_normalized(counts: sp.csr_matrix) -> sp.csr_matrix:
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return sp.diags(1e4 / np.maximum(totals, 1)).dot(counts).log1p().tocsr()


def main(
    model: Annotated[list[str] | None, typer.Option(help="Checkpoint to judge; of several, the mean.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with train/ and validation/.")] = Path("../shared/data"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the similarity; the checkpoint's own.")] = None,
    study_name: Annotated[list[str] | None, typer.Option("--study", help="Only this study; can be repeated.")] = None,
    baselines: Annotated[bool, typer.Option(help="Run the baselines too.")] = True,
) -> None:
    """Zero-shot accuracy on held-out studies, candidates = the study's types."""
    models = model or ["hub_configs/langcell-mini"]
    annotators = [LangCellAnnotator.from_pretrained(name) for name in models]
    torch.manual_seed(SEED)
    untrained = LangCellAnnotator(LangCellModel(annotators[0].model.config), annotators[0].processor)
    training = TrainingCells(data / "train", annotators[0].processor.feature_extractor)
    seen = set(training.types)
    results = {}
    for study in studies(data):
        if study_name and study.name not in study_name:
            continue
        by_model = []
        for annotator in annotators:
            adata = annotator.annotate(study.cells, study.candidates, alpha=alpha, **study.options)
            by_model.append(score(study.types, adata.obs[CELL_TYPE].astype(str).to_numpy(), seen))
        scores = {"langcell": mean(by_model)}
        if baselines:
            # By similarity alone: an untrained matching head would only cost time.
            guess = untrained.annotate(study.cells, study.candidates, alpha=1.0, **study.options)
            names, sizes = np.unique(study.types, return_counts=True)
            found = {
                "random_weights": guess.obs[CELL_TYPE].astype(str).to_numpy(),
                "majority": np.full(len(study.types), names[sizes.argmax()]),
                "logistic_regression": training.classify(study),
            }
            scores |= {method: score(study.types, predicted, seen) for method, predicted in found.items()}
        results[study.name] = {
            "cells": len(study.types),
            "candidates": study.candidates,
            "never_seen": [name for name in study.candidates if name not in seen],
            "scores": scores,
            "by_model": by_model,
        }
        for method, figures in scores.items():
            print(
                f"{study.name:24} {method:20} accuracy {figures['accuracy']:.3f}  balanced "
                f"{figures['balanced_accuracy']:.3f}  macro-F1 {figures['macro_f1']:.3f}"
            )
    alphas = [annotator.model.config.alpha if alpha is None else alpha for annotator in annotators]
    write_record(json_file, {"models": models, "alpha": alphas, "seed": SEED, "results": results})


if __name__ == "__main__":
    typer.run(main)
