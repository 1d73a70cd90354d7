# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Rates of two checkouts of the package on the same cells, measured in turn: what a change costs or saves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

#: Runs in a process of each checkout. It uses only what both have: the annotator, and langcell-mini at the geometry of
#: the checkpoint. It prints the seconds of each way, and a digest of the embeddings.
_PROGRAM = """
import json, sys, time
import anndata as ad, numpy as np, torch
from modeling_langcell import LangCellAnnotator
path, n_cells, seed, labels = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
cells = ad.read_h5ad(path)
rows = np.sort(np.random.default_rng(seed).permutation(cells.n_obs)[:n_cells])
cells, seconds, answers = cells[rows].copy(), {}, {}
for dtype in ("float32", "bfloat16"):
    annotator = LangCellAnnotator.from_pretrained("hub_configs/langcell-mini", dtype=dtype)
    for way, options in {
        "similarity": {"alpha": 1.0}, "matching": {"alpha": 0.5}, "shortlist": {"alpha": 0.5, "shortlist": 4},
    }.items():
        for _ in range(2):  # The first is a warm-up.
            start = time.perf_counter()
            found = annotator.annotate(cells.copy(), labels, **options)
            seconds[f"{way}, {dtype}"] = time.perf_counter() - start
        answers[f"{way}, {dtype}"] = found.obs["langcell_cell_type"].astype(str).tolist()
        if way == "similarity":
            embeds = found.obsm["X_langcell"]
            answers[f"embeddings, {dtype}"] = np.asarray(embeds, dtype=float).round(7).tolist()
print(json.dumps([seconds, answers]))
"""


def compare_checkouts(before: Path, cells: Path, labels: list[str], rounds: int, n_cells: int) -> dict[str, Any]:
    """
    Annotates cells with langcell-mini in a process of each checkout, in turn.

    Args:
        before: The other checkout; this one is the working directory.
        cells: An `.h5ad` file of raw counts.
        labels: Candidates.
        rounds: Number of pairs of processes.
        n_cells: Number of cells, drawn anew for each round.

    Returns:
        For every way of annotating the median `cells_per_second` of both, and the median of the `ratio_by_round` of
        this checkout to the other; the largest difference between embeddings; and the share of equal answers.
    """
    rates: dict[str, dict[str, list[float]]] = {}
    differences, equal = {"float32": 0.0, "bfloat16": 0.0}, []
    for number in range(rounds):
        found = {}
        checkouts = {"before": before, "after": Path.cwd()}
        for name in ("before", "after") if number % 2 == 0 else ("after", "before"):
            found[name], answers = _run(checkouts[name], cells, labels, n_cells, number)
            found[name + " answers"] = answers
            for way, seconds in found[name].items():
                rates.setdefault(way, {}).setdefault(name, []).append(n_cells / seconds)
        old, new = found["before answers"], found["after answers"]
        for dtype in differences:
            embeds = [np.array(answers.pop(f"embeddings, {dtype}")) for answers in (old, new)]
            differences[dtype] = max(differences[dtype], float(np.abs(embeds[1] - embeds[0]).max()))
        equal += [np.mean(np.array(old[way]) == np.array(new[way])) for way in old]
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
        "largest_difference_of_embeddings": differences,
        "equal_answers": float(np.mean(equal)),
    }


def _run(checkout: Path, cells: Path, labels: list[str], n_cells: int, seed: int) -> tuple[dict, dict]:
    command = [sys.executable, "-c", _PROGRAM, str(cells.resolve()), str(n_cells), str(seed), json.dumps(labels)]
    printed = subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, answers = json.loads(printed.splitlines()[-1])
    return seconds, answers


__all__ = ["compare_checkouts"]
