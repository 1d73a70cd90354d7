# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Ablation of langcell-mini's recipe: its second stage with one choice changed at a time, from several seeds, scored at
the end of training on the validation studies by similarity alone.

    langcell corpus DATA/train DATA/more/cells --gene-info DATA/genes/Homo_sapiens.gene_info.gz \
      --vocabulary runs/corpus --sources SOURCES_OF_CELLS.tsv --out runs/corpus-of-cells
    python eval/experiments/ablation.py --json eval/results/ablation_mini.json

The second corpus is for the choice without averages; its table has those lines of `sources.tsv` that tell of cells.
Finished runs are not repeated, and a run that was killed continues. All seeds start from the same checkpoint, because
embedding the genes' names takes as long as the training.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from modeling_langcell.eval.record import write_record

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RECIPE = REPOSITORY / "hub_configs" / "pretraining" / "mini-stage2.yaml"

#: Changes to the recipe, one choice at a time.
CHOICES: dict[str, dict[str, object]] = {
    "the recipe": {},
    "after the first stage": {"start": "runs/mini-stage1"},
    "half of the texts are names": {"name_only_share": 0.5},
    "other aspects too": {"aspect_share": 0.25},
    "never described by an ancestor": {"ancestor_share": 0.0},
    "components of the texts as they are": {"text_whitening": 0.0},
    "no other study's genes": {"panel_share": 0.0},
    "no genes left out": {"gene_dropout": 0.0},
    "ranks as they are": {"rank_noise": 0.0},
    "no averages of atlases": {"corpus": "runs/corpus-of-cells"},
    "small batches": {"batch_tokens": 26000},
    "no sibling texts": {"sibling_texts": 0},
    "cells drawn as they come": {"balance": 1.0},
    "the last weights, not their average": {"averaging": 0.0},
    "text projection trained": {"train_text_projection": True},
    "last layer starts at random": {"gene_average_start": False},
}

#: Settings that only shape the checkpoint that training starts from.
START_SETTINGS = ("gene_names_from", "gene_average_start", "text_whitening")


@dataclass(frozen=True)
class Trials:
    """
    Training runs, each in a process of its own.

    Args:
        folder: Folder of the runs.
        threads: Number of threads of each run.
        steps: Number of steps of each run; the recipe's by default.
    """

    folder: Path
    threads: int
    steps: int | None

    def start(self, choice: str) -> Path:
        """Returns the folder of the checkpoint that a run starts from."""
        return self.folder / "-".join(["start", *_start_settings(CHOICES[choice])])

    def make_start(self, choice: str) -> None:
        """Makes the checkpoint that a run starts from, unless it exists."""
        self._train(self.start(choice), _read_recipe() | _start_settings(CHOICES[choice]) | {"steps": 0})

    def measure(self, choice: str, seed: int) -> dict[str, float]:
        """Trains a run, unless it is finished, and returns its last measurement."""
        output = self.folder / f"{choice.replace(' ', '-').replace(',', '')}-seed{seed}"
        changes = {"start": str(self.start(choice))} | CHOICES[choice] | {"seed": seed}
        changes |= {"held_out_cells": 1_000_000, "evaluate_every": 1_000_000}
        changes |= {} if self.steps is None else {"steps": self.steps}
        changes = {name: value for name, value in changes.items() if name not in START_SETTINGS}
        self._train(output, _read_recipe() | changes)
        *_, last = (output / "held_out.jsonl").read_text().splitlines()
        return json.loads(last)

    def _train(self, output: Path, settings: dict[str, object]) -> None:
        path, content = output.with_suffix(".yaml"), yaml.safe_dump(settings | {"output": str(output)})
        if (output / "training.json").exists():
            if path.read_text() != content:
                raise RuntimeError(
                    f"{output.name} was run with a different recipe: choose a different folder, or remove it."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, "train.py", str(path)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{output.name}: {done.stderr[-2000:]}")


def _start_settings(changes: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in changes.items() if name in START_SETTINGS}


def _read_recipe() -> dict[str, object]:
    return yaml.safe_load(RECIPE.read_text())


def main(
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    choice: Annotated[list[str] | None, typer.Option(help="Choice to run instead of all; can be repeated.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the runs.")] = REPOSITORY / "runs" / "ablation",
    num_proc: Annotated[int, typer.Option(help="Number of runs at the same time.")] = 1,
    threads: Annotated[int, typer.Option(help="Number of threads of each run.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Number of steps of each run; the recipe's by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure what each choice in langcell-mini's recipe contributes."""
    chosen = choice or list(CHOICES)
    # The jobs go seed by seed, so that early results cover every choice.
    jobs = [(name, seed) for seed in range(seeds) for name in chosen]
    trials = Trials(folder.resolve(), threads, steps)
    with ThreadPoolExecutor(num_proc) as pool:
        made_here = [name for name in chosen if "start" not in CHOICES[name]]
        # Many choices start from the same checkpoint: each is made once.
        list(pool.map(trials.make_start, {trials.start(name): name for name in made_here}.values()))
        found = dict(zip(jobs, pool.map(lambda job: trials.measure(*job), jobs), strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for name in chosen:
        by_seed = [found[name, seed] for seed in range(seeds)]
        measured = [key for key in by_seed[0] if key != "step"]
        rows[name] = {
            "changes": CHOICES[name],
            "mean": {key: float(np.mean([one[key] for one in by_seed])) for key in measured},
            "by_seed": {key: [one[key] for one in by_seed] for key in measured},
        }
        typer.echo(f"{name:40} " + "  ".join(f"{key} {value:.3f}" for key, value in rows[name]["mean"].items()))
    write_record(
        json_file, {"recipe": RECIPE.name, "seeds": seeds, "steps": steps, "threads": threads, "results": rows}
    )


if __name__ == "__main__":
    typer.run(main)
