# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The graph of nearest neighbours that UMAP and clusters are of, with scanpy. scanpy and numba, which take seconds to
import, are imported where they are used: most annotations need no neighbours.
"""

from contextlib import suppress
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

#: Cells among which all distances are computed. Up to here that takes less time than to compile the search, which every
#: process does anew.
_FEW = 65_536


def connect(cells: ad.AnnData, n_neighbors: int, *, use_rep: str, metric: str = "euclidean", seed: int = 0) -> None:
    """
    Adds the graph of UMAP (McInnes et al., 2018) to cells, as `scanpy.pp.neighbors` does.

    Args:
        cells: Cells with places in a space. They get `obsp["connectivities"]`, weights from 0 to 1.
        n_neighbors: Number of neighbours of a cell; at most one less than there are cells.
        use_rep: The key of their places in `obsm`.
        metric: Name of a distance.
        seed: Seed of the search among 65,536 cells or more.
    """
    import scanpy as sc

    _keep_compiled()
    nearest: Any = "sklearn" if cells.n_obs < _FEW else _approximate(cells.n_obs, n_neighbors, metric, seed)
    sc.pp.neighbors(cells, n_neighbors, use_rep=use_rep, metric=metric, random_state=seed, transformer=nearest)


def _approximate(n_cells: int, n_neighbors: int, metric: str, seed: int) -> Any:
    """Returns the search that scanpy chooses by itself, whose result it cannot read from pynndescent 0.7 on."""
    import scanpy as sc
    from pynndescent import PyNNDescentTransformer

    class Nearest(PyNNDescentTransformer):
        def fit_transform(self, X, y=None, **options):
            return sp.csr_matrix(super().fit_transform(X, y, **options))

    n_trees, n_iters = min(64, 5 + round(n_cells**0.5 / 20)), max(5, round(np.log2(n_cells)))
    return Nearest(n_neighbors, metric, random_state=seed, n_trees=n_trees, n_iters=n_iters, n_jobs=sc.settings.n_jobs)


def _keep_compiled() -> None:
    """
    Lets numba keep the functions of UMAP's graph and layout that take it ten seconds in every process, as it keeps
    those of pynndescent: beside the package, or else in the user's cache.
    """
    from numba.core.caching import FunctionCache
    from umap import layouts
    from umap.umap_ import compute_membership_strengths, smooth_knn_dist

    # A private name, which other versions may not have.
    step = getattr(layouts, "_nb_optimize_layout_euclidean_single_epoch", None)

    class Kept(FunctionCache):
        def save_overload(self, sig, data):
            with suppress(OSError):  # A function that there is no room for works all the same.
                super().save_overload(sig, data)

    for function in filter(None, (compute_membership_strengths, smooth_knn_dist, step)):
        with suppress(RuntimeError):  # There is no folder that can be written.
            function._cache = Kept(function.py_func)


__all__ = ["connect"]
