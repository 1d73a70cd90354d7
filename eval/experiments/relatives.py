# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
How much a description that is new to a checkpoint should get of the probability of its relatives (`RelativesShare`):
types of the validation studies are withheld from training, one set and then another, and their cells should get their
own type as often as possible, while cells of the other types keep theirs.

    for set in fitted-a fitted-b; do
      langcell corpus CELLS... --where "$(python eval/experiments/withheld_types.py --condition $set)" \\
        --gene-info ... --vocabulary runs/corpus --out runs/corpus-without-$set
      python train.py hub_configs/pretraining/mini-stage2.yaml corpus=runs/corpus-without-$set output=runs/without-$set
    done
    python eval/experiments/relatives.py runs/without-fitted-a runs/without-fitted-b STUDIES... \\
      --json eval/results/relatives.json

Scores are means over the types of all studies, of the share of a type's cells that get it, by the descriptions alone
and with the markers of the catalogue.
"""

from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import numpy as np
import typer

from modeling_langcell import LangCellAnnotator
from modeling_langcell.eval.experiments.weights import borrow_weights
from modeling_langcell.eval.experiments.withheld_types import read_withheld, with_kinds
from modeling_langcell.eval.record import write_record
from modeling_langcell.io.columns import CELL_TYPE
from modeling_langcell.ontology import find_term

WEIGHTS = (0, 1, 3, 5, 10, 30, 100)


def measure(annotator: LangCellAnnotator, withheld: frozenset[str], study: Path, **options: Any) -> dict[str, Any]:
    """
    Annotates the cells of a study whose type is known, among the types of the study.

    Returns:
        The shares of cells that get their own type: `accuracy`, and by type those of `new` and of `known` types.
    """
    adata = ad.read_h5ad(study)
    adata = adata[(adata.obs["cell_type"] != "unknown").to_numpy()].copy()
    truth = adata.obs["cell_type"].to_numpy(dtype=str)
    names = sorted({*truth})
    found = annotator.annotate(adata, names, **options).obs[CELL_TYPE].to_numpy(dtype=str)
    recalls = {name: float((found[truth == name] == name).mean()) for name in names}
    return {
        "accuracy": float((found == truth).mean()),
        "new": {name: recall for name, recall in recalls.items() if find_term(name).id in withheld},
        "known": {name: recall for name, recall in recalls.items() if find_term(name).id not in withheld},
    }


def main(
    without_a: Annotated[Path, typer.Argument(help="Checkpoint that was trained without the types of fitted-a.")],
    without_b: Annotated[Path, typer.Argument(help="Checkpoint that was trained without the types of fitted-b.")],
    studies: Annotated[list[Path], typer.Argument(help=".h5ad files with the column cell_type in obs.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure what the share of relatives does for types that training withheld, and for the others."""
    sides = [
        (LangCellAnnotator.from_pretrained(without_a), with_kinds(read_withheld("fitted-a"))),
        (LangCellAnnotator.from_pretrained(without_b), with_kinds(read_withheld("fitted-b"))),
    ]
    rows, weights = [], {}
    for annotator, _ in sides:
        weights = borrow_weights(annotator.model)
    for with_markers in (False, True):
        for weight in WEIGHTS:
            measured = []
            for annotator, withheld in sides:
                annotator.model.config.relatives_weight = float(weight)
                measured += [measure(annotator, withheld, study, with_markers=with_markers) for study in studies]
            row: dict[str, float] = {"with_markers": with_markers, "relatives_weight": weight}
            for kind in ("new", "known"):
                row[kind] = float(np.mean([recall for one in measured for recall in one[kind].values()]))
            row["mean"] = (row["new"] + row["known"]) / 2
            row["accuracy"] = float(np.mean([one["accuracy"] for one in measured]))
            typer.echo("  ".join(f"{name} {value:.3f}" for name, value in row.items()))
            rows.append(row)
    figures = {"studies": [study.stem for study in studies], "weights": weights, "seed": 0, "results": rows}
    write_record(json_file, figures)


if __name__ == "__main__":
    typer.run(main)
