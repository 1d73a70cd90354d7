# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Cells as neighbours of each other in gene expression, whatever a checkpoint makes of them: their principal components,
the graph of their nearest neighbours, clusters in it, and scores smoothed over it.

The counts are read in chunks, several times, and memory holds a few numbers for each cell. scanpy, which takes seconds
to import, is imported where it is used: most annotations need no neighbours.
"""

from collections.abc import Callable
from importlib.util import find_spec

import anndata as ad
import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, cg

from ..model.errors import InputError
from ..model.ranking import RankedChunks
from .nearest import connect

#: Weight of a cell's neighbours beside the cell itself, when scores are smoothed.
SMOOTHING = 1.0
#: Fewer cells than this are not smoothed: their neighbours are often of other types.
LEAST_CELLS = 500

_GENES = 2000  # Highly variable genes that the components are of.
_COMPONENTS, _NEIGHBOURS = 20, 10
_RESOLUTION = 2.5  # Of Leiden: clusters small enough that few hold two types.
_ITERATIONS = 10  # Of Leiden. Until nothing changes, some versions of igraph never end.
_LEAST_LOG = -60.0  # A float32 score below e to this power may be 0.
_TOLERANCE = 1e-5  # Relative error of smoothed scores.
_BLOCK = 2**28  # Bytes of scores that are held at once.


def require_packages() -> None:
    """
    Checks, before any work, that neighbours and clusters can be found.

    Raises:
        InputError: dask or igraph is not installed.
    """
    if missing := [package for package in ("dask", "igraph") if find_spec(package) is None]:
        raise InputError(
            f'Neighbours and clusters of cells need {" and ".join(missing)}: pip install "modeling-langcell[clusters]".'
        )


def neighbour_graph(chunks: RankedChunks) -> sp.csr_matrix:
    """
    Finds the nearest neighbours of all cells in the principal components of their known genes, with scanpy: log1p of
    counts per 10,000, its 2,000 highly variable genes, 20 components, 10 neighbours.

    Returns:
        `(cells, cells)` symmetric weights of UMAP's graph (McInnes et al., 2018), from 0 to 1.
    """
    cells = ad.AnnData(obsm={"X_pca": principal_components(chunks)}, shape=(chunks.n_cells, 0))
    connect(cells, min(_NEIGHBOURS, chunks.n_cells - 1), use_rep="X_pca")
    return sp.csr_matrix(cells.obsp["connectivities"])


def principal_components(chunks: RankedChunks) -> np.ndarray:
    """Returns the `(cells, components)` principal components: see `neighbour_graph`."""
    import dask  # Of the extra `clusters`, as igraph is.
    import dask.array as da
    import scanpy as sc

    known = np.flatnonzero(chunks.match.token_ids >= 0)

    def read(number: int) -> sp.csr_matrix:
        return chunks.values(number)[:, known].astype(np.float32)

    empty = sp.csr_matrix((0, 0), dtype=np.float32)
    blocks = [
        da.from_delayed(dask.delayed(read)(number), (len(chunks.rows(number)), len(known)), meta=empty)
        for number in range(len(chunks))
    ]
    with dask.config.set(scheduler="synchronous"):  # HDF5 reads one block at a time.
        cells = ad.AnnData(da.concatenate(blocks))
        if chunks.kind.counts != "log1p":
            sc.pp.normalize_total(cells, target_sum=1e4)
            sc.pp.log1p(cells)
        if len(known) > _GENES:
            sc.pp.highly_variable_genes(cells, n_top_genes=_GENES)
            cells = cells[:, cells.var["highly_variable"]]
        components = min(_COMPONENTS, cells.n_obs - 1, cells.n_vars - 1)
        found = sc.pp.pca(cells.X, components, svd_solver="covariance_eigh")
        return np.asarray(found.compute() if hasattr(found, "compute") else found, dtype=np.float32)


def cluster(graph: sp.csr_matrix, seed: int = 0) -> np.ndarray:
    """
    Clusters cells finely, with Leiden (Traag et al., 2019) on their graph.

    Returns:
        `(cells,)` names of clusters: `0` for the largest, and so on.
    """
    import scanpy as sc

    cells = ad.AnnData(obsp={"connectivities": graph}, shape=(graph.shape[0], 0))
    options = {"obsp": "connectivities", "flavor": "igraph", "directed": False, "n_iterations": _ITERATIONS}
    sc.tl.leiden(cells, _RESOLUTION, random_state=seed, **options)
    found = cells.obs["leiden"]
    largest_first = {name: str(number) for number, name in enumerate(found.value_counts().index)}
    return found.astype(object).map(largest_first).to_numpy()


class Smoother:
    """
    Smooths scores over the graph of neighbouring cells: in the logarithm, the scores become `(I + weight L)^-1` times
    themselves, where `L` is the random-walk Laplacian of the graph. A score is then a weighted mean over a cell, its
    neighbours, theirs and so on; the heavier the weight, the further it reaches.

    Args:
        graph: `(cells, cells)` weights, from `neighbour_graph`.
        weight: Weight of the neighbours beside the cell itself.
        has_scores: `(cells,)` false for cells without scores, which stay without and are nobody's neighbours.
    """

    def __init__(self, graph: sp.csr_matrix, weight: float, has_scores: np.ndarray):
        own = graph[has_scores][:, has_scores]
        # Multiplied by the degrees, the system is symmetric and positive definite. A cell without neighbours keeps its
        # scores.
        degrees = np.asarray(own.sum(axis=1)).ravel()
        self._own_weights = np.where(degrees > 0, degrees, 1)
        self._system = sp.diags(self._own_weights + weight * degrees).tocsr() - weight * own
        diagonal = self._system.diagonal()
        self._preconditioner = LinearOperator(self._system.shape, matvec=lambda values: values.ravel() / diagonal)

    def __call__(self, logs: np.ndarray) -> np.ndarray:
        """Returns the smoothed logarithms of one label, both `(cells with scores,)`."""
        found, not_done = cg(self._system, self._own_weights * logs, logs, rtol=_TOLERANCE, M=self._preconditioner)
        assert not not_done, "the system is symmetric and positive definite"
        return found


def smooth(read: Callable[[slice], np.ndarray], graph: sp.csr_matrix, weight: float, out: np.ndarray) -> None:
    """
    Smooths scores over the graph of neighbouring cells, some labels at a time: see `Smoother`.

    Args:
        read: Returns the `(some labels, cells)` scores of a slice of the labels; NaN for cells without scores.
        graph: `(cells, cells)` weights, from `neighbour_graph`.
        weight: Weight of the neighbours beside the cell itself.
        out: `(labels, cells)` array for the smoothed scores, which add up to 1.
    """
    n_labels, n_cells = out.shape
    has_scores = ~np.isnan(read(slice(0, 1))[0])
    smoother, totals = Smoother(graph, weight, has_scores), np.full(has_scores.sum(), -np.inf)
    out[:] = np.nan
    at_once = max(1, _BLOCK // (8 * n_cells))
    for first in range(0, n_labels, at_once):
        labels = range(first, min(first + at_once, n_labels))
        with np.errstate(divide="ignore"):
            logs = np.log(read(slice(labels.start, labels.stop))[:, has_scores].astype(np.float64)).clip(_LEAST_LOG)
        for label, of_label in zip(labels, logs, strict=True):
            found = smoother(of_label)
            totals = np.logaddexp(totals, found)
            out[label, has_scores] = found
    for label in range(n_labels):
        out[label, has_scores] = np.exp(out[label, has_scores] - totals)


__all__ = [
    "LEAST_CELLS",
    "SMOOTHING",
    "cluster",
    "neighbour_graph",
    "principal_components",
    "require_packages",
    "smooth",
]
