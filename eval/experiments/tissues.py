# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
How often the markers of cells tell the tissue that they come from. It decides the candidates of a run without labels.

    python eval/experiments/tissues.py ../shared/data/more/cells ../shared/data/more/profiles \
        --json eval/results/tissues.json

The rows of a tissue in a file are one case: single cells, or averages of the clusters of an atlas. The markers of the
catalogue were compared with them, and the limits of the judgement were chosen on them. A judgement is right if all the
types that the catalogue has for the tissue are candidates. Tissues for which it has none are left out.
"""

from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import typer

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.predictor import Predictor
from modeling_langcell.annotation.tissues import find_tissues
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.record import write_record
from modeling_langcell.model.errors import InputError
from modeling_langcell.ontology import usual_in

_FEWEST_ROWS = 5


def measure(predictor: Predictor, path: Path) -> list[dict[str, Any]]:
    """Returns, for each tissue that a file names, its rows, the tissues that are found, and whether they are right."""
    adata, cases = ad.read_h5ad(path), []
    if "tissue" not in adata.obs:
        return []
    for tissue, n_rows in adata.obs["tissue"].astype(str).value_counts().items():
        try:
            expected = {one.id for one in usual_in([str(tissue)])}
        except InputError:  # Several tissues, or one that has no types of its own.
            continue
        if n_rows >= _FEWEST_ROWS:
            chunks = predictor.chunks(adata[(adata.obs["tissue"] == tissue).to_numpy()], empty_cells="mark")
            found = find_tissues(predictor.processor, chunks)
            right = expected <= {one.id for one in usual_in(found)}
            case = {"file": path.stem, "tissue": tissue, "organism": str(adata.obs["organism"].iloc[0])}
            cases.append({**case, "rows": int(n_rows), "found": found, "right": right})
    return cases


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of .h5ad files with the tissue of each row.")],
    model: Annotated[str, typer.Option(help="Checkpoint, for its genes and their usual places.")] = MINI,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure how often the tissue is told by markers."""
    predictor, cases = LangCellAnnotator.from_pretrained(resolve_checkpoint(model)), []
    for path in sorted(path for folder in folders for path in folder.glob("*.h5ad")):
        cases += measure(predictor, path)
    for case in cases:
        mark = " " if case["right"] else "x"
        typer.echo(f"{mark} {case['file']:32} {case['tissue']:28} {case['rows']:>6}  {', '.join(case['found'])}")
    shares = {}
    for organism in sorted({case["organism"] for case in cases}):
        of_organism = [case["right"] for case in cases if case["organism"] == organism]
        shares[organism] = {"cases": len(of_organism), "right": sum(of_organism)}
        typer.echo(f"{organism}: {sum(of_organism)} of {len(of_organism)} right")
    write_record(json_file, {"model": model, "seed": 0, "shares": shares, "cases": cases})


if __name__ == "__main__":
    typer.run(main)
