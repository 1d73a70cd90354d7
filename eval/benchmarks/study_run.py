# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Time and memory of annotating a file as large as a study with the command, which is killed once and run again."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

from modeling_langcell.annotation.predictor import CHUNK_SIZE
from modeling_langcell.eval.benchmarks.memory import GIGABYTE, peak_gb
from modeling_langcell.io.columns import CELL_TYPE
from modeling_langcell.io.h5ad import open_cells, read_annotation


def annotate_study(cells: Path, n_cells: int, labels: list[str], kill_at: float) -> dict[str, Any]:
    """
    Annotates a file of `n_cells` cells, repeated from a smaller file, with langcell-mini.

    Args:
        cells: An `.h5ad` file of raw counts.
        n_cells: Number of cells of the study.
        labels: Candidates.
        kill_at: Share of the cells after which the first process gets SIGKILL.

    Returns:
        `runs`: `seconds`, `cells_done` and peak memory `peak_gb` of both processes; `cells_done_before`, as the second
        reports it; the size of the file; and the share of cells with the same answer as their first copy.
    """
    with tempfile.TemporaryDirectory() as folder:
        study, output = Path(folder) / "study.h5ad", Path(folder) / "annotated.h5ad"
        once = tile(cells, n_cells, study)
        command = [sys.executable, "-m", "modeling_langcell.cli", "annotate", str(study), "--out", str(output)]
        command += ["--labels", "; ".join(labels), "--json"]
        unfinished = output.with_name(f".{output.name}.unfinished")
        runs = []
        for share in (kill_at, None):
            start, peak = time.perf_counter(), 0.0
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
                while process.poll() is None:
                    peak = max(peak, peak_gb(process.pid) or 0.0)
                    if share is not None and _cells_done(unfinished) >= share * n_cells:
                        os.kill(process.pid, signal.SIGKILL)
                    time.sleep(0.05)
                said = process.stdout.read() if process.stdout else ""
            runs.append(
                {
                    "ended_by": "SIGKILL" if process.returncode == -signal.SIGKILL else process.returncode,
                    "seconds": time.perf_counter() - start,
                    "cells_done": n_cells if output.exists() else _cells_done(unfinished),
                    "peak_gb": peak,
                }
            )
        result = json.loads(said)
        answers = read_annotation(output).obs[CELL_TYPE].astype(str).to_numpy()
        return {
            "cells": n_cells,
            "file_gb": study.stat().st_size / GIGABYTE,
            "candidates": len(labels),
            "runs": runs,
            "cells_done_before": result["cells_done_before"],
            "labels": result["labels"],
            "equal_cells_get_equal_answers": float((answers == answers[np.arange(n_cells) % once]).mean()),
            "nothing_left": not unfinished.exists(),
        }


def tile(
    cells: Path,
    n_cells: int,
    output: Path,
    change: Callable[[sp.csr_matrix], sp.csr_matrix] = lambda counts: counts,
) -> int:
    """
    Writes a file of `n_cells` cells that repeats the cells of another, in eight samples, and returns the number of
    cells in one round. `change` is applied to the counts of every round.
    """
    adata = open_cells(cells).to_memory()
    once = sp.csr_matrix(adata.X)
    with h5py.File(output, "w") as file:
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
        write_elem(file, "X", once[:0])
        matrix = sparse_dataset(file["X"])
        for first in range(0, n_cells, adata.n_obs):
            matrix.append(change(once[: n_cells - first]))
        samples = [f"sample {8 * number // n_cells + 1}" for number in range(n_cells)]
        names = [f"cell{number}" for number in range(n_cells)]
        write_elem(file, "obs", pd.DataFrame({"sample": pd.Categorical(samples)}, index=names))
        write_elem(file, "var", adata.var)
        for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, name, {})
    return adata.n_obs


def _cells_done(unfinished: Path) -> int:
    """Counts the cells of the chunks that were written, which are all of one size."""
    return CHUNK_SIZE * len(list(unfinished.glob("[0-9]*.safetensors"))) if unfinished.is_dir() else 0


__all__ = ["annotate_study", "tile"]
