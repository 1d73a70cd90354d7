# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Time, memory and disk of annotating a file as large as a study, or an atlas, with the command, which is killed and run
again.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from modeling_langcell.annotation.predictor import CHUNK_SIZE
from modeling_langcell.eval.benchmarks.memory import GIGABYTE, peak_gb
from modeling_langcell.io.columns import CELL_TYPE
from modeling_langcell.io.h5ad import open_cells, read_annotation

_BLOCK = 2**24  # Values that are compared at once.
_CHUNK = 2**20  # Values in a chunk of a file.


def annotate_study(
    cells: Path, n_cells: int, labels: list[str], kill_at: Sequence[float], with_unbroken: bool = False
) -> dict[str, Any]:
    """
    Annotates a file of `n_cells` cells, repeated from a smaller file, with langcell-mini.

    Args:
        cells: An `.h5ad` file of raw counts.
        n_cells: Number of cells of the study.
        labels: Candidates.
        kill_at: Shares of the cells after each of which the process gets SIGKILL, and the command is run again.
        with_unbroken: Also annotate the study without a kill, and compare the outputs.

    Returns:
        `runs`: `seconds`, those until the first chunk was stored and those after the last one was, `cells_done`, peak
        memory `peak_gb` and most space of unfinished files `disk_gb` of each process; `cells_done_before`, as the last
        one reports it; the size of the study; and the share of cells with the same answer as their first copy. With an
        unbroken run: its process, and whether all that it wrote `is_identical`.
    """
    with tempfile.TemporaryDirectory() as folder:
        study, output, whole = (Path(folder) / f"{name}.h5ad" for name in ("study", "annotated", "unbroken"))
        once = tile(cells, n_cells, study)
        runs = [_run(study, output, labels, n_cells, share) for share in (*kill_at, None)]
        result, unfinished = json.loads(runs[-1].pop("said")), _unfinished(output)
        answers = read_annotation(output).obs[CELL_TYPE].astype(str).to_numpy()
        found = {
            "cells": n_cells,
            "file_gb": study.stat().st_size / GIGABYTE,
            "candidates": len(labels),
            "runs": [{name: fact for name, fact in run.items() if name != "said"} for run in runs],
            "cells_done_before": result["cells_done_before"],
            "labels": result["labels"],
            "equal_cells_get_equal_answers": float((answers == answers[np.arange(n_cells) % once]).mean()),
            "nothing_left": not unfinished.exists(),
        }
        if with_unbroken:
            run = _run(study, whole, labels, n_cells, None)
            del run["said"]
            found |= {"unbroken": run, "is_identical": are_identical(output, whole)}
        return found


def _run(study: Path, output: Path, labels: list[str], n_cells: int, kill_at: float | None) -> dict[str, Any]:
    """Runs the command in a process of its own, and kills it after a share of the cells, if one is given."""
    command = [sys.executable, "-m", "modeling_langcell.cli", "annotate", str(study), "--out", str(output)]
    command += ["--labels", "; ".join(labels), "--json"]
    unfinished, start, peak, on_disk = _unfinished(output), time.perf_counter(), 0.0, 0
    begun, annotated, before = None, None, _cells_done(_unfinished(output))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            peak = max(peak, peak_gb(process.pid) or 0.0)
            on_disk, done = max(on_disk, _bytes_in(unfinished)), _cells_done(unfinished)
            begun = time.perf_counter() if begun is None and done > before else begun
            annotated = time.perf_counter() if annotated is None and done >= n_cells else annotated
            if kill_at is not None and done >= kill_at * n_cells:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.25)  # To look costs time, too.
        said = process.stdout.read() if process.stdout else ""
    end = time.perf_counter()
    return {
        "ended_by": "SIGKILL" if process.returncode == -signal.SIGKILL else process.returncode,
        "seconds": end - start,
        "seconds_to_first_chunk": None if begun is None else begun - start,
        "seconds_after_last_chunk": None if annotated is None else end - annotated,
        "cells_done": n_cells if output.exists() else _cells_done(unfinished),
        "peak_gb": peak,
        "disk_gb": on_disk / GIGABYTE,
        "said": said,
    }


def are_identical(one: Path, other: Path) -> bool:
    """Returns true if two files have the same groups, datasets, attributes and values, up to the bits."""

    def contents(file: h5py.File) -> dict[str, h5py.Group | h5py.Dataset]:
        found: dict[str, h5py.Group | h5py.Dataset] = {}
        file.visititems(lambda name, item: found.__setitem__(name, item))
        return found

    with h5py.File(one) as first, h5py.File(other) as second:
        parts, others = contents(first), contents(second)
        return parts.keys() == others.keys() and all(_same(part, others[name]) for name, part in parts.items())


def _same(part: h5py.Group | h5py.Dataset, other: h5py.Group | h5py.Dataset) -> bool:
    attributes = [{name: np.asarray(value).tolist() for name, value in item.attrs.items()} for item in (part, other)]
    if attributes[0] != attributes[1] or type(part) is not type(other):
        return False
    if isinstance(part, h5py.Group):
        return True
    if part.shape != other.shape or part.dtype != other.dtype:
        return False
    if not part.shape:
        return bool(np.array_equal(part[()], other[()]))
    rows = max(1, _BLOCK // max(1, int(np.prod(part.shape[1:]))))
    blocks = ((part[start : start + rows], other[start : start + rows]) for start in range(0, part.shape[0], rows))
    if part.dtype.kind == "O":  # Texts are objects, of which only the values can be compared.
        return all(np.array_equal(*block) for block in blocks)
    return all(ours.tobytes() == theirs.tobytes() for ours, theirs in blocks)


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
        matrix = file["X"]
        for name in ("data", "indices"):  # In large chunks, which are read as fast as one piece.
            dtype = matrix[name].dtype
            del matrix[name]
            matrix.create_dataset(name, (0,), dtype, chunks=(_CHUNK,), maxshape=(None,))
        ends = [np.zeros(1, np.int64)]
        for first in range(0, n_cells, adata.n_obs):
            part, start = change(once[: n_cells - first]), ends[-1][-1]
            ends.append(start + part.indptr[1:].astype(np.int64))
            for name in ("data", "indices"):
                matrix[name].resize((ends[-1][-1],))
                matrix[name][start:] = getattr(part, name)
        del matrix["indptr"]
        matrix["indptr"] = np.concatenate(ends)
        matrix.attrs["shape"] = n_cells, adata.n_vars
        samples = [f"sample {8 * number // n_cells + 1}" for number in range(n_cells)]
        names = [f"cell{number}" for number in range(n_cells)]
        write_elem(file, "obs", pd.DataFrame({"sample": pd.Categorical(samples)}, index=names))
        write_elem(file, "var", adata.var)
        for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, name, {})
    return adata.n_obs


def _unfinished(output: Path) -> Path:
    return output.with_name(f".{output.name}.unfinished")


def _bytes_in(folder: Path) -> int:
    """Returns the size of the files of a folder, some of which may go meanwhile."""
    size = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                size += path.stat().st_size
    return size


def _cells_done(unfinished: Path) -> int:
    """Counts the cells of the chunks that were written, which are all of one size."""
    return CHUNK_SIZE * len(list(unfinished.glob("[0-9]*.safetensors"))) if unfinished.is_dir() else 0


__all__ = ["annotate_study", "tile"]
