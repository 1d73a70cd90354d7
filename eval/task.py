# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a task is, what it is given to measure, and what it finds."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import evaluate
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from modeling_langcell import LangCellAnnotator, LangCellModel
from modeling_langcell.annotation.calibrate import score_labelled
from modeling_langcell.annotation.calibration import LabelledScores
from modeling_langcell.eval.baselines import baselines, counts_by_gene
from modeling_langcell.eval.studies import UNKNOWN, Study, read_studies
from modeling_langcell.model.errors import InputError

METRICS = Path(__file__).with_name("metrics")
LANGCELL, RANDOM = "langcell", "random_weights"
CLASSIFIERS = ("majority", "logistic_regression", "knn_pca", "gene_name_embeddings")


@dataclass(frozen=True)
class Task:
    """
    A question, what it is asked of, and how the answer is measured. A task's file begins with it; what measures is the
    file's function `measure`, which `run.find_task` adds.

    Args:
        name: As the command has it.
        question: In a sentence.
        studies: Names of the studies that are looked at by default.
        methods: The model, and what it is compared with.
        metrics: What is reported.
        main_score: The one that the table shows first.
        settings: What is varied, `{"shots": 5}`; one empty setting where nothing is.
        drawn: Methods whose result depends on the seed: these are run with several.
        has: Whether a method has a setting: not every one has all.
        adapts: Whether it adapts the checkpoint itself, so that an adapter has no part in it.
        learns_elsewhere: Whether the training cells have a part in it.
        version: Raised when the same cell would be found otherwise: what was found before is then found anew.
        measure: Finds a cell of the table.
    """

    name: str
    question: str
    studies: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    main_score: str
    settings: tuple[Mapping[str, Any], ...] = ({},)
    drawn: tuple[str, ...] = ()
    has: Callable[[str, Mapping[str, Any]], bool] = lambda method, setting: True
    adapts: bool = False
    learns_elsewhere: bool = False
    version: int = 1
    measure: Callable[["Run"], "Result"] | None = None


