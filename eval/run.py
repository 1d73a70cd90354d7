# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Fills the table of results: a cell is a task, a study, a method, a setting and a seed. A cell that was filled is never
computed again: a run that was killed goes on when the same command is given.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from modeling_langcell.eval.record import record
from modeling_langcell.eval.studies import Study
from modeling_langcell.eval.task import Bench, Cell, Task
from modeling_langcell.feature_extraction_langcell import InputError
from modeling_langcell.files import write_whole

#: Tasks by name, and the file of each.
TASKS = {
    "zero-shot": "zero_shot",
    "novel-types": "novel_types",
    "few-shot": "few_shot",
    "fine-tuning": "fine_tuning",
    "retrieval": "retrieval",
    "integration": "integration",
    "disease": "disease",
    "pathways": "pathways",
    "masked-genes": "masked_genes",
}


def find_task(name: str) -> Task:
    """
    Raises:
        InputError: No such task, or one that needs what is not installed.
    """
    if name not in TASKS:
        raise InputError(f"No task {name!r}; tasks: {', '.join(TASKS)}.")
    try:
        return import_module(f"modeling_langcell.eval.tasks.{TASKS[name]}").TASK
    except ImportError as error:
        raise InputError(
            f"The task {name!r} needs {error.name}: pip install it, or an extra that brings it."
        ) from error


def evaluate(
    task: Task,
    bench: Bench,
    *,
    seeds: int,
    out: Path,
    studies: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> dict[str, Any]:
    """
    Fills the cells of a task that are not filled yet, and writes the table.

    Args:
        task: What is measured.
        bench: By which model, on which data.
        seeds: How often what is drawn is drawn.
        out: Folder for `<task>.json`, `<task>.md` and, one a cell, `cells/`.
        studies: Other studies than the task's own.
        methods: Some of the task's; all by default.

    Returns:
        What `<task>.json` holds.

    Raises:
        InputError: No such study or method, or data that is not there.
    """
    chosen = [bench.study(name) for name in studies or task.studies]
    wanted = list(methods or task.methods)
    if unknown := sorted({*wanted} - {*task.methods}):
        raise InputError(f"{task.name} has no method {unknown[0]!r}; there are {', '.join(task.methods)}.")
    model = fingerprint(bench)
    say = Console(stderr=True)
    cells = []
    for study, method, setting, seed in places(task, chosen, wanted, seeds):
        title = " ".join(map(str, (task.name, study.name, method, *setting.values(), f"seed {seed}")))
        key = {
            "task": task.name,
            "study": study.name,
            "version": study.version,
            "method": method,
            "setting": dict(setting),
            "seed": seed,
            "model": model,
            "alpha": bench.alpha,
        }
        if bench.gene_sets is not None:
            key["gene_sets"] = hashlib.sha256(bench.gene_sets.read_bytes()).hexdigest()
        file = out / "cells" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
        filled = json.loads(file.read_text()) if file.exists() else None
        if filled is None:
            start = time.perf_counter()
            found = task.measure(Cell(bench, study, method, setting, seed))
            filled = key | asdict(found) | {"seconds": round(time.perf_counter() - start, 2), "peak_gb": peak_memory()}
            write_whole(file, json.dumps(filled).encode())
        shown = ", ".join(f"{name} {value:.3f}" for name, value in filled["scores"].items())
        say.print(f"{title}: {shown}", highlight=False, soft_wrap=True)
        cells.append(filled)
    result = record(
        {
            "task": {
                "name": task.name,
                "question": task.question,
                "metrics": task.metrics,
                "main_score": task.main_score,
            },
            "model": {"checkpoint": _named(bench.model), "adapter": _named(bench.adapter), "fingerprint": model},
            "studies": {study.name: asdict(study) for study in chosen},
            "seeds": seeds,
            "cells": cells,
        }
    )
    write_whole(out / f"{task.name}.json", _by_lines(result).encode())
    write_whole(out / f"{task.name}.md", table(task, cells).encode())
    return result


def places(
    task: Task, studies: Sequence[Study], methods: Sequence[str], seeds: int
) -> Iterator[tuple[Study, str, Mapping[str, Any], int]]:
    """The cells of the table: what is not drawn is measured once."""
    for study in studies:
        for method in methods:
            for setting in filter(partial(task.has, method), task.settings):
                for seed in range(seeds if method in task.drawn else 1):
                    yield study, method, setting, seed


def table(task: Task, cells: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: means over seeds, and their spread where there are several."""
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault((cell["study"], cell["method"], *cell["setting"].values()), []).append(cell)
    names = [name for name in task.metrics if any(name in cell["scores"] for cell in cells)]
    names.sort(key=lambda name: name != task.main_score)
    varied = list(cells[0]["setting"]) if cells else []
    lines = [f"# {task.name}", "", task.question, ""]
    lines.append("| " + " | ".join(["study", "method", *varied, *(name.replace("_", " ") for name in names)]) + " |")
    lines.append("|" + " --- |" * (2 + len(varied) + len(names)))
    for row, same in rows.items():
        values = [_mean(name, same) for name in names]
        lines.append("| " + " | ".join([*map(str, row), *values]) + " |")
    return "\n".join(lines) + "\n"


def _named(source: str | None) -> str | None:
    """A Hub id as it is; a folder as seen from here, or by its name alone: where it lies elsewhere says nothing."""
    if source is None or not Path(source).is_dir():
        return source
    folder, here = Path(source).resolve(), Path.cwd()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else folder.name


def _by_lines(result: dict[str, Any]) -> str:
    """As JSON, a cell of the table a line."""
    head = json.dumps({name: value for name, value in result.items() if name != "cells"}, indent=1)
    cells = ",\n  ".join(json.dumps(cell) for cell in result["cells"])
    return f'{head[:-2]},\n "cells": [\n  {cells}\n ]\n}}\n'


def _mean(name: str, cells: Sequence[Mapping[str, Any]]) -> str:
    values = [cell["scores"][name] for cell in cells if name in cell["scores"]]
    if not values:
        return ""
    if len(values) > 1:
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    interval = cells[0]["intervals"].get(name)
    return f"{values[0]:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def fingerprint(bench: Bench) -> str:
    """Which weights these are: a hash of the model's and of the adapter's."""
    digest = hashlib.sha256()
    for parameter in bench.annotator.model.state_dict().values():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())
    if (adaptation := bench.annotator.adaptation) is not None and adaptation.prototypes is not None:
        digest.update(adaptation.prototypes.numpy().tobytes())
    return digest.hexdigest()[:16]


def peak_memory() -> float:
    """The most memory this process has had, in GB."""
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 1e9, 2)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


__all__ = ["TASKS", "evaluate", "find_task", "table"]
