# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Tasks, the runs that measure them, their results, and the scores that several tasks share."""

import copy
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata as ad
import evaluate
import numpy as np
import pandas as pd
import scanpy as sc
import torch

from modeling_langcell import LangCellAnnotator, LangCellModel
from modeling_langcell.annotation.calibrate import score_labelled
from modeling_langcell.annotation.calibration import LabelledScores
from modeling_langcell.annotation.nearest import connect
from modeling_langcell.eval.baselines import baselines
from modeling_langcell.eval.studies import Study, read_studies
from modeling_langcell.eval.training_rows import Rows, read_rows, training_files
from modeling_langcell.io.atomic import temporary_folder
from modeling_langcell.io.content import content_hash
from modeling_langcell.model.errors import InputError
from modeling_langcell.ontology import find_term

METRICS = Path(__file__).with_name("metrics")
LANGCELL, RANDOM = "langcell", "random_weights"
CLASSIFIERS = ("majority", "logistic_regression", "knn_pca", "gene_name_embeddings")


@dataclass(frozen=True)
class Task:
    """
    Metadata of a task: a question, the studies and methods it is about, and the scores that answer it. A task's file
    begins with it; `run.find_task` adds the file's function `measure`.

    Args:
        name: Name on the command line.
        question: The question, one sentence.
        studies: Names of the default studies.
        methods: The model and what it is compared with.
        metrics: The scores that are reported.
        main_score: The score that the table shows first.
        settings: The settings that are varied, such as `{"shots": 5}`; one empty setting if none is.
        seeded: Methods whose result depends on the seed. They are run with several seeds.
        applies: Returns whether a method is run with a setting.
        adapts: True if the task adapts the checkpoint itself, so that it takes no adapter.
        uses_training_rows: True if the result depends on the rows of the training.
        reads_markers: True if the result depends on the evidence of the candidates' marker genes.
        version: Number that is raised when a change to the task changes its results, which are then measured again.
        measure: Measures one run.
    """

    name: str
    question: str
    studies: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    main_score: str
    settings: tuple[Mapping[str, Any], ...] = ({},)
    seeded: tuple[str, ...] = ()
    applies: Callable[[str, Mapping[str, Any]], bool] = lambda method, setting: True
    adapts: bool = False
    uses_training_rows: bool = False
    reads_markers: bool = False
    version: int = 1
    measure: Callable[["Run"], "Result"] | None = None


@dataclass(frozen=True)
class Result:
    """
    Result of one run.

    Args:
        scores: Scores by metric.
        intervals: 95% intervals of some scores, by bootstrap over cells.
        per_class: Scores of each type.
        drawings: Data of figures by kind: `confusion`, `reliability`, `risk`, `roc`, `umap`.
    """

    scores: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    drawings: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluationContext:
    """
    The model and data that all runs share, and results that are expensive to compute twice.

    Args:
        model, adapter: Checkpoint and adapter, as `LangCellAnnotator.from_pretrained` takes them.
        data: Folder with `train/`, `validation/` and `genes/`.
        studies: Known studies by name.
        alpha: Weight of the similarity in zero-shot annotation; the checkpoint's own by default.
        download: True to allow fetching studies from the web.
        gene_sets: A `.gmt` file for the task on pathways.
        device: Device of the model.
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
    _content: dict[Path, str] = field(default_factory=dict)

    @cached_property
    def annotator(self) -> LangCellAnnotator:
        """
        The checkpoint, with its adapter.

        Raises:
            InputError: The checkpoint does not exist, or its adapter does not use descriptions to tell labels apart.
        """
        annotator = LangCellAnnotator.from_pretrained(self.model, adapter=self.adapter, device=self.device)
        if annotator.adaptation is not None and annotator.adaptation.head != "descriptions":
            raise InputError(
                f"Tasks need an adapter that tells labels apart by descriptions; {self.adapter or self.model} has the "
                f"head {annotator.adaptation.head!r}."
            )
        annotator.model.config.calibration = None  # It may have been fitted on the same cells.
        return annotator

    @cached_property
    def _scratch(self) -> Path:
        """A folder that is kept as long as this context."""
        opened = ExitStack()
        folder = opened.enter_context(temporary_folder())
        weakref.finalize(self, opened.close)
        return folder

    def untrained(self, seed: int) -> LangCellAnnotator:
        """Returns a model of the same geometry with random weights, which reads no markers: it knows nothing at all."""
        if seed not in self._untrained:
            if not isinstance(self.annotator.model, LangCellModel):
                raise InputError("Tasks need a checkpoint that compares cells with texts, not a classifier.")
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                config = copy.deepcopy(self.annotator.model.config)
                config.marker_weight = 0
                model = LangCellModel(config)
            self._untrained[seed] = LangCellAnnotator(model, self.annotator.processor, device=self.device)
        return self._untrained[seed]

    def untrained_folder(self, seed: int) -> str:
        """Saves the model of `untrained` as a checkpoint, which is kept as long as this context."""
        folder = self._scratch / str(seed)
        if not folder.exists():
            self.untrained(seed).model.save_pretrained(folder)
            self.untrained(seed).processor.save_pretrained(folder)
        return str(folder)

    def content_of(self, file: Path) -> str:
        """Returns the hash of a file's content; each file is read once."""
        if file not in self._content:
            self._content[file] = content_hash(file)
        return self._content[file]

    @property
    def extractor(self) -> Any:
        return self.annotator.processor.feature_extractor

    def study(self, name: str) -> Study:
        """
        Returns a study by name.

        Raises:
            InputError: There is no such study.
        """
        if name not in self.studies:
            raise InputError(f"No study {name!r}; there are {', '.join(self.studies)}.")
        return self.studies[name]

    def cells(self, study: Study) -> ad.AnnData:
        """Returns the labelled cells of a study; they are read once."""
        if study.name not in self._cells:
            adata = study.open(self.data, self.download, self.extractor)
            self._cells[study.name] = adata[study.labelled(adata)].copy()
        return self._cells[study.name]

    def scores(self, study: Study) -> LabelledScores:
        """Returns zero-shot scores of a study's labelled cells against its types; they are computed once."""
        if study.name not in self._scores:
            self._scores[study.name] = score_labelled(self.annotator, self.cells(study), study.label_key, **study.read)
        return self._scores[study.name]

    def classifiers(self, seed: int) -> dict[str, Any]:
        """Returns the unfitted baselines."""
        gene_info = self.data / "genes" / "Homo_sapiens.gene_info.gz"
        return baselines(self.extractor, seed, gene_info if gene_info.exists() else None)

    @cached_property
    def training_rows(self) -> list[Rows]:
        """The labelled rows that the shipped checkpoint was trained on, by source."""
        return [read_rows(path, self.extractor, seed=0) for path in training_files(self.data)]


