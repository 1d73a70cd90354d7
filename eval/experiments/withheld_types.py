# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Types that were withheld from training, with everything below them: how often their cells get their own type, among all
types of their study.

    langcell corpus CELLS... --where "$(python eval/experiments/withheld_types.py --condition judged)" \
      --gene-info ... --out runs/corpus
    python eval/experiments/withheld_types.py CELLS... --model runs/trained --json eval/results/withheld_types.json

`withheld_types.tsv` lists 40 types of all tissues to judge by, drawn at random among those that have few kinds and are
in a file of eight types or more. Up to 20 cells of a type are judged, and five drawn from each of its averages. Scores
are means over the withheld types: by the descriptions alone, with the markers of the catalogue, and by these markers
alone. The table has two further sets, of types of the validation studies: `relatives.py` fits with them.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import typer

from modeling_langcell import LangCellAnnotator
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.corpus.profiles import draw_cells
from modeling_langcell.eval.experiments.weights import borrow_weights
from modeling_langcell.eval.record import write_record
from modeling_langcell.io.columns import CELL_TYPE
from modeling_langcell.model.errors import InputError
from modeling_langcell.model.zero_shot import MarkerEvidence
from modeling_langcell.ontology import descendants, get_term, is_term

TABLE = Path(__file__).with_name("withheld_types.tsv")
TypeSet = Literal["judged", "fitted-a", "fitted-b"]
_TYPE = "cell_type_ontology_term_id"
_MOST_CELLS, _FEWEST_TYPES = 20, 5


def read_withheld(name: TypeSet = "judged") -> tuple[str, ...]:
    """Returns the ids of a set of withheld types."""
    with TABLE.open(encoding="utf-8", newline="") as lines:
        return tuple(row["id"] for row in csv.DictReader(lines, delimiter="\t") if row["set"] == name)


def with_kinds(types: Iterable[str]) -> frozenset[str]:
    """Returns types, given by their ids, and all kinds of them."""
    return frozenset(kind for term in types for kind in (term, *(below.id for below in descendants(term))))


def condition(name: TypeSet = "judged") -> str:
    """Returns the condition on `obs` that leaves out a set of types and all kinds of them."""
    return f"{_TYPE} not in {sorted(with_kinds(read_withheld(name)))}"


def read_cells(path: Path) -> tuple[ad.AnnData, list[str]] | None:
    """
    Reads the cells of withheld types from a file, some of them drawn from averages.

    Returns:
        The cells, with the name of their type as `cell_type`, and the names of all types of the file; None if it has no
        withheld type, or too few types to choose from.
    """
    adata, withheld = ad.read_h5ad(path), with_kinds(read_withheld())
    if _TYPE not in adata.obs:
        return None
    of_row = adata.obs[_TYPE].astype(str).to_numpy()
    types = sorted(term for term in set(of_row) if is_term(term))
    held = withheld & {*types}
    if not held or len(types) < _FEWEST_TYPES:
        return None
    is_profile = adata.obs["profile"].to_numpy(bool) if "profile" in adata.obs else np.zeros(adata.n_obs, bool)
    counts, rows = draw_cells(sp.csr_matrix(adata.X), is_profile, seed=0)
    rng, kept = np.random.default_rng(0), []
    for term in sorted(held):
        own = np.flatnonzero(of_row[rows] == term)
        n_drawn = int(is_profile[rows[own]].sum())
        kept.append(own if n_drawn else rng.permutation(own)[:_MOST_CELLS])
    chosen = np.concatenate(kept)
    names = [get_term(term).name for term in of_row[rows[chosen]]]
    obs = pd.DataFrame({"cell_type": names}, index=[f"cell{number}" for number in range(len(chosen))])
    return ad.AnnData(counts[chosen], obs=obs, var=adata.var), [get_term(term).name for term in types]


def measure(annotator: LangCellAnnotator, path: Path) -> dict[str, Any] | None:
    """Returns, for each withheld type of a file, the share of its cells that get it; None if the file has none."""
    if (found := read_cells(path)) is None:
        return None
    cells, names = found
    truth = cells.obs["cell_type"].to_numpy(dtype=str)
    predicted = {}
    for way, with_markers in (("descriptions alone", False), ("with the catalogue's markers", True)):
        annotated = annotator.annotate(
            cells.copy(),
            names,
            with_markers=with_markers,
            empty_cells="mark",
        )
        predicted[way] = annotated.obs[CELL_TYPE].astype(str).to_numpy()
    predicted["these markers alone"] = np.array(names)[evidence_of(annotator, cells, names).argmax(axis=1)]
    recalls = {
        way: {name: float((found[truth == name] == name).mean()) for name in np.unique(truth)}
        for way, found in predicted.items()
    }
    return {"study": path.stem, "candidates": len(names), "cells": len(truth), "recalls": recalls}


def evidence_of(annotator: LangCellAnnotator, cells: ad.AnnData, names: list[str]) -> np.ndarray:
    """Returns the `(cells, types)` evidence of the markers that the catalogue has for the types."""
    processor, described = annotator.processor, annotator.descriptions_of(names)
    named = {name: processor.find_genes(description) for name, description in described.items()}
    evidence = MarkerEvidence(named, processor.feature_extractor.usual_places, torch.device("cpu"))
    ranked = processor.feature_extractor.rank(cells, places_of=evidence.ids, empty_cells="mark")
    return evidence(torch.from_numpy(ranked.places)).numpy()


def main(
    inputs: Annotated[list[Path] | None, typer.Argument(help=".h5ad files and folders of them.")] = None,
    model: Annotated[str, typer.Option(help="Checkpoint that was trained without the types.")] = MINI,
    relatives_weight: Annotated[
        float | None, typer.Option(help="Weight of the share of relatives.", show_default="langcell-mini's")
    ] = None,
    show_condition: Annotated[
        TypeSet | None, typer.Option("--condition", help="Print the condition that leaves a set out of a corpus.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure how often cells of withheld types get their own type."""
    if show_condition is not None:
        typer.echo(condition(show_condition))
        return
    if not inputs:
        raise InputError("Give the files that the types were withheld from.")
    annotator = LangCellAnnotator.from_pretrained(resolve_checkpoint(model))
    weights = borrow_weights(annotator.model)
    if relatives_weight is not None:
        annotator.model.config.relatives_weight = weights["relatives_weight"] = relatives_weight
    paths = sorted(path for given in inputs for path in (given.glob("*.h5ad") if given.is_dir() else [given]))
    studies = [found for path in paths if (found := measure(annotator, path)) is not None]
    of_type: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for study in studies:
        for way, recalls in study["recalls"].items():
            for name, recall in recalls.items():
                of_type[way][name].append(recall)
    means = {way: float(np.mean([np.mean(found) for found in types.values()])) for way, types in of_type.items()}
    for way, mean in means.items():
        typer.echo(f"{way:30} {mean:.3f} over {len(of_type[way])} types")
    figures = {"model": model, "weights": weights, "seed": 0, "balanced_accuracy": means, "studies": studies}
    write_record(json_file, figures)


if __name__ == "__main__":
    typer.run(main)
