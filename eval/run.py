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
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from modeling_langcell.checkpoint.fingerprint import fingerprint
from modeling_langcell.eval.record import record
from modeling_langcell.eval.studies import Study
from modeling_langcell.eval.task import EvaluationContext, Run, Task
from modeling_langcell.io.atomic import atomic_write
from modeling_langcell.model.errors import InputError, reason_of

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
    "doubt": "doubt",
    "explanations": "explanations",
}


def find_task(name: str) -> Task:
    """
    A task by its name, with what measures it.

    Raises:
        InputError: No such task, or one that needs what is not installed.
    """
    if name not in TASKS:
        raise InputError(f"No task {name!r}; tasks: {', '.join(TASKS)}.")
    try:
        found = import_module(f"modeling_langcell.eval.tasks.{TASKS[name]}")
        return replace(found.TASK, measure=found.measure)
    except ImportError as error:
        raise InputError(
            f"The task {name!r} needs {error.name}: pip install it, or an extra that brings it."
        ) from error


def evaluate(
    task: Task,
    context: EvaluationContext,
    *,
    seeds: int,
    out: Path,
    studies: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> dict[str, Any]:
    """
    Fills the cells of a task that are not filled yet, and writes the table. Other cells of the same model that the
    table had, of studies or methods that are not asked for this time, stay in it.

    Args:
        task: What is measured.
        context: By which model, on which data.
        seeds: How often what is drawn is drawn.
        out: Folder for `<task>.json`, `<task>.md` and, until these are written, one file a cell in `cells/`.
        studies: Other studies than the task's own.
        methods: Some of the task's; all by default.

    Returns:
        What `<task>.json` holds.

    Raises:
        InputError: No such study or method, data that is not there, an adapter where the task adapts the checkpoint
            itself, or a folder that cannot be written.
    """
    chosen = [context.study(name) for name in studies or task.studies]
    wanted = list(methods or task.methods)
    if unknown := sorted({*wanted} - {*task.methods}):
        raise InputError(f"{task.name} has no method {unknown[0]!r}; there are {', '.join(task.methods)}.")
    if task.adapts and context.adapter is not None:
        raise InputError(f"{task.name} adapts the checkpoint itself: leave out the adapter.")
    model = fingerprint(context.annotator.model, context.annotator.processor)
    before = _read_table(out / f"{task.name}.json")
    say = Console(stderr=True)
    cells: dict[str, dict[str, Any]] = {}
    for study, method, setting, seed in places(task, chosen, wanted, seeds):
        key = _key(task, context, model, study, method, setting, seed)
        name = _hash(key)
        file = out / "cells" / f"{name}.json"
        filled = before.get(name) or _read_cell(file)
        if filled is None:
            assert task.measure is not None
            start = time.perf_counter()
            found = task.measure(Run(context, study, method, setting, seed))
            filled = key | asdict(found) | {"seconds": round(time.perf_counter() - start, 2), "peak_gb": peak_memory()}
            _write(file, json.dumps(filled))
        title = " ".join(map(str, (task.name, study.name, method, *setting.values(), f"seed {seed}")))
        shown = ", ".join(f"{name} {value:.3f}" for name, value in filled["scores"].items())
        say.print(f"{title}: {shown}", highlight=False, soft_wrap=True)
        cells[name] = filled
    cells |= {
        name: cell
        for name, cell in before.items()
        if name not in cells and cell["model"] == model and cell["study"] in context.studies
    }
    ordered = _in_order(task, list(cells.values()))
    result = record(
        {
            "task": {
                "name": task.name,
                "question": task.question,
                "metrics": task.metrics,
                "main_score": task.main_score,
            },
            "model": {"checkpoint": _named(context.model), "adapter": _named(context.adapter), "fingerprint": model},
            "studies": {name: asdict(context.study(name)) for name in dict.fromkeys(cell["study"] for cell in ordered)},
            "seeds": seeds,
            "cells": ordered,
        }
    )
    _write(out / f"{task.name}.json", _by_lines(result))
    _write(out / f"{task.name}.md", table(task, ordered, context.studies))
    return result


def _key(
    task: Task, context: EvaluationContext, model: str, study: Study, method: str, setting: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """What a cell of the table depends on: where this is the same, it was filled already."""
    key = {
        "task": task.name,
        "task_version": task.version,
        "study": study.name,
        "version": study.version,
        "read_as": {"label_key": study.label_key, "batch_key": study.batch_key, **study.read},
        "method": method,
        "setting": dict(setting),
        "seed": seed,
        "model": model,
        "alpha": context.alpha,
    }
    if task.learns_elsewhere:
        files = sorted((context.data / "train").glob("*.h5ad"))
        key["training"] = _hash([(file.name, file.stat().st_size) for file in files])
    if context.gene_sets is not None:
        key["gene_sets"] = hashlib.sha256(context.gene_sets.read_bytes()).hexdigest()
    return key


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _read_table(file: Path) -> dict[str, dict[str, Any]]:
    """The cells of a table that was written before, by what each depends on."""
    if not file.is_file():
        return {}
    found_by_cell = {"scores", "intervals", "per_class", "drawings", "seconds", "peak_gb"}
    try:
        cells = json.loads(file.read_text())["cells"]
        return {_hash({name: cell[name] for name in cell if name not in found_by_cell}): cell for cell in cells}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is no table of results: {reason_of(error)}. Name another folder, or remove it."
        ) from error


def _read_cell(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged: remove it, and the same command fills it again.") from error


def _write(file: Path, content: str) -> None:
    try:
        atomic_write(file, content.encode())
    except OSError as error:
        raise InputError(f"{file} cannot be written: {reason_of(error)}.") from error


def _in_order(task: Task, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the task names its studies, methods and settings; studies of the user's own come last."""

    def place(cell: dict[str, Any]) -> tuple:
        study = cell["study"]
        own = task.studies.index(study) if study in task.studies else len(task.studies)
        setting = [dict(setting) for setting in task.settings].index(cell["setting"])
        return own, study, task.methods.index(cell["method"]), setting, cell["seed"]

    return sorted(cells, key=place)


def places(
    task: Task, studies: Sequence[Study], methods: Sequence[str], seeds: int
) -> Iterator[tuple[Study, str, Mapping[str, Any], int]]:
    """The cells of the table: what is not drawn is measured once."""
    for study in studies:
        for method in methods:
            for setting in filter(partial(task.has, method), task.settings):
                for seed in range(seeds if method in task.drawn else 1):
                    yield study, method, setting, seed


def table(task: Task, cells: Sequence[Mapping[str, Any]], studies: Mapping[str, Study]) -> str:
    """A Markdown table: means over seeds, and their spread where there are several; and what the studies are."""
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
    lines.append("")
    for name in dict.fromkeys(cell["study"] for cell in cells):
        study = studies[name]
        trained = "The shipped checkpoint was trained on it." if study.in_training else "It was not trained on."
        lines.append(f"- **{name}**: {study.what} {study.citation}. {trained}")
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


def peak_memory() -> float:
    """The most memory this process has had until now, in GB."""
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 1e9, 2)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


__all__ = ["TASKS", "evaluate", "find_task", "table"]
