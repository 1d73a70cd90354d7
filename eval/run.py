# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Measures the runs of a task and writes its table of results. A run is a study, a method, a setting and a seed. Finished
runs are never measured again: repeating a command that was killed continues it.
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
from modeling_langcell.eval.training_rows import training_files
from modeling_langcell.io.documents import read_json
from modeling_langcell.io.file_kinds import JSON, SCORES, require_replaceable
from modeling_langcell.io.printable import markdown_cell, one_line
from modeling_langcell.io.replace import write_result
from modeling_langcell.model.errors import InputError, reason_of
from modeling_langcell.ontology import cell_type, id_of

#: Names of the tasks and their modules.
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
    "clusters": "clusters",
    "explanations": "explanations",
}


def find_task(name: str) -> Task:
    """
    Returns a task by its name, with the function that measures it.

    Raises:
        InputError: There is no such task, or it needs a package that is not installed.
    """
    if name not in TASKS:
        raise InputError(f"No task {name!r}; tasks: {', '.join(TASKS)}.")
    try:
        found = import_module(f"modeling_langcell.eval.tasks.{TASKS[name]}")
        return replace(found.TASK, measure=found.measure)
    except ImportError as error:
        raise InputError(
            f"The task {name!r} needs {error.name}: pip install it, or an extra that includes it."
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
    Measures the runs of a task that were not measured before, and writes the table. Runs that the table already had
    stay in it if they would be the same today, even if their studies or methods are not requested this time.

    Args:
        task: The task.
        context: Model and data.
        seeds: Number of random seeds.
        out: Folder for `<task>.json` and `<task>.md`; it also keeps one file per run in `cells/`.
        studies: Names of studies; the task's own by default.
        methods: Names of methods; all of the task's by default.

    Returns:
        The content of `<task>.json`.

    Raises:
        InputError: A study, method or file does not exist, an adapter is given to a task that adapts the checkpoint
            itself, or the folder cannot be written.
    """
    page = out / f"{task.name}.md"
    require_replaceable(page, SCORES)
    chosen = [context.study(name) for name in studies or task.studies]
    wanted = list(methods or task.methods)
    if unknown := sorted({*wanted} - {*task.methods}):
        raise InputError(f"{task.name} has no method {unknown[0]!r}; there are {', '.join(task.methods)}.")
    if task.adapts and context.adapter is not None:
        raise InputError(f"{task.name} adapts the checkpoint itself: leave out the adapter.")
    annotator = context.annotator
    model = fingerprint(annotator.model, annotator.processor)
    scored_by = fingerprint(annotator.model, annotator.processor, with_markers=task.reads_markers)
    before = _read_table(out / f"{task.name}.json")
    console = Console(stderr=True)
    runs: dict[str, dict[str, Any]] = {}
    for study, method, setting, seed in planned_runs(task, chosen, wanted, seeds):
        key = _key(task, context, scored_by, study, method, setting, seed)
        name = _digest(key)
        file = out / "cells" / f"{name}.json"
        run = before.get(name) or _read_run(file)
        if run is None:
            assert task.measure is not None
            start = time.perf_counter()
            found = task.measure(Run(context, study, method, setting, seed))
            run = key | asdict(found) | {"seconds": round(time.perf_counter() - start, 2), "peak_gb": peak_memory()}
            write_result(file, json.dumps(run), JSON)
        title = " ".join(map(str, (task.name, study.name, method, *setting.values(), f"seed {seed}")))
        scores = ", ".join(f"{name} {value:.3f}" for name, value in run["scores"].items())
        console.print(one_line(f"{title}: {scores}"), markup=False, highlight=False, soft_wrap=True)
        runs[name] = run
    settings = [dict(setting) for setting in task.settings]
    for name, run in before.items():
        if run["study"] in context.studies and run["method"] in task.methods and run["setting"] in settings:
            study = context.study(run["study"])
            try:
                today = _digest(_key(task, context, scored_by, study, run["method"], run["setting"], run["seed"]))
            except InputError:  # The study's cells are not here, so nothing says that the run would differ.
                today = name
            if name == today:  # Other runs would count as further seeds of the same row.
                runs.setdefault(name, run)
    ordered = _sorted_by_task(task, list(runs.values()))
    result = record(
        {
            "task": {
                "name": task.name,
                "question": task.question,
                "metrics": task.metrics,
                "main_score": task.main_score,
            },
            "model": {
                "checkpoint": _portable_name(context.model),
                "adapter": _portable_name(context.adapter),
                "fingerprint": model,
            },
            "studies": {name: asdict(context.study(name)) for name in dict.fromkeys(run["study"] for run in ordered)},
            "seeds": seeds,
            "cells": ordered,  # Files of results call runs cells.
        }
    )
    write_result(out / f"{task.name}.json", _to_json(result), JSON)
    write_result(page, table(task, ordered, context.studies), SCORES)
    return result


def _key(
    task: Task, context: EvaluationContext, model: str, study: Study, method: str, setting: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Returns everything that a run's result depends on: runs with the same key have the same result."""
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
    if task.reads_markers:
        key["markers"] = _digest(_markers_of(context, study))
    if task.uses_training_rows:
        key["training"] = _digest([(file.name, context.content_of(file)) for file in training_files(context.data)])
    if context.gene_sets is not None:
        key["gene_sets"] = context.content_of(context.gene_sets)
    return key


def _markers_of(context: EvaluationContext, study: Study) -> dict[str, list[str]]:
    """Returns the genes that the catalogue has for a study's types: markers and, with a minus, absent ones."""
    types = sorted(set(context.cells(study).obs[study.label_key].astype(str)))
    known = {name: cell_type(id_of(name)) for name in types}
    return {
        name: [*one.markers, *(f"-{gene}" for gene in one.absent)] for name, one in known.items() if one is not None
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _read_table(file: Path) -> dict[str, dict[str, Any]]:
    """Returns the runs of an earlier table by the digest of their keys."""
    if not file.is_file():
        return {}
    measured = {"scores", "intervals", "per_class", "drawings", "seconds", "peak_gb"}
    try:
        runs = read_json(file, finite=False)["cells"]
        return {_digest({name: run[name] for name in run if name not in measured}): run for run in runs}
    except (InputError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a table of results: {reason_of(error)}. Name a different folder, or remove it."
        ) from error


def _read_run(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file, finite=False) if file.exists() else None
    except InputError as error:
        raise InputError(f"{file} is damaged: remove it and repeat the command.") from error


def _sorted_by_task(task: Task, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns runs in the order of the task's studies, methods and settings; the user's own studies come last."""

    def place(run: dict[str, Any]) -> tuple:
        study = run["study"]
        own = task.studies.index(study) if study in task.studies else len(task.studies)
        setting = [dict(setting) for setting in task.settings].index(run["setting"])
        return own, study, task.methods.index(run["method"]), setting, run["seed"]

    return sorted(runs, key=place)


def planned_runs(
    task: Task, studies: Sequence[Study], methods: Sequence[str], seeds: int
) -> Iterator[tuple[Study, str, Mapping[str, Any], int]]:
    """Yields study, method, setting and seed of each run; methods without randomness run with one seed."""
    for study in studies:
        for method in methods:
            for setting in filter(partial(task.applies, method), task.settings):
                for seed in range(seeds if method in task.seeded else 1):
                    yield study, method, setting, seed


def table(task: Task, runs: Sequence[Mapping[str, Any]], studies: Mapping[str, Study]) -> str:
    """Returns a Markdown table of means, with their spread over several seeds, and a line about each study."""
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for run in runs:
        rows.setdefault((run["study"], run["method"], *run["setting"].values()), []).append(run)
    names = [name for name in task.metrics if any(name in run["scores"] for run in runs)]
    names.sort(key=lambda name: name != task.main_score)
    varied = list(runs[0]["setting"]) if runs else []
    lines = [f"# {task.name}", "", task.question, ""]
    lines.append("| " + " | ".join(["study", "method", *varied, *(name.replace("_", " ") for name in names)]) + " |")
    lines.append("|" + " --- |" * (2 + len(varied) + len(names)))
    for row, seeds in rows.items():
        values = [_mean(name, seeds) for name in names]
        lines.append("| " + " | ".join(map(markdown_cell, [*map(str, row), *values])) + " |")
    lines.append("")
    for name in dict.fromkeys(run["study"] for run in runs):
        study = studies[name]
        trained = "The shipped checkpoint was trained on it." if study.in_training else "It was not used for training."
        lines.append(one_line(f"- **{name}**: {study.what} {study.citation}. {trained}"))
    return "\n".join(lines) + "\n"


def _portable_name(source: str | None) -> str | None:
    """
    Returns a Hub id unchanged, and a folder relative to the working directory. A folder elsewhere is given by its name
    alone, since its path means nothing on other machines.
    """
    if source is None or not Path(source).is_dir():
        return source
    folder, here = Path(source).resolve(), Path.cwd()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else folder.name


def _to_json(result: dict[str, Any]) -> str:
    """Returns a result as JSON with one run per line."""
    head = json.dumps({name: value for name, value in result.items() if name != "cells"}, indent=1)
    runs = ",\n  ".join(json.dumps(run) for run in result["cells"])
    return f'{head[:-2]},\n "cells": [\n  {runs}\n ]\n}}\n'


def _mean(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    values = [run["scores"][name] for run in runs if name in run["scores"]]
    if not values:
        return ""
    if len(values) > 1:
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    interval = runs[0]["intervals"].get(name)
    return f"{values[0]:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def peak_memory() -> float:
    """Returns the peak memory of this process until now, in GB."""
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 1e9, 2)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


__all__ = ["TASKS", "evaluate", "find_task", "table"]
