# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Size of the report of a large study, and the time that a browser takes to open it."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from modeling_langcell.eval.benchmarks.memory import GIGABYTE
from modeling_langcell.eval.benchmarks.study_run import tile
from modeling_langcell.eval.experiments.pictures import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_SEED = 0
_KEPT = 0.8  # Share of the counts that a copy keeps: no two copies of a cell are the same cell.


def open_report(cells: Path, n_cells: int, labels: list[str], rounds: int, keep: Path | None = None) -> dict[str, Any]:
    """
    Annotates a study of `n_cells` cells by cluster with a report, and opens that in Chromium.

    Args:
        cells: An `.h5ad` file of raw counts. The study repeats its cells, each time with four fifths of the counts.
        n_cells: Number of cells of the study.
        labels: Candidates.
        rounds: Number of times that the report is opened, each in a new process of the browser.
        keep: File for the report. None for no file.

    Returns:
        The size of the report; the seconds of the command; and for each round the seconds until the page is loaded and
        its map is drawn.
    """
    generator = np.random.default_rng(_SEED)

    def thin(counts: sp.csr_matrix) -> sp.csr_matrix:
        kept = generator.binomial(counts.data.astype(np.int64), _KEPT).astype(counts.dtype)
        thinned = sp.csr_matrix((kept, counts.indices, counts.indptr), counts.shape)
        thinned.eliminate_zeros()
        return thinned

    with tempfile.TemporaryDirectory() as folder:
        study, page = Path(folder) / "study.h5ad", keep or Path(folder) / "report.html"
        tile(cells, n_cells, study, thin)
        command = [sys.executable, "-m", "modeling_langcell.cli", "annotate", str(study), "--cluster"]
        command += ["--labels", "; ".join(labels), "--report", str(page), "--sample-key", "sample"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        opened = []
        for _ in range(rounds):
            with chromium() as browser:
                opened.append(seconds_to_open(browser, page))
                version = browser.version
        return {
            "cells": n_cells,
            "candidates": len(labels),
            "study_gb": study.stat().st_size / GIGABYTE,
            "report_mb": page.stat().st_size / 1e6,
            "annotated_in_seconds": seconds,
            "browser": f"Chromium {version}",
            "opened_in_seconds": opened,
        }


def seconds_to_open(browser: "Browser", page: Path) -> float:
    """Returns the seconds from the request of a report until its map is on the screen."""
    tab = browser.new_page(viewport={"width": 1300, "height": 900})
    start = time.perf_counter()
    tab.goto(page.resolve().as_uri(), wait_until="load")
    # The frame after the next one: what was drawn is on the screen.
    tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.perf_counter() - start
    coloured = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v > 0)"
    assert tab.locator("canvas").first.evaluate(coloured), "the map is empty"
    return seconds


__all__ = ["open_report", "seconds_to_open"]