@dataclass(frozen=True)
class Result:
    """
    What a cell of the table holds.

    Args:
        scores: By metric.
        intervals: Of some of them, the 95% interval by bootstrap over cells.
        per_class: By type, figures of its own.
        drawings: What figures are drawn of, by kind: `confusion`, `reliability`, `roc`, `umap`.
    """

    scores: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    drawings: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluationContext:
    """
    What all cells of the table share: the model, the data, and what is expensive to have twice.

    Args:
        model, adapter: As `LangCellAnnotator.from_pretrained`.
        data: Folder with `train/`, `validation/` and `genes/`.
        studies: Those that are known, by name.
        alpha: Weight of the similarity in zero-shot annotation; the checkpoint's own by default.
        download: Whether studies on the web may be fetched.
        gene_sets: A `.gmt` file, for tasks on pathways.
        device: Where the model computes.
    """

    model: str
    adapter: str | None
    data: Path
    studies: Mapping[str, Study] = field(default_factory=read_studies)
    alpha: float | None = None
    download: bool = False
    gene_sets: Path | None = None
    device: str | None = None
    _cells: dict[str, ad.AnnData] = field(default_factory=dict)
    _scores: dict[str, LabelledScores] = field(default_factory=dict)
    _untrained: dict[int, LangCellAnnotator] = field(default_factory=dict)

    @cached_property
    def annotator(self) -> LangCellAnnotator:
        """
        Raises:
            InputError: No such checkpoint; or an adapter that tells its labels by anything but their descriptions.
        """
        annotator = LangCellAnnotator.from_pretrained(self.model, adapter=self.adapter, device=self.device)
        if annotator.adaptation is not None and annotator.adaptation.head != "descriptions":
            raise InputError(f"Tasks tell labels by descriptions, and {self.adapter or self.model} does not.")
        annotator.model.config.calibration = None  # It may have been fitted on the very cells.
        return annotator

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory:
        return tempfile.TemporaryDirectory(prefix="langcell-")

    def untrained(self, seed: int) -> LangCellAnnotator:
        """The same geometry with random weights."""
        if seed not in self._untrained:
            if not isinstance(self.annotator.model, LangCellModel):
                raise InputError("Tasks need a checkpoint that compares cells with texts, not a classifier.")
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = LangCellModel(self.annotator.model.config)
            self._untrained[seed] = LangCellAnnotator(model, self.annotator.processor, device=self.device)
        return self._untrained[seed]

    def untrained_folder(self, seed: int) -> str:
        """`untrained` as a checkpoint, kept as long as this context."""
        folder = Path(self._scratch.name, str(seed))
        if not folder.exists():
            self.untrained(seed).model.save_pretrained(folder)
            self.untrained(seed).processor.save_pretrained(folder)
        return str(folder)

    @property
    def extractor(self) -> Any:
        return self.annotator.processor.feature_extractor

    def study(self, name: str) -> Study:
        """
        Raises:
            InputError: No such study.
        """
        if name not in self.studies:
            raise InputError(f"No study {name!r}; there are {', '.join(self.studies)}.")
        return self.studies[name]

    def cells(self, study: Study) -> ad.AnnData:
        """The labelled cells of a study; read once."""
        if study.name not in self._cells:
            adata = study.open(self.data, self.download, self.extractor)
            self._cells[study.name] = adata[study.labelled(adata)].copy()
        return self._cells[study.name]

    def scores(self, study: Study) -> LabelledScores:
        """Zero-shot scores of the labelled cells of a study against the types that it has; found once."""
        if study.name not in self._scores:
            self._scores[study.name] = score_labelled(self.annotator, self.cells(study), study.label_key, **study.read)
        return self._scores[study.name]

    def classifiers(self, seed: int) -> dict[str, Any]:
        """The baselines, unfitted."""
        gene_info = self.data / "genes" / "Homo_sapiens.gene_info.gz"
        return baselines(self.extractor, seed, gene_info if gene_info.exists() else None)

    @cached_property
    def training_cells(self) -> tuple[sp.csr_matrix, np.ndarray]:
        """Counts by gene, and types, of the labelled cells that the shipped checkpoint was trained on."""
        counts, types = [], []
        for path in sorted((self.data / "train").glob("*.h5ad")):
            adata = ad.read_h5ad(path)
            labels = adata.obs["cell_type"].astype(str).to_numpy()
            if (known := labels != UNKNOWN).any():
                counts.append(counts_by_gene(adata[known], self.extractor, {})[0])
                types.append(labels[known])
        if not types:
            raise InputError(f"No training cells in {self.data / 'train'}: name the folder with --data.")
        return sp.vstack(counts, format="csr"), np.concatenate(types)


@dataclass(frozen=True)
class Run:
    """
    A cell of the table.

    Args:
        context: What all share.
        study: Whose cells.
        method: Which model or baseline.
        setting: What is varied.
        seed: Of what is drawn.
    """

    context: EvaluationContext
    study: Study
    method: str
    setting: Mapping[str, Any]
    seed: int

    @property
    def cells(self) -> ad.AnnData:
        return self.context.cells(self.study)

    @property
    def annotator(self) -> LangCellAnnotator:
        """The model, or one with random weights, drawn by the seed."""
        return self.context.untrained(self.seed) if self.method == RANDOM else self.context.annotator

    @property
    def checkpoint(self) -> str:
        """As `annotator`, to be adapted."""
        return self.context.untrained_folder(self.seed) if self.method == RANDOM else self.context.model

    @property
    def truth(self) -> np.ndarray:
        """The cells' labels."""
        return self.cells.obs[self.study.label_key].astype(str).to_numpy()


def metric(name: str, **inputs: Any) -> dict[str, Any]:
    """One of the local `evaluate` metrics."""
    return evaluate.load(str(METRICS / name), keep_in_memory=True).compute(**inputs)


