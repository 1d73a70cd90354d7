# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
How far a calibration travels: each study is answered with a calibration on all the others, among its own types and
among those that the catalogue has for its tissue.

    python eval/experiments/travel.py --folds runs/folds --json eval/results/travel.json

The studies that langcell-mini was trained on are scored by trainings that left them out: see `cross_fitting.py`.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from transformers import AutoConfig

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.calibrate import score_labelled, studies_with_scorers
from modeling_langcell.annotation.calibration import ERROR_RATE, LEAST_FIT, Calibration, LabelledScores, fit
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.annotation.tissues import find_tissues
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.experiments.cross_fitting import FITTED, JUDGED, cross_fitted
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.task import EvaluationContext
from modeling_langcell.eval.tasks.doubt import measure_answers
from modeling_langcell.ontology import get_term, usual_in

#: Studies that no training has seen.
SMALL_PANEL = "pbmc68k_reduced"
VALIDATION = ("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc", SMALL_PANEL)


def score(annotator: LangCellAnnotator, cells: Any, label_key: str, **options: Any) -> dict[str, LabelledScores]:
    """Scores the cells of a study against its own types (`named`), and those of the `catalogue` in its tissue."""
    tissues = find_tissues(annotator.processor, annotator.chunks(cells, **options))
    usual = [get_term(one.id).name for one in usual_in(tissues)]
    return {
        "named": score_labelled(annotator, cells, label_key, **options),
        "catalogue": score_labelled(annotator, cells, label_key, usual, **options),
    }


def score_all(data: Path, folds: Path) -> dict[str, dict[str, LabelledScores]]:
    """Scores the cells of all studies."""
    left_out = cross_fitted(data, folds, (*FITTED, *JUDGED))
    studies = {
        name: score(annotator, cells, "cell_type")
        for name, annotator, cells in studies_with_scorers(resolve_checkpoint(MINI), (), left_out)
    }
    context = EvaluationContext(MINI, None, data)
    for name in VALIDATION:
        study = context.study(name)
        studies[name] = score(context.annotator, context.cells(study), study.label_key, **study.read)
    return studies


def measure_catalogue(cells: LabelledScores, calibration: Calibration) -> dict[str, float]:
    """
    Returns how the answers are where the candidates are those of the catalogue: the share of cells with an answer
    (`coverage`), and of these the shares that are the type or a term above it (`right`) or a kind of it (`narrower`).
    """
    backoff, truth = OntologyBackoff(cells.labels), cells.truth.tolist()
    threshold = calibration.threshold(ERROR_RATE)
    probabilities = cells.probabilities(calibration.temperature, calibration.marker_weight)
    answers, _ = backoff.answer_labels(probabilities, threshold)
    answers[cells.fit_probability(calibration, np.ones(len(cells.labels), dtype=bool)) < LEAST_FIT] = -1
    answered = answers >= 0
    return {
        "candidates": len(cells.labels),
        "coverage": float(answered.mean()),
        "right": float(backoff.right(answers, truth)[answered].mean()),
        "narrower": float(backoff.narrower(answers, truth)[answered].mean()),
        "depth": float(np.array([node.depth for node in backoff.nodes])[answers[answered]].mean()),
    }


def measure(
    studies: dict[str, dict[str, LabelledScores]], fitted: tuple[str, ...], marker_weight: float
) -> dict[str, Any]:
    """Returns the scores of each study with a calibration on the others of those that are `fitted`."""
    found: dict[str, Any] = {}
    for name, study in studies.items():
        calibration = fit({one: studies[one]["named"] for one in fitted if one != name}, 1.0, marker_weight)
        found[name] = {
            "cells": len(study["named"].truth),
            "named": {"candidates": len(study["named"].labels), **measure_answers(study["named"], calibration)},
            "catalogue": measure_catalogue(study["catalogue"], calibration),
            "calibration": calibration.to_dict(),
        }
    return found


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/, validation/ and more/.")] = Path("../shared/data"),
    folds: Annotated[Path, typer.Option(help="Folder with the trainings that left studies out.")] = Path("runs/folds"),
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure how a calibration holds for studies that it was not fitted on."""
    studies = score_all(data, folds)
    fitted = (*(name for name in VALIDATION if name != SMALL_PANEL), *FITTED)
    weight = AutoConfig.from_pretrained(resolve_checkpoint(MINI)).marker_weight
    found = measure(studies, fitted, weight)
    for name, scores in found.items():
        named, among = scores["named"], scores["catalogue"]
        typer.echo(
            f"{name:36} named: {1 - named['right']:.3f} wrong, {named['coverage']:.2f} answered, {named['exact']:.2f} "
            f"exact; catalogue: {1 - among['right'] - among['narrower']:.3f} wrong, {among['narrower']:.2f} narrower"
        )
    write_record(json_file, {"fitted": fitted, "studies": found})


if __name__ == "__main__":
    typer.run(main)
