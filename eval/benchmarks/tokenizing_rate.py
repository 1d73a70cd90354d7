# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Benchmarks of ranking cells: the published dense procedure, synthetic cells, and the memory of a backed file."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import datasets
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from modeling_langcell import LangCellFeatureExtractor
from modeling_langcell.eval.benchmarks.memory import GIGABYTE, resident
from modeling_langcell.io.h5ad import open_cells

MAX_LENGTH = 2048
_CELLS_AT_A_TIME = 5_000  # Number of cells that are made and written together.


def synthetic_vocabulary(n_genes: int, seed: int) -> dict[str, list]:
    """Returns a gene vocabulary whose medians span one or two orders of magnitude."""
    # With three decimals, different values of a cell stay different in float32.
    medians = np.random.default_rng(seed).lognormal(0.0, 0.6, n_genes).round(3).clip(0.01)
    return {
        "ensembl_ids": [f"ENSG{gene:011d}" for gene in range(n_genes)],
        "medians": medians.tolist(),
        "names": [f"GENE{gene}" for gene in range(n_genes)],
    }


def synthetic_counts(n_cells: int, n_genes: int, seed: int) -> sp.csr_matrix:
    """
    Returns sparse counts `(cells, genes)` with a realistic density of about 7.5%. Genes are drawn with log-normal rates
    and cells with log-normal depths; the count of a drawn gene is geometric with a mean of one plus its rate.
    """
    rng = np.random.default_rng(seed)
    rates = rng.lognormal(0.0, 1.5, n_genes)
    rates /= rates.mean()
    cumulative = np.cumsum(rates) / rates.sum()
    draws = (0.096 * n_genes * rng.lognormal(-0.08, 0.4, n_cells)).astype(np.int64)
    blocks = []
    for cells in np.array_split(np.arange(n_cells), max(1, n_cells // 1000)):
        cell = np.repeat(np.arange(len(cells)), draws[cells])
        gene = np.searchsorted(cumulative, rng.random(len(cell))).clip(max=n_genes - 1)
        cell, gene = np.divmod(np.unique(cell * n_genes + gene), n_genes)
        counts = rng.geometric(1 / (1 + rates[gene])).astype(np.float32)
        blocks.append(sp.csr_matrix((counts, (cell, gene)), shape=(len(cells), n_genes)))
    return sp.vstack(blocks, format="csr")


def published_tokenize(counts: sp.csr_matrix, token_ids: np.ndarray, medians: np.ndarray, cls: int) -> datasets.Dataset:
    """
    Tokenizes as the published inference code does: one dense matrix of cells, each normalised and sorted separately,
    and a `datasets` map over lists that prepends `<cls>`, truncates and adds the length.
    """
    n_counts = np.asarray(counts.sum(axis=1))
    normalized = counts.toarray() / n_counts * 10_000 / medians
    cells = []
    for values in normalized:
        expressed = np.nonzero(values)[0]
        cells.append(token_ids[expressed][np.argsort(-values[expressed])])

    def finish(cell: dict[str, Any]) -> dict[str, Any]:
        cell["input_ids"] = ([cls] + cell["input_ids"])[:MAX_LENGTH]
        cell["length"] = len(cell["input_ids"])
        return cell

    return datasets.Dataset.from_dict({"input_ids": cells}).map(finish)


def disagreements(ranked: list[np.ndarray], published: datasets.Dataset, values: sp.csr_matrix) -> tuple[int, int]:
    """
    Returns the number of cells whose ids differ, and of those that differ by more than the order of genes of equal
    value.

    Args:
        ranked, published: The same cells, encoded by both procedures.
        values: `(cells, vocabulary)` counts divided by medians.
    """
    differing = wrong = 0
    for cell, (ours, theirs) in enumerate(zip(ranked, published["input_ids"], strict=True)):
        theirs = np.array(theirs)
        if np.array_equal(ours, theirs):
            continue
        differing += 1
        value = values[[cell]].toarray().ravel()
        distinct = len(np.unique(ours)) == len(ours) == len(theirs) == len(np.unique(theirs))
        wrong += not (distinct and np.allclose(value[ours], value[theirs], rtol=1e-9, atol=0))
    return differing, wrong


def memory_of_backed_file(cells: int, genes: int, seed: int) -> dict[str, Any]:
    """
    Measures the memory and time that a fresh process takes to rank all cells of a backed `.h5ad`.

    Args:
        cells, genes: Size of the temporary file; 20,000 cells and genes take about 0.24 GB.
        seed: Seed of the counts and medians.

    Returns:
        `cells`, `genes`, `file_gb`; `peak_gb`, the peak resident memory; `peak_gb_above_start`, the peak less the
        memory before the first chunk, which includes the names of the cells (both are `None` where the system does not
        report memory); `seconds` from opening the file to the last chunk.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_backed_file(path, cells, genes, seed)
        extractor = LangCellFeatureExtractor(synthetic_vocabulary(genes, seed), max_length=MAX_LENGTH)
        extractor.save_pretrained(folder)
        child = subprocess.run([sys.executable, __file__, folder], check=True, stdout=subprocess.PIPE, text=True)
        file_gb = path.stat().st_size / GIGABYTE
    return {"cells": cells, "genes": genes, "file_gb": file_gb, **json.loads(child.stdout)}


def write_backed_file(path: Path, cells: int, genes: int, seed: int) -> None:
    """Writes an `.h5ad` of synthetic counts, a few thousand cells at a time to save memory."""
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
    """Ranks the cells of `cells.h5ad` with the extractor of a folder, and returns the memory and time it took."""
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


if __name__ == "__main__":
    print(json.dumps(rank_backed_file(Path(sys.argv[1]))))
