# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Reads back what an annotation recorded in an AnnData."""

from ast import literal_eval
from collections.abc import Mapping
from typing import Any

import anndata as ad
import pandas as pd

from ..io.colours import colours
from ..io.columns import ANSWER, ANSWER_ID, CELL_TYPE, COLOURS, FIT, NOVELTY, RUN, UNKNOWN_BECAUSE
from ..io.h5ad import require_anndata
from ..model.errors import InputError
from ..model.prompts import Description
from .calibration import LEAST_FIT

#: Fewer known genes than this suggest a selection, or a small panel.
PANEL = 5000


def candidate_labels(annotated: ad.AnnData) -> list[str]:
    """
    Returns the labels that an annotation chose from, in order, including those that no cell has.

    Raises:
        InputError: The cells are not annotated.
    """
    require_anndata(annotated)
    run = annotated.uns.get(RUN)
    if not isinstance(run, Mapping) or "labels" not in run or CELL_TYPE not in annotated.obs:
        raise InputError("The cells are not annotated: annotate them first.")
    return [str(label) for label in run["labels"]]


def best_labels(annotated: ad.AnnData) -> pd.Series:
    """Returns each cell's best label. All candidates are categories, so the codes are the candidates' numbers."""
    return annotated.obs[CELL_TYPE].cat.set_categories(candidate_labels(annotated))


def label_colours(annotated: ad.AnnData) -> list[str]:
    """
    Returns a colour for each category of the labels, as `#rrggbb`: those of the annotation, where they still fit.
    """
    stored, names = annotated.uns.get(COLOURS, []), annotated.obs[CELL_TYPE].cat.categories
    return [str(colour) for colour in stored] if len(stored) == len(names) else colours(len(names))


def cell_options(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that say how a run read its cells, from its record, to read the same cells again."""
    facts = run["input"]
    array = str(facts["array"])
    options: dict[str, Any] = {"counts": str(facts["counts"]), "use_raw": array == "raw.X"}
    if array.startswith("layers["):
        options["layer"] = literal_eval(array.removeprefix("layers[").removesuffix("]"))
    if "gene_column" in facts:
        options["gene_column"] = str(facts["gene_column"])
    if "chosen_organism" in facts:
        options["organism"] = str(facts["chosen_organism"])
    return options


def label_descriptions(run: Mapping[str, Any]) -> dict[str, Description]:
    """Returns the texts and the genes that described each label in a run; `run` is `uns["langcell"]`."""
    none = [""] * len(run["labels"])
    columns = [run["labels"], run["descriptions"], run.get("markers", none), run.get("absent", none)]
    return {
        str(label): Description(tuple(str(texts).split("\n")), tuple(str(markers).split()), tuple(str(absent).split()))
        for label, texts, markers, absent in zip(*columns, strict=True)
    }


def count_answers(obs: pd.DataFrame) -> list[dict[str, Any]]:
    """
    Counts the `cells` with each `answer` and `id`, the most frequent first. The list is empty where the annotation was
    not calibrated.
    """
    if ANSWER not in obs:
        return []
    sizes = obs.groupby([ANSWER, ANSWER_ID], observed=True).size().sort_values(ascending=False, kind="stable")
    names, ids = sizes.index.get_level_values(ANSWER), sizes.index.get_level_values(ANSWER_ID)
    return [
        {"answer": str(name), "id": str(term_id), "cells": int(cells)}
        for name, term_id, cells in zip(names, ids, sizes, strict=True)
    ]


def known_genes(run: Mapping[str, Any]) -> int:
    """Returns the number of genes of a run's cells that the checkpoint knows; `run` is `uns["langcell"]`."""
    return sum(int(run["input"][f"genes_by_{how}"]) for how in ("ensembl_id", "symbol", "synonym"))


def describe_error_rate(run: Mapping[str, Any]) -> str:
    """
    Returns how many answers are expected to be wrong, in words that follow "answers". The calibration holds for a few
    named candidates, and for cells with most of their genes.
    """
    if "from_catalogue" in run or known_genes(run) < PANEL:
        return f"at an error rate of {run['error_rate']:.0%}, which is not promised here (see the cautions)"
    return f"at an expected error rate of {run['error_rate']:.0%}"


def unlike_every_candidate(annotated: ad.AnnData) -> pd.Series | None:
    """
    Returns a boolean for each cell, true where it is more probably of no candidate than of any; with a checkpoint that
    cannot tell, where its novelty is unusual. None where nothing tells.
    """
    obs, run = annotated.obs, annotated.uns[RUN]
    if FIT in obs:
        return obs[FIT] < LEAST_FIT
    return obs[NOVELTY] > run["usual_novelty"] if "usual_novelty" in run and NOVELTY in obs else None


def count_unknown(obs: pd.DataFrame) -> dict[str, int]:
    """Counts the unknown cells by the reason why they are; empty where there is none, or no answers."""
    if UNKNOWN_BECAUSE not in obs:
        return {}
    return {str(reason): int(cells) for reason, cells in obs[UNKNOWN_BECAUSE].value_counts().items() if cells}


def describe_unknown(reasons: Mapping[str, int]) -> str:
    """Returns the numbers of `count_unknown` in words."""
    return ", ".join(f"{cells:,} {reason}" for reason, cells in reasons.items())


def describe_input(adata: ad.AnnData) -> str:
    """Returns a sentence on the cells, values and genes that a run read, from an annotated or embedded AnnData."""
    facts = adata.uns[RUN]["input"]
    found = {how: facts[f"genes_by_{how}"] for how in ("ensembl_id", "symbol", "synonym")}
    ways = ", ".join(f"{number:,} by {how.replace('_', ' ')}" for how, number in found.items() if number)
    others = f"; {facts['no_genes']:,} other rows of var (antibodies, peaks) left out" if "no_genes" in facts else ""
    base = f" to the base {facts['log_base']:g}" if "log_base" in facts else ""
    organism = f"{facts['organism']} " if "organism" in facts else ""  # Runs of earlier versions do not say it.
    return (
        f"{adata.n_obs:,} cells; {facts['array']} read as {facts['counts']} values{base}; {sum(found.values()):,} of "
        f"{facts['genes']:,} {organism}genes known ({ways}), with {facts['matched_counts']:.0%} of the median cell's "
        f"counts{others}."
    )


__all__ = [
    "PANEL",
    "best_labels",
    "candidate_labels",
    "cell_options",
    "count_answers",
    "count_unknown",
    "describe_error_rate",
    "describe_input",
    "describe_unknown",
    "known_genes",
    "label_colours",
    "label_descriptions",
    "unlike_every_candidate",
]
