# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
What each choice in langcell-mini's recipe is worth: its second stage as it is, and with one choice made otherwise, each
from several seeds, measured on the validation studies by similarity alone when the run ends.

    python eval/ablation.py --json eval/results/ablation_mini.json

Runs that are finished are not run again; one that was killed goes on.
"""

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = [REPOSITORY / "hub_configs" / "pretraining" / f"mini-stage{stage}.yaml" for stage in (1, 2)]

#: What is made otherwise, one choice at a time. The second stage starts where the first does, but for one row: there it
#: goes on from a first stage, the same for all seeds.
CHOICES: dict[str, dict[str, object]] = {
    "second stage alone": {},
    "after the first stage": {"start": "runs/mini-stage1"},
    "half of the texts are names": {"name_only_share": 0.5},
    "other aspects too": {"aspect_share": 0.25},
    "never described by an ancestor": {"ancestor_share": 0.0},
    "no other study's genes": {"panel_share": 0.0},
    "no sibling texts": {"sibling_texts": 0},
    "cells drawn as they come": {"balance": 1.0},
    "the last weights, not their average": {"averaging": 0.0},
    "text projection trained": {"train_text_projection": True},
    "genes start at random": {"gene_names_from": None},
    "last layer starts at random": {"gene_average_start": False},
}


def second_stage_alone() -> dict[str, object]:
    """The settings of the second stage, with the starts and the geometry of the first."""
    first, second = (yaml.safe_load(path.read_text()) for path in STAGES)
    return first | second | {"start": None, "model": first["model"] | second["model"]}


def run(choice: str, seed: int, folder: Path, threads: int, steps: int | None) -> dict[str, float]:
    """The last measurement of a run, which is trained first unless it was."""
    name = choice.replace(" ", "-").replace(",", "")
    output = folder / f"{name}-seed{seed}"
    if not (output / "training.json").exists():
        changes = CHOICES[choice] | {"seed": seed, "output": str(output), "held_out_cells": 1_000_000}
        changes |= {"evaluate_every": 1_000_000} | ({} if steps is None else {"steps": steps})
        folder.mkdir(parents=True, exist_ok=True)
        path = output.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(second_stage_alone() | changes))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "train.py", str(path)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{choice}, seed {seed}: {done.stderr[-2000:]}")
    *_, last = (output / "held_out.jsonl").read_text().splitlines()
    return json.loads(last)


def main(
    seeds: Annotated[int, typer.Option(help="How many seeds each.")] = 3,
    choice: Annotated[list[str] | None, typer.Option(help="Only this; can be repeated.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the runs are kept.")] = REPOSITORY / "runs" / "ablation",
    num_proc: Annotated[int, typer.Option(help="Runs at once.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Steps of each, in place of the recipe's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """What each choice in langcell-mini's recipe is worth."""
    chosen = choice or list(CHOICES)
    # Seed by seed: what is there early says something of every choice.
    jobs = [(name, seed) for seed in range(seeds) for name in chosen]
    with ThreadPoolExecutor(num_proc) as pool:
        found = dict(zip(jobs, pool.map(lambda job: run(*job, folder.resolve(), threads, steps), jobs), strict=True))
    rows = {}
    for name in chosen:
        by_seed = [found[name, seed] for seed in range(seeds)]
        measured = [key for key in by_seed[0] if "/" in key]
        rows[name] = {
            "changes": CHOICES[name],
            "mean": {key: float(np.mean([one[key] for one in by_seed])) for key in measured},
            "by_seed": {key: [one[key] for one in by_seed] for key in measured},
        }
        typer.echo(f"{name:40} " + "  ".join(f"{key} {value:.3f}" for key, value in rows[name]["mean"].items()))
    if json_file is not None:
        report = {
            "command": "python " + " ".join(sys.argv),
            "recipe": [path.name for path in STAGES],
            "seeds": seeds,
            "steps": steps,
            "versions": {name: version(name) for name in ("modeling-langcell", "torch", "transformers", "accelerate")},
            "machine": f"{platform.machine()}, {threads} thread(s) a run",
            "results": rows,
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
