# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Results of `langcell evaluate` as a checkpoint keeps them in `evaluation.json`, and as its card shows them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.files import explaining_entries, read_json
from ..io.documents import parse_json
from ..model.errors import InputError

_LANGCELL, _RANDOM = "langcell", "random_weights"


def summarize(results: str | Path) -> dict[str, Any]:
    """
    Averages the results of `langcell evaluate` over seeds.

    Args:
        results: Folder of the results.

    Returns:
        `model`, the fingerprint of its weights; `studies`; and `tasks`, each with a row per study, method and setting.
        A row has the mean, the lowest and the highest value of every score, and the number of seeds.

    Raises:
        InputError: The folder holds no results, or results of several models.
    """
    with explaining_entries(results):
        return _summarize(Path(results))


def _summarize(results: Path) -> dict[str, Any]:
    tables = [read_json(file) for file in sorted(results.glob("*.json"))]
    tables = [table for table in tables if {"task", "model", "cells"} <= table.keys()]
    models = {table["model"]["fingerprint"] for table in tables}
    if len(models) != 1:
        raise InputError(
            f"{results} holds results of {len(models)} models: give a folder that 'langcell evaluate --out' wrote."
        )
    tasks, studies = [], {}
    for table in tables:
        grouped: dict[str, list[Mapping[str, Any]]] = {}
        for run in table["cells"]:
            key = json.dumps([run["study"], run["method"], run["setting"]])
            grouped.setdefault(key, []).append(run)
        rows = []
        for key, runs in grouped.items():
            study, method, setting = parse_json(key, results)
            found = {name: mean_and_range(runs, name) for name in runs[0]["scores"]}
            scores = {
                name: {"mean": round(mean, 6), "low": round(low, 6), "high": round(high, 6), "seeds": len(runs)}
                for name, (mean, low, high) in found.items()
            }
            rows.append({"study": study, "method": method, "setting": setting, "scores": scores})
            about = table["studies"][study]
            studies[study] = {name: about[name] for name in ("what", "citation", "licence", "in_training")}
        task = {name: table["task"][name] for name in ("name", "question", "main_score")}
        tasks.append(task | {"command": table["command"], "versions": table["versions"], "rows": rows})
    tasks.sort(key=lambda task: (task["name"] != "zero-shot", task["name"]))  # The model's main use comes first.
    return {"model": models.pop(), "studies": studies, "tasks": tasks}


def mean_and_range(runs: Sequence[Mapping[str, Any]], score: str) -> tuple[float, float, float]:
    """
    Returns a score's mean, lowest and highest value over runs that differ by their seed.

    Args:
        runs: Runs as `langcell evaluate` writes them, each with its `scores` and `intervals` by name.
        score: Name of the score.

    Returns:
        Mean, low and high. A single run has its 95% interval as low and high, or only its score if it has no
        interval. NaN if no run has the score.
    """
    values = [run["scores"][score] for run in runs if score in run["scores"]]
    if not values:
        return np.nan, np.nan, np.nan
    low, high = runs[0]["intervals"].get(score, values * 2) if len(values) == 1 else (min(values), max(values))
    return float(np.mean(values)), low, high


def to_json(evaluation: Mapping[str, Any]) -> str:
    """Returns the text of `evaluation.json`, with one line per row of a task."""
    rows = (row for task in evaluation["tasks"] for row in task["rows"])
    bare = dict(evaluation) | {
        "tasks": [dict(task) | {"rows": ["row"] * len(task["rows"])} for task in evaluation["tasks"]]
    }
    return re.sub(r'^ +"row"', lambda _: f"   {json.dumps(next(rows))}", json.dumps(bare, indent=1), flags=re.M) + "\n"


def own_rows(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a task's rows that hold the scores of this checkpoint."""
    return [row for row in task["rows"] if row["method"] == _LANGCELL]


def as_table(task: Mapping[str, Any], shown_names: Mapping[str, str]) -> dict[str, Any]:
    """
    Returns a task with the rows of its table: each has the main score of this checkpoint, that of random weights, and
    the best of the other methods.

    Args:
        task: Task of an evaluation.
        shown_names: Names of the studies in the table.
    """
    main = task["main_score"]
    by_place: dict[str, dict[str, dict[str, Any]]] = {}
    for row in task["rows"]:
        place = json.dumps([row["study"], row["setting"]])
        by_place.setdefault(place, {})[row["method"]] = row["scores"].get(main)
    rows = []
    for place, methods in by_place.items():
        study, setting = parse_json(place, task["name"])
        if _LANGCELL not in methods:
            continue
        others = {name: score for name, score in methods.items() if name not in (_LANGCELL, _RANDOM) and score}
        best = max(others, key=lambda name: others[name]["mean"], default=None)
        rows.append(
            {
                "study": shown_names[study],
                "setting": ", ".join(str(value) for value in setting.values()),
                "langcell": _written(methods[_LANGCELL]),
                "random": _written(methods.get(_RANDOM)),
                "best": "" if best is None else f"{_written(others[best])}, {best.replace('_', ' ')}",
            }
        )
    varied = dict.fromkeys(name for row in task["rows"] for name in row["setting"])
    return dict(task) | {"rows": rows, "varied": ", ".join(varied)}


def in_words(setting: Mapping[str, Any]) -> list[str]:
    """Returns a run's setting in words: "5 shots", "calibrated on itself"."""
    return [
        f"{name.replace('_', ' ')} {value}" if isinstance(value, str) else f"{value} {name}"
        for name, value in setting.items()
    ]


def _written(score: Mapping[str, float] | None) -> str:
    if score is None:
        return ""
    spread = f" ({score['low']:.3f} to {score['high']:.3f})" if score["low"] < score["high"] else ""
    return f"{score['mean']:.3f}{spread}"


__all__ = ["as_table", "in_words", "mean_and_range", "own_rows", "summarize", "to_json"]