def judge(truth: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> Result:
    """
    How well labels were found: accuracy, balanced accuracy, macro-F1 with bootstrap intervals, the ontology's score
    where all labels are its names, calibration, and what confusion and reliability are drawn of.

    Args:
        truth: `(cells,)` the labels.
        labels: `(labels,)` the candidates.
        probabilities: `(cells, labels)`.
        seed: Of the bootstrap.
    """
    found = labels[probabilities.argmax(axis=1)]
    measured = metric("cell_annotation", references=truth, predictions=found)
    scores = {name: measured[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    if (ids := ontology_ids({*truth, *found})) is not None:
        named = {"references": [ids[name] for name in truth], "predictions": [ids[name] for name in found]}
        scores |= metric("ontology_score", **named)
    confidence = probabilities.max(axis=1).clip(0, 1)
    calibration = metric("calibration_error", references=truth == found, confidences=confidence)
    scores["expected_calibration_error"] = calibration["expected_calibration_error"]
    names = sorted({*truth, *found})
    confusion = [[int(((truth == row) & (found == column)).sum()) for column in names] for row in names]
    return Result(
        scores,
        intervals(truth, found, seed),
        measured["per_class"],
        {"confusion": {"labels": names, "cells": confusion}, "reliability": calibration["reliability"]},
    )


def intervals(truth: np.ndarray, found: np.ndarray, seed: int, draws: int = 1000) -> dict[str, list[float]]:
    """95% intervals of accuracy, balanced accuracy and macro-F1, of cells drawn again with replacement."""
    return bootstrap(len(truth), scores_of_rows(truth, found), seed, draws)


def scores_of_rows(truth: np.ndarray, found: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """Rows of cells to their accuracy, balanced accuracy and macro-F1; `truth` and `found` are the labels of all."""
    names = np.unique(truth)
    known, said = (np.searchsorted(names, labels) for labels in (truth, found))
    said = np.where(np.isin(found, names), said, len(names))  # What is no label of the truth is wrong for all.

    def scores(rows: np.ndarray) -> dict[str, float]:
        counts = np.zeros((len(names), len(names) + 1))
        np.add.at(counts, (known[rows], said[rows]), 1)
        right, of_truth, of_said = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)[:-1]
        there = of_truth > 0
        return {
            "accuracy": right.sum() / len(rows),
            "balanced_accuracy": (right[there] / of_truth[there]).mean(),
            "macro_f1": (2 * right[there] / (of_truth + of_said)[there]).mean(),
        }

    return scores


def bootstrap(
    cells: int, scores: Callable[[np.ndarray], Mapping[str, float]], seed: int, draws: int
) -> dict[str, list[float]]:
    """
    95% intervals of what `scores` makes of the rows of `cells` cells drawn again with replacement. A draw that it
    cannot judge, since all cells of a kind are missing, gives NaN and is left out.
    """
    rng = np.random.default_rng(seed)
    drawn = pd.DataFrame([scores(rng.integers(0, cells, cells)) for _ in range(draws)])
    return {str(name): np.nanquantile(values, [0.025, 0.975]).tolist() for name, values in drawn.items()}


def ontology_ids(labels: set[str]) -> dict[str, str] | None:
    """The Cell Ontology's ids of labels, if it knows all of them."""
    from modeling_langcell.ontology import find_term

    try:
        return {label: find_term(label).id for label in labels}
    except InputError:
        return None


def drawing_of_cells(embeds: np.ndarray, seed: int = 0, **columns: np.ndarray) -> dict[str, list]:
    """Two UMAP coordinates of every cell, and labels to colour it by."""
    import scanpy as sc

    space = ad.AnnData(obsm={"X": embeds.astype(np.float32)}, shape=(len(embeds), 0))
    sc.pp.neighbors(space, use_rep="X", metric="cosine", n_neighbors=min(15, len(embeds) - 1), random_state=seed)
    sc.tl.umap(space, random_state=seed)
    x, y = space.obsm["X_umap"].round(2).T.tolist()
    return {"x": x, "y": y, **{name: list(map(str, values)) for name, values in columns.items()}}


__all__ = [
    "CLASSIFIERS",
    "LANGCELL",
    "METRICS",
    "RANDOM",
    "EvaluationContext",
    "Result",
    "Run",
    "Task",
    "bootstrap",
    "drawing_of_cells",
    "intervals",
    "judge",
    "metric",
    "ontology_ids",
    "scores_of_rows",
]
