# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What it takes to rank the cells of a backed file, whatever its size."""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from modeling_langcell import LangCellFeatureExtractor
from modeling_langcell.annotation import open_cells

GIGABYTE = 1e9

_CELLS_AT_A_TIME = 5_000  # Cells that are made and written together.
_STATUS = Path("/proc/self/status")


def memory_of_backed_file(cells: int, genes: int, seed: int) -> dict[str, Any]:
    """
    Memory and time that a fresh process takes to rank all the cells of a backed `.h5ad`.

    Args:
        cells, genes: Size of the file, which is made for this and deleted; 20,000 cells and genes are about 0.24 GB.
        seed: Of the counts and the medians.

    Returns:
        `cells`, `genes`, `file_gb`; `peak_gb`, the most memory that was resident; `peak_gb_above_start`, that less what
        was resident before the first chunk, the names of the cells included (both `None` where the system does not
        tell); `seconds` from opening the file to the last chunk.
    """
    from modeling_langcell.eval.throughput import MAX_LENGTH, synthetic_vocabulary

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_backed_file(path, cells, genes, seed)
        extractor = LangCellFeatureExtractor(synthetic_vocabulary(genes, seed), max_length=MAX_LENGTH)
        extractor.save_pretrained(folder)
        child = subprocess.run([sys.executable, __file__, folder], check=True, stdout=subprocess.PIPE, text=True)
        file_gb = path.stat().st_size / GIGABYTE
    return {"cells": cells, "genes": genes, "file_gb": file_gb, **json.loads(child.stdout)}


def write_backed_file(path: Path, cells: int, genes: int, seed: int) -> None:
    """Writes an `.h5ad` of synthetic counts, a few thousand cells at a time: they are never all in memory."""
    from modeling_langcell.eval.throughput import synthetic_counts, synthetic_vocabulary

    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for start in range(0, cells, _CELLS_AT_A_TIME):
            part = synthetic_counts(min(_CELLS_AT_A_TIME, cells - start), genes, seed + start)
            if start == 0:
                ad.io.write_elem(file, "X", part)
            else:
                ad.io.sparse_dataset(file["X"]).append(part)
        ad.io.write_elem(file, "obs", pd.DataFrame(index=np.arange(cells).astype(str)))
        ad.io.write_elem(file, "var", pd.DataFrame(index=synthetic_vocabulary(genes, seed)["ensembl_ids"]))


def rank_backed_file(folder: Path) -> dict[str, float | None]:
    """Ranks the cells of `cells.h5ad` with the extractor of a folder, keeping none, and says what it took."""
    extractor = LangCellFeatureExtractor.from_pretrained(folder)
    start = time.perf_counter()
    chunks = extractor.chunks(open_cells(folder / "cells.h5ad"))
    before = resident("VmRSS")
    for _ in chunks:
        pass
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    return {
        "peak_gb": None if peak is None else peak / GIGABYTE,
        "peak_gb_above_start": None if peak is None or before is None else (peak - before) / GIGABYTE,
        "seconds": seconds,
    }


def resident(field: str) -> int | None:
    """
    Bytes of this process that are resident now (`VmRSS`) or were at most (`VmHWM`), None where the system does not
    tell. (`ru_maxrss` starts at the parent's in a child.)
    """
    if not _STATUS.exists():
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    return None if found is None else int(found[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(rank_backed_file(Path(sys.argv[1]))))
