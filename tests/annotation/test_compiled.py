# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What numba compiles of UMAP's graph is kept for the next process, where it can be."""

import pytest

from tests.support.commands import run_python

PROGRAM = """
import sys

import anndata as ad
import numba
import numpy as np
import scanpy as sc
from umap.umap_ import smooth_knn_dist
from modeling_langcell.annotation.compiled import keep_compiled

numba.config.CACHE_DIR = sys.argv[1]
keep_compiled()
cells = ad.AnnData(np.random.default_rng(0).normal(size=(40, 5)))
sc.pp.neighbors(cells, 5, use_rep="X")
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


def test_the_next_process_compiles_nothing(hits, tmp_path):
    assert hits() == 0
    assert hits() == 1


def test_a_process_without_room_on_disk_works(hits, tmp_path):
    assert hits(largest=1000) == 0
    assert not [path for path in tmp_path.rglob("*.nbc") if "smooth_knn_dist" in path.name]
