# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The index of a search among many cells, compared with looking at all of them: time, memory and recall."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.search import Neighbours
from modeling_langcell.checkpoint.builtin import MINI
from modeling_langcell.eval.benchmarks.memory import GIGABYTE, resident
from modeling_langcell.io.h5ad import open_cells
from modeling_langcell.ontology import human_terms

_NEAR = 10  # A new embedding lies between a cell and one of its ten nearest ones.
_TOP = 20  # Cells that a search finds, as by default.


def measure_index(cells: Path, n_cells: int, queries: int, seed: int) -> dict[str, Any]:
    """
    Searches `n_cells` embeddings for texts, once through an index and once exactly, each in a process of its own.

    Args:
        cells: An `.h5ad` file of raw counts, whose cells are embedded with langcell-mini. The embeddings of further
            cells lie between two neighbours (Chawla et al., 2002): copies of the same cells would be ties.
        n_cells: Number of embeddings.
        queries: Number of texts, descriptions of the Cell Ontology.
        seed: Seed of the further cells and the texts.

    Returns:
        For `exact` and `index` the seconds of `building` and of one `query`, and the peak memory above that of the
        embeddings, `peak_gb`; and the `recall` of the index, the share of the 20 nearest cells that it finds.
    """
    annotator, rng = LangCellAnnotator.from_pretrained(MINI), np.random.default_rng(seed)
    embeds = annotator.embed(open_cells(cells).to_memory(), empty_cells="mark").obsm["X_langcell"]
    embeds = spread(embeds[~np.isnan(embeds[:, 0])], n_cells, rng)
    terms = human_terms()
    texts = [terms[number].description for number in rng.permutation(len(terms))[:queries]]
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "embeds.npy", embeds)
        np.save(Path(folder) / "queries.npy", annotator.embed_texts(texts))
        found = {way: _in_a_process(folder, way) for way in ("exact", "index")}
        nearest = {way: np.load(Path(folder) / f"{way}.npy") for way in found}
    shared = [len({*ours} & {*theirs}) for ours, theirs in zip(nearest["index"], nearest["exact"], strict=True)]
    recall = float(np.mean(shared)) / _TOP
    return {"embeddings": n_cells, "width": embeds.shape[1], "queries": len(texts), "recall": recall, **found}


def spread(embeds: np.ndarray, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `(n_cells, width)` embeddings: those given, and as many between neighbours as are missing."""
    nearest, _ = Neighbours(embeds, exact=True)(embeds, _NEAR + 1)
    one = rng.integers(len(embeds), size=max(0, n_cells - len(embeds)))
    other, share = nearest[one, rng.integers(1, _NEAR + 1, size=len(one))], rng.random((len(one), 1), np.float32)
    between = embeds[one] + share * (embeds[other] - embeds[one])
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    return np.concatenate([embeds, between])[:n_cells]


def _in_a_process(folder: str, way: str) -> dict[str, float]:
    child = [sys.executable, __file__, folder, way]
    return json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _search(folder: Path, way: str) -> dict[str, float]:
    embeds, queries = np.load(folder / "embeds.npy"), np.load(folder / "queries.npy")
    before, start = resident("VmRSS") or 0, time.perf_counter()
    neighbours = Neighbours(embeds, exact=way == "exact")
    built = time.perf_counter()
    found = np.concatenate([neighbours(query[None], _TOP)[0] for query in queries])
    end = time.perf_counter()
    np.save(folder / f"{way}.npy", found)
    peak = ((resident("VmHWM") or before) - before) / GIGABYTE
    return {"building": built - start, "query": (end - built) / len(queries), "peak_gb": peak}


if __name__ == "__main__":
    print(json.dumps(_search(Path(sys.argv[1]), sys.argv[2])))


__all__ = ["measure_index", "spread"]
