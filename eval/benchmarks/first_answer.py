# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The time from the command line to the first answer, of which the import of libraries is the largest part."""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

#: What is run, by name: nothing but the imports that no annotation can do without, and the command in two ways.
_WAYS = {
    "imports": ["-c", "import anndata, torch, transformers.modeling_utils"],
    "annotate": ["-m", "modeling_langcell.cli", "annotate", "{cells}", "--out", "{folder}/cells.h5ad"],
    "annotate with report and figure": [
        *("-m", "modeling_langcell.cli", "annotate", "{cells}", "--out", "{folder}/cells.h5ad"),
        *("--report", "{folder}/report.html", "--figure", "{folder}/figure.png"),
    ],
}


def measure_first_answer(cells: Path, rounds: int, before: Path | None) -> dict[str, Any]:
    """
    Annotates a file with langcell-mini in fresh processes, the candidates being those of the tissue that it finds.

    Args:
        cells: An `.h5ad` file of raw counts.
        rounds: Number of rounds, each of which runs everything in turn, after one that fills caches.
        before: Another checkout to compare with; this one is the working directory.

    Returns:
        For each way, and each checkout (`after`, `before`): the medians of `seconds` and `cpu_seconds`, of all threads,
        and those of every round; and, with another checkout, the median of the `ratio` of CPU seconds before to after.
    """
    checkouts = {"after": Path.cwd()} | ({} if before is None else {"before": before})
    taken: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for way, options in _WAYS.items():
                arguments = [option.format(cells=cells.resolve(), folder=folder) for option in options]
                for name in sorted(checkouts, reverse=bool(number % 2)):
                    seconds = _run([sys.executable, *arguments], checkouts[name])
                    if number:
                        taken[way][name].append(seconds)
    return {way: _summary(by_checkout) for way, by_checkout in taken.items()}


def _run(command: list[str], folder: Path) -> tuple[float, float]:
    """Returns the seconds of a command, and those of the CPUs."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def _summary(by_checkout: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, rounds in by_checkout.items():
        seconds, cpu = np.array(rounds).T
        found[name] = {
            "seconds": float(np.median(seconds)),
            "cpu_seconds": float(np.median(cpu)),
            "cpu_seconds_by_round": cpu.tolist(),
        }
    if "before" in found:
        ratios = np.divide(*(found[name]["cpu_seconds_by_round"] for name in ("before", "after")))
        found["ratio"] = float(np.median(ratios))
    return found


__all__ = ["measure_first_answer"]
