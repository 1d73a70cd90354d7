# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The graph of nearest neighbours is scanpy's, and what numba compiles for it is kept, where it can be."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

from modeling_langcell.annotation import nearest
from modeling_langcell.annotation.nearest import connect
from tests.support.commands import run_python

PROGRAM = """
import sys

import anndata as ad
import numba
import numpy as np
from umap.umap_ import smooth_knn_dist
from modeling_langcell.annotation.nearest import connect

numba.config.CACHE_DIR = sys.argv[1]
cells = ad.AnnData(np.random.default_rng(0).normal(size=(40, 5)))
connect(cells, 5, use_rep="X")
assert cells.obsp["connectivities"].nnz
print(sum(smooth_knn_dist.stats.cache_hits.values()))
"""


@pytest.fixture
def hits(tmp_path):
    """Finds neighbours in a process with an empty folder for machine code; returns what it took from there."""

    def hits(**options) -> int:
        done = run_python("-c", PROGRAM, tmp_path, check=True, **options)
        return int(done.stdout)

    return hits


@pytest.mark.long
def test_the_next_process_compiles_nothing(hits):
    assert hits() == 0
    assert hits() == 1


@pytest.mark.long
def test_a_process_without_room_on_disk_works(hits, tmp_path):
    assert hits(largest=1000) == 0
    assert not [path for path in tmp_path.rglob("*.nbc") if "smooth_knn_dist" in path.name]


@pytest.mark.parametrize(("size", "metric"), [(300, "cosine"), (4100, "euclidean")])
def test_the_graph_is_that_of_scanpy(size, metric):
    places = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    cells = ad.AnnData(obsm={"places": places}, shape=(size, 0))
    usual = cells.copy()
    sc.pp.neighbors(usual, 10, use_rep="places", metric=metric, random_state=0)
    connect(cells, 10, use_rep="places", metric=metric)
    assert (cells.obsp["connectivities"] != usual.obsp["connectivities"]).nnz == 0


@pytest.mark.long
def test_many_cells_have_neighbours(monkeypatch):
    """Their neighbours are searched for, by another library than those of a few thousand."""
    monkeypatch.setattr(nearest, "_FEW", 9000)
    places = np.repeat(np.eye(3, 20) * 50, 3000, axis=0) + np.random.default_rng(0).normal(size=(9000, 20))
    cells = ad.AnnData(obsm={"places": places.astype(np.float32)}, shape=(9000, 0))
    connect(cells, 10, use_rep="places")
    graph = cells.obsp["connectivities"]
    start, end = graph.nonzero()
    assert (start // 3000 == end // 3000).all()
    right = ((places[:3000, None] - places[None, :1]) ** 2).sum(axis=2).ravel().argsort()[1:11]
    assert len(set(right) & set(graph[0].indices)) >= 9, "nearly all of the nearest"