@dataclass(frozen=True)
class Run:
    """
    One run of a task: a method on a study, with a setting and a seed.

    Args:
        context: Model and data that all runs share.
        study: The study.
        method: The model or a baseline.
        setting: The values of the settings that are varied.
        seed: Random seed.
    """

    context: EvaluationContext
    study: Study
    method: str
    setting: Mapping[str, Any]
    seed: int

    @property
    def cells(self) -> ad.AnnData:
        """The labelled cells of the study."""
        return self.context.cells(self.study)

    @property
    def annotator(self) -> LangCellAnnotator:
        """The model, or one with random weights drawn with the seed."""
        return self.context.untrained(self.seed) if self.method == RANDOM else self.context.annotator

    @property
    def checkpoint(self) -> str:
        """The checkpoint of `annotator`, for adaptation."""
        return self.context.untrained_folder(self.seed) if self.method == RANDOM else self.context.model

    @property
    def truth(self) -> np.ndarray:
        """The cells' labels."""
        return self.cells.obs[self.study.label_key].astype(str).to_numpy()


def metric(name: str, **inputs: Any) -> dict[str, Any]:
    """Computes one of the local `evaluate` metrics."""
    return evaluate.load(str(METRICS / name), keep_in_memory=True).compute(**inputs)


def score_predictions(truth: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> Result:
    """
    Scores predicted labels: accuracy, balanced accuracy and macro-F1 with bootstrap intervals, the ontology score if
    the Cell Ontology knows all labels, the calibration error, and the data of the confusion and reliability figures.

    Args:
        truth: `(cells,)` true labels.
        labels: `(labels,)` candidates.
        probabilities: `(cells, labels)` probabilities.
        seed: Seed of the bootstrap.
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
    """Returns 95% bootstrap intervals over cells of accuracy, balanced accuracy and macro-F1."""
    return bootstrap(len(truth), scorer_of_rows(truth, found), seed, draws)


def scorer_of_rows(truth: np.ndarray, found: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """
    Returns a function from rows of cells to their accuracy, balanced accuracy and macro-F1. `truth` and `found` are the
    true and predicted labels of all cells.
    """
    names = np.unique(truth)
    true, predicted = (np.searchsorted(names, labels) for labels in (truth, found))
    predicted = np.where(np.isin(found, names), predicted, len(names))  # Always wrong: no cell has this label.

    def scores(rows: np.ndarray) -> dict[str, float]:
        counts = np.zeros((len(names), len(names) + 1))
        np.add.at(counts, (true[rows], predicted[rows]), 1)
        hits, n_true, n_predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)[:-1]
        present = n_true > 0
        return {
            "accuracy": hits.sum() / len(rows),
            "balanced_accuracy": (hits[present] / n_true[present]).mean(),
            "macro_f1": (2 * hits[present] / (n_true + n_predicted)[present]).mean(),
        }

    return scores


def bootstrap(
    cells: int, scores: Callable[[np.ndarray], Mapping[str, float]], seed: int, draws: int
) -> dict[str, list[float]]:
    """
    Returns 95% intervals of `scores` over rows of `cells` cells drawn with replacement. A draw without any cell of some
    kind may have no score: it gives NaN and is left out.
    """
    rng = np.random.default_rng(seed)
    drawn = pd.DataFrame([scores(rng.integers(0, cells, cells)) for _ in range(draws)])
    return {str(name): np.nanquantile(values, [0.025, 0.975]).tolist() for name, values in drawn.items()}


def ontology_ids(labels: set[str]) -> dict[str, str] | None:
    """Returns the labels' ids in the Cell Ontology, or None if it does not know all of them."""
    try:
        return {label: find_term(label).id for label in labels}
    except InputError:
        return None


def umap_coordinates(embeds: np.ndarray, seed: int = 0, **columns: np.ndarray) -> dict[str, list]:
    """Returns two UMAP coordinates of every cell, and the labels that colour it."""
    space = ad.AnnData(obsm={"X": embeds.astype(np.float32)}, shape=(len(embeds), 0))
    connect(space, min(15, len(embeds) - 1), use_rep="X", metric="cosine", seed=seed)
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
    "intervals",
    "metric",
    "ontology_ids",
    "score_predictions",
    "scorer_of_rows",
    "umap_coordinates",
]
