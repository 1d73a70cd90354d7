# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Rates of two checkouts of the package on the same cells, measured in turn: what a change costs or saves."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

#: Options of the annotator by what a cell is compared with: embeddings alone, all texts, or the most similar ones.
_WAYS = {
    "similarity": {"alpha": 1.0},
    "matching": {"alpha": 0.5, "shortlist": None},
    "shortlist": {"alpha": 0.5, "shortlist": 4},
}

#: Runs in a process of each checkout, and annotates whenever it is told to. It uses only what both checkouts have.
#: bfloat16 is left out on a CPU without instructions for it, where it takes minutes.
_PROGRAM = """
import json, sys, time
import anndata as ad, numpy as np, torch
from modeling_langcell import LangCellAnnotator
path, n_cells, labels, ways = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
cells, dtypes = ad.read_h5ad(path), ["float32"]
if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
    dtypes.append("bfloat16")
annotators = {dtype: LangCellAnnotator.from_pretrained("hub_configs/langcell-mini", dtype=dtype) for dtype in dtypes}
print(json.dumps([[dtype, way] for dtype in dtypes for way in ways]), flush=True)
for line in sys.stdin:
    seed, dtype, way = json.loads(line)
    rows = np.sort(np.random.default_rng(seed).permutation(cells.n_obs)[:n_cells])
    drawn = cells[rows].copy()
    start = time.perf_counter()
    found = annotators[dtype].annotate(drawn, labels, **ways[way])
    seconds = time.perf_counter() - start
    embeds = np.asarray(found.obsm["X_langcell"], dtype=float).round(7).tolist()
    print(json.dumps([seconds, found.obs["langcell_cell_type"].astype(str).tolist(), embeds]), flush=True)
"""


def compare_checkouts(before: Path, cells: Path, labels: list[str], rounds: int, n_cells: int) -> dict[str, Any]:
    """
    Annotates cells with langcell-mini in a process of each checkout. Both live all the time and work in turn, so that
    what is compared is only seconds apart: a machine that others use changes its speed from minute to minute.

    Args:
        before: The other checkout; this one is the working directory.
        cells: An `.h5ad` file of raw counts.
        labels: Candidates.
        rounds: Number of pairs of runs of each way of annotating, after one that is not counted.
        n_cells: Number of cells, drawn anew for each round.

    Returns:
        For every way of annotating the median `cells_per_second` of both, and the median of the `ratio_by_round` of
        this checkout to the other; the largest difference between embeddings; and the share of equal answers.
    """
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    differences: dict[str, list[float]] = defaultdict(list)
    equal = []
    arguments = [str(cells.resolve()), str(n_cells), json.dumps(labels), json.dumps(_WAYS)]
    with _annotating(before, arguments) as old, _annotating(Path.cwd(), arguments) as new:
        processes = {"before": old, "after": new}
        ways, _ = [json.loads(_read(process)) for process in processes.values()]
        for number in range(rounds + 1):
            for dtype, way in ways:
                found = {}
                for name in sorted(processes, reverse=bool(number % 2)):
                    print(json.dumps([number, dtype, way]), file=processes[name].stdin, flush=True)
                    found[name] = json.loads(_read(processes[name]))
                    if number:
                        rates[f"{way}, {dtype}"][name].append(n_cells / found[name][0])
                (_, answers, embeds), (_, expected, expected_embeds) = found["after"], found["before"]
                equal.append(float(np.mean(np.array(answers) == np.array(expected))))
                differences[dtype].append(float(np.abs(np.array(embeds) - np.array(expected_embeds)).max()))
    ratios = {
        way: [new / old for old, new in zip(rate["before"], rate["after"], strict=True)] for way, rate in rates.items()
    }
    return {
        "cells": n_cells,
        "rounds": rounds,
        "cells_per_second": {
            way: {name: float(np.median(of_name)) for name, of_name in rate.items()} for way, rate in rates.items()
        },
        "ratio": {way: float(np.median(ratio)) for way, ratio in ratios.items()},
        "ratio_by_round": ratios,
        "largest_difference": {dtype: max(of_dtype) for dtype, of_dtype in differences.items()},
        "equal_answers": float(np.mean(equal)),
    }


@contextmanager
def _annotating(checkout: Path, arguments: list[str]) -> Iterator[subprocess.Popen]:
    """Starts the program in a checkout, and ends it."""
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _read(process: subprocess.Popen) -> str:
    """
    Reads a line of what the program prints.

    Raises:
        RuntimeError: It has ended. It has printed why.
    """
    assert process.stdout is not None
    line: str = process.stdout.readline()
    if not line:
        raise RuntimeError("The program has ended: its message is above.")
    return line


__all__ = ["compare_checkouts"]
