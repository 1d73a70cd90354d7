# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Scores of checkpoints that differ in the seed of their training, and their means.

    python eval/experiments/seeds.py runs/seed0 runs/seed1 runs/seed2 --json eval/results/zero_shot_seeds.json
    python eval/experiments/seeds.py runs/seed0 runs/seed1 runs/seed2 --task doubt --json eval/results/doubt_seeds.json

All are scored with langcell-mini's weights.
"""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from modeling_langcell.eval.experiments.weights import borrow_weights
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.run import evaluate, find_task
from modeling_langcell.eval.task import LANGCELL, EvaluationContext


def main(
    models: Annotated[list[str], typer.Argument(help="Checkpoints: folders or Hub ids.")],
    data: Annotated[Path, typer.Option(help="Folder with train/ and validation/.")] = Path("../shared/data"),
    task_name: Annotated[str, typer.Option("--task", help="Task to score them by.")] = "zero-shot",
    out: Annotated[Path, typer.Option(help="Folder for the results of each checkpoint.")] = Path("runs/seeds"),
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure the scores of several checkpoints, and their means."""
    task = find_task(task_name)
    by_study: dict[str, list[dict[str, Any]]] = {}
    for number, model in enumerate(models):
        context = EvaluationContext(model, None, data)
        weights = borrow_weights(context.annotator.model)
        for run in evaluate(task, context, seeds=1, out=out / str(number), methods=[LANGCELL])["cells"]:
            found = {"scores": run["scores"]}
            if "confusion" in run["drawings"]:
                found["confusion"] = run["drawings"]["confusion"]
            setting = "".join(f", {name} {value}" for name, value in run["setting"].items())
            by_study.setdefault(f"{run['study']}{setting}", []).append(found)
    # Not every checkpoint has every score: some have no marked cluster, for instance.
    means = {
        study: {str(name): float(mean) for name, mean in pd.DataFrame([one["scores"] for one in found]).mean().items()}
        for study, found in by_study.items()
    }
    for study, mean in means.items():
        typer.echo(f"{study:24} " + "  ".join(f"{name} {value:.3f}" for name, value in mean.items()))
    write_record(json_file, {"models": models, "weights": weights, "means": means, "by_model": by_study})


if __name__ == "__main__":
    typer.run(main)
