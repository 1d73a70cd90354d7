# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Comparison of prompt templates for cell types, single ones and ensembles. They were chosen before they were measured, on
the validation studies by similarity alone.

    python eval/experiments/prompt_templates.py --json eval/results/wordings.json

To tell a gain over the default template from chance, cells are drawn with replacement within each study, the same cells
for all ensembles.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.studies import Study
from modeling_langcell.eval.task import EvaluationContext, scorer_of_rows
from modeling_langcell.eval.tasks.retrieval import TASK as RETRIEVAL
from modeling_langcell.eval.tasks.zero_shot import TASK as ZERO_SHOT
from modeling_langcell.io.columns import EMBEDDING
from modeling_langcell.model.prompts import PROMPT_TEMPLATES

DEFAULT = "name and definition"
ENSEMBLES: dict[str, tuple[str, ...]] = {
    DEFAULT: PROMPT_TEMPLATES,
    "name": ("cell type: {name}.",),
    "bare name": ("{name}",),
    "definition": ("cell type: {definition}",),
    "name with and without definition": (*PROMPT_TEMPLATES, "cell type: {name}."),
    "names and synonyms, with definition": (*PROMPT_TEMPLATES, "cell type: {synonym}. {definition}"),
    "names and synonyms, with and without": (
        *(*PROMPT_TEMPLATES, "cell type: {name}."),
        *("cell type: {synonym}. {definition}", "cell type: {synonym}."),
    ),
    "all": (
        *(*PROMPT_TEMPLATES, "cell type: {name}.", "{name}", "{name}. {definition}", "cell type: {definition}"),
        *("cell type: {synonym}. {definition}", "cell type: {synonym}.", "{synonym}"),
    ),
}

#: A function from rows of a study's cells to the scores of an ensemble, by metric.
Measure = Callable[[np.ndarray], dict[str, float]]


def measures(context: EvaluationContext, study: Study, all_types: list[str]) -> dict[str, Measure]:
    """
    Returns the measure of each ensemble: zero-shot annotation among the study's types and, if `all_types` has any, R@1
    among these.
    """
    adata = context.cells(study)
    truth = adata.obs[study.label_key].astype(str).to_numpy()
    cells = context.annotator.embed(adata.copy(), **study.read).obsm[EMBEDDING]
    own = np.unique(truth)
    return {
        name: _measure(context, prompt_templates, cells, truth, own, all_types)
        for name, prompt_templates in ENSEMBLES.items()
    }


def _measure(
    context: EvaluationContext,
    prompt_templates: tuple[str, ...],
    cells: np.ndarray,
    truth: np.ndarray,
    own: np.ndarray,
    all_types: list[str],
) -> Measure:
    def nearest(types: Any) -> np.ndarray:
        context.annotator.processor.prompt_templates = prompt_templates
        texts = context.annotator.embed_texts(context.annotator.texts_of(types).values())
        return np.array(types)[(cells @ texts.T).argmax(axis=1)]

    annotation = scorer_of_rows(truth, nearest(own))
    if not all_types:
        return annotation
    first = nearest(all_types) == truth
    return lambda rows: annotation(rows) | {"cell_to_text_r1": float(first[rows].mean())}


def compare(by_study: dict[str, dict[str, Measure]], cells: dict[str, int], seed: int, draws: int) -> dict[str, Any]:
    """
    Returns the score, its gain over the default template, and the gain's 95% bootstrap interval, by study and for the
    mean of studies, by ensemble and metric.

    Args:
        by_study: The result of `measures` for each study.
        cells: Number of cells of each study.
        seed, draws: Seed and number of draws of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    # The first rows are all cells, without drawing.
    rows = [{study: np.arange(number) for study, number in cells.items()}]
    rows += [{study: rng.integers(0, number, number) for study, number in cells.items()} for _ in range(draws)]
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for study, ensembles in by_study.items():
        found[study] = {}
        for name, measure in ensembles.items():
            drawn = [measure(one[study]) for one in rows]
            found[study][name] = {metric: np.array([one[metric] for one in drawn]) for metric in drawn[0]}
    found["mean"] = {
        name: {
            metric: np.mean([found[study][name][metric] for study in RETRIEVAL.studies], axis=0)
            for metric in found[RETRIEVAL.studies[0]][name]
        }
        for name in ENSEMBLES
    }
    return {
        study: {
            name: {metric: _gain(values, ensembles[DEFAULT][metric]) for metric, values in scores.items()}
            for name, scores in ensembles.items()
        }
        for study, ensembles in found.items()
    }


def _gain(values: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """Returns score, gain and interval of a metric, whose values are that of all cells, then those of the draws."""
    gains = values - before
    interval = np.quantile(gains[1:], [0.025, 0.975]).tolist()
    return {"score": float(values[0]), "gain": float(gains[0]), "interval": interval}


def _format(gain: dict[str, Any]) -> str:
    low, high = gain["interval"]
    return f"{gain['score']:.3f} ({gain['gain']:+.3f}, {low:+.3f} to {high:+.3f})"


def main(
    model: Annotated[str, typer.Option(help="Checkpoint: a folder or a Hub id.")] = MINI,
    data: Annotated[Path, typer.Option(help="Folder with validation/.")] = Path("../shared/data"),
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    draws: Annotated[int, typer.Option(help="Number of draws of the bootstrap.", min=1)] = 1000,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure zero-shot annotation and R@1 of prompt templates, compared with the default one."""
    context = EvaluationContext(resolve_checkpoint(model), None, data)
    studies = [context.study(name) for name in ZERO_SHOT.studies]
    types = {
        study.name: context.cells(study).obs[study.label_key].astype(str)
        for study in studies
        if study.name in RETRIEVAL.studies
    }
    all_types = sorted({one for labels in types.values() for one in labels})
    by_study = {study.name: measures(context, study, all_types if study.name in types else []) for study in studies}
    found = compare(by_study, {study.name: context.cells(study).n_obs for study in studies}, seed, draws)
    for study, ensembles in found.items():
        typer.echo(study)
        for name, scores in ensembles.items():
            typer.echo(f"  {name:37} " + "  ".join(f"{metric} {_format(one)}" for metric, one in scores.items()))
    figures = {"model": model, "seed": seed, "draws": draws, "studies_of_mean": RETRIEVAL.studies}
    write_record(json_file, figures | {"ensembles": ENSEMBLES, "results": found})


if __name__ == "__main__":
    typer.run(main)
