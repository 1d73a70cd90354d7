# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Validation curves of pre-training runs, as one figure and one record.

    python eval/experiments/curves.py runs/mini-stage1 runs/mini-stage2 \\
        --json eval/results/curves_mini.json --figure docs/curves.png
"""

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer

from modeling_langcell.eval.record import write_record
from modeling_langcell.report.plots import write_figure

#: Measures that are drawn, if a run has them.
MEASURES = {
    "masked_gene_loss": "masked-gene loss",
    "cell_to_text_r1": "R@1, cell to text",
    "text_to_cell_r1": "R@1, text to cell",
}


def read(run: Path) -> dict[str, Any]:
    """Returns the measurements of a finished run and the record of how it was made."""
    lines = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    made = json.loads((run / "training.json").read_text())["runs"][-1]
    curves = {name: [line[name] for line in lines] for name in lines[0] if name != "step"}
    return {"steps": [line["step"] for line in lines], "curves": curves, **made}


def draw(runs: dict[str, dict[str, Any]]) -> plt.Figure:
    """Draws one panel for each measure of each run."""
    panels = [(name, key) for name, run in runs.items() for key in MEASURES if key in run["curves"]]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3), squeeze=False, layout="constrained")
    for axis, (name, key) in zip(axes[0], panels, strict=True):
        axis.plot(runs[name]["steps"], runs[name]["curves"][key], marker="o", markersize=3)
        axis.set(title=name, xlabel="step", ylabel=f"{MEASURES[key]}, cells held out")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs with a held_out corpus.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    figure: Annotated[Path | None, typer.Option(help="File for the picture.")] = None,
) -> None:
    """Draw the validation curves of pre-training runs."""
    runs = {folder.name: read(folder) for folder in folders}
    for name, run in runs.items():
        for key in (key for key in MEASURES if key in run["curves"]):
            typer.echo(f"{name}: {MEASURES[key]} from {run['curves'][key][0]:.3f} to {run['curves'][key][-1]:.3f}")
    if figure is not None:
        write_figure(draw(runs), figure, 110)
    write_record(json_file, {"runs": runs})


if __name__ == "__main__":
    typer.run(main)
