# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Calibrates a checkpoint on cells whose types are known."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from transformers import AutoConfig

from ..checkpoint.builtin import resolve_checkpoint
from ..checkpoint.repository import fetch
from ..io.atomic import atomic_folder, require_new_folder
from ..io.h5ad import open_cells
from ..io.labels import rank_cells, read_labels
from ..model.errors import InputError
from ..model.modeling_langcell import LangCellModel
from ..model.zero_shot import DescriptionScorer, read_cells
from .annotator import LangCellAnnotator
from .calibration import Calibration, LabelledScores, fit


def calibrate(
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    label_key: str = "cell_type",
    device: str | None = None,
    **cell_options: Any,
) -> Calibration:
    """
    Writes a copy of a checkpoint whose config says how far its scores can be trusted.

    Args:
        checkpoint: Folder or Hub id. It must not be adapted: an adapter's labels are its own.
        inputs: `.h5ad` files of cells with known types, one a study. The candidates of each are the types it has.
        output: A new folder.
        label_key: Column of `obs` with the types, named as the Cell Ontology names them.
        device: Where to compute.
        cell_options: `layer`, `use_raw`, `gene_column`, `counts`: how the cells are read.

    Raises:
        InputError: Files that cannot be read, types that the ontology does not know, or a folder that exists.
    """
    output = require_new_folder(output)
    annotator = LangCellAnnotator.from_pretrained(checkpoint, device=device)
    studies = {
        Path(path).stem: score_labelled(annotator, open_cells(path), label_key, **cell_options) for path in inputs
    }
    if len(studies) < len(inputs):
        raise InputError("Two of the inputs have one name: studies are told apart by the names of their files.")
    calibration = replace(
        fit(studies, annotator.model.config.alpha), prompt_templates=annotator.processor.prompt_templates
    )
    made_with = {name: version(name) for name in ("modeling-langcell", "torch", "transformers")}
    calibration.fitted["versions"] = made_with
    save_calibrated(checkpoint, calibration, output)
    return calibration


def score_labelled(
    annotator: LangCellAnnotator, adata: ad.AnnData, label_key: str, **cell_options: Any
) -> LabelledScores:
    """
    Scores the cells of a study, without calibration, against the types that it has.

    Raises:
        InputError: The checkpoint is adapted; no such labels, or labels that the ontology does not know; cells that
            cannot be read, or have no known gene.
    """
    model = annotator.model
    if annotator.adaptation is not None or not isinstance(model, LangCellModel):
        raise InputError("Only a checkpoint that was not adapted can be calibrated: its candidates are free.")
    labels = read_labels(adata, label_key, unlabelled="skip")
    if labels.multilabel:
        raise InputError(f"{label_key!r} may name several labels of a cell: calibration needs one a cell.")
    ranked = rank_cells(adata, labels.rows, annotator.processor.feature_extractor, **cell_options)
    scorer = DescriptionScorer(
        model, annotator.processor, annotator.texts_of(labels.names), model.config.alpha, None, annotator.budget
    )
    scorer.calibration = None
    scores = np.zeros((len(ranked), len(labels.names)), dtype=np.float32)
    novelty = np.zeros(len(ranked), dtype=np.float32)
    for rows, found in read_cells(ranked, scorer, scorer.budget, annotator.device):
        scores[rows], novelty[rows] = found.scores.cpu().numpy(), 1 - found.max_cosine.cpu().numpy()
    return LabelledScores(labels.names, scores, novelty, np.array(labels.names)[labels.truth])


def save_calibrated(checkpoint: str | Path, calibration: Calibration, output: str | Path) -> None:
    """Writes a copy of a checkpoint with a calibration in its config; the folder appears whole or not at all."""
    source = fetch(resolve_checkpoint(checkpoint))
    config = AutoConfig.from_pretrained(source)
    config.calibration = calibration.to_dict()
    with atomic_folder(output) as folder:
        for path in source.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        config.save_pretrained(folder)


__all__ = ["calibrate", "save_calibrated", "score_labelled"]
