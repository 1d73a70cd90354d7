# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
How often a search's `fit` is right: every type of the validation studies is searched for in the cells of every study,
by its description with its markers, and by its description alone.

    python eval/experiments/search_fit.py --json eval/results/search_fit.json

A cell is right if its known type is the type that was searched for, or a kind of it. Cells of types that the ontology
does not relate count as wrong, also where the authors' types overlap. Half of the searches are for a type that the
study does not have.
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.search import score_cells
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.task import EvaluationContext
from modeling_langcell.eval.tasks.zero_shot import TASK
from modeling_langcell.ontology import ancestors, id_of

_EDGES = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)


def search_all(
    annotator: LangCellAnnotator, context: EvaluationContext, marker_weight: float | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the fits, and whether they should be high, of all searches in each study, one search after the other."""
    studies = {name: context.study(name) for name in TASK.studies}
    cells = {name: context.cells(study) for name, study in studies.items()}
    types = sorted({str(one) for name, study in studies.items() for one in cells[name].obs[study.label_key]})
    found = {}
    for name, study in studies.items():
        annotator.embed(cells[name], **study.read)
        known = [id_of(str(one)) for one in cells[name].obs[study.label_key]]
        fits, right = [], []
        for asked in types:
            fits.append(score_cells(annotator, cells[name], asked, marker_weight=marker_weight)["fit"].to_numpy())
            wanted = id_of(asked)
            right.append([one is not None and wanted in (one, *ancestors(one)) for one in known])
        found[name] = np.concatenate(fits), np.concatenate(right)
    return found


def summary(fits: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Returns how often fits of each size, and of a half or more, are right, and the share of right cells found."""
    rows = []
    for low, high in pairwise(_EDGES):
        chosen = (fits >= low) & (fits < high + (high == 1))
        rows.append(
            {
                "from": low,
                "to": high,
                "cells": int(chosen.sum()),
                "right": float(right[chosen].mean()) if chosen.any() else None,
            }
        )
    chosen = fits >= 0.5
    return {"by_fit": rows, "precision": float(right[chosen].mean()), "recall": float(chosen[right].mean())}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    model: Annotated[str, typer.Option(help="Checkpoint: a folder or a Hub id.")] = MINI,
    data: Annotated[Path, typer.Option(help="Folder with the folders train/, validation/ and genes/.")] = Path(
        "../shared/data"
    ),
) -> None:
    """Search for every type in every validation study, and print how often a fit is right."""
    context = EvaluationContext(resolve_checkpoint(model), None, data)
    annotator = LangCellAnnotator.from_pretrained(model)
    figures: dict[str, Any] = {}
    for way, weight in (("with markers", None), ("description alone", 0.0)):
        by_study = search_all(annotator, context, weight)
        pooled = tuple(np.concatenate(parts) for parts in zip(*by_study.values(), strict=True))
        figures[way] = {name: summary(*found) for name, found in {**by_study, "all": pooled}.items()}
        typer.echo(f"{way}: {figures[way]['all']}")
    write_record(json_file, {"model": model, "searches": figures})


if __name__ == "__main__":
    typer.run(main)
