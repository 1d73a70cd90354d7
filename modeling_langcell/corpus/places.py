# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The usual places of the genes of a corpus in the rankings of its cells, from one pass over the ranked cells."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ..io.atomic import atomic_write
from ..model.gene_matching import GeneVocabulary, UsualPlaces
from ..model.ranking import RankedCells

#: Cells of a type of a study beyond this number's square add no weight.
_MOST = 20


@dataclass(frozen=True)
class PlaceSums:
    """
    Sums of the places of all genes, and of their squares, over the cells of each group: the cells of a type in a study.

    Args:
        groups: `(groups,)` names of the groups.
        cells: `(groups,)` number of cells of each.
        sums, squares: `(groups, ids)` sparse sums of the places by gene id, and of their squares. They hold no more
            numbers than the cells have genes, however many groups there are.
        measured: `(ids,)` true for the genes that the cells' matrix measured.
    """

    groups: np.ndarray
    cells: np.ndarray
    sums: sp.csr_matrix
    squares: sp.csr_matrix
    measured: np.ndarray

    @classmethod
    def from_cells(
        cls, ranked: RankedCells, group_of_cell: np.ndarray, measured: np.ndarray, n_ids: int
    ) -> "PlaceSums":
        """
        Sums over some cells.

        Args:
            ranked: The cells, each with all its genes.
            group_of_cell: `(cells,)` names of the cells' groups; cells of the group `""` are left out.
            measured: Ids of the genes that the cells' matrix measured.
            n_ids: Number of ids of the vocabulary.
        """
        n_genes = ranked.lengths - 1
        cell = np.repeat(np.arange(len(ranked)), ranked.lengths)
        rank = np.arange(len(cell)) - np.repeat(ranked.offsets[:-1] + 1, ranked.lengths)
        places = np.where(rank >= 0, 1 - rank / np.maximum(n_genes, 1)[cell], 0)  # <cls>, at -1, has none.
        by_cell = sp.csr_matrix((places, (cell, ranked.token_ids)), shape=(len(ranked), n_ids))
        kept = np.flatnonzero(group_of_cell != "")
        groups, group, cells = np.unique(group_of_cell[kept], return_inverse=True, return_counts=True)
        of_group = sp.csr_matrix((np.ones(len(kept)), (group, kept)), shape=(len(groups), len(ranked)))
        known = np.zeros(n_ids, dtype=bool)
        known[measured] = True
        sums, squares = of_group @ by_cell, of_group @ by_cell.power(2)
        for found in (sums, squares):
            found.sort_indices()
        return cls(groups, cells, sums, squares, known)

    def save(self, path: str | Path) -> None:
        """Writes the sums to an `.npz` file, atomically."""
        content = io.BytesIO()
        # Sums and squares are those of the same groups and genes, in the same order.
        np.savez_compressed(
            content,
            groups=self.groups,
            cells=self.cells,
            measured=self.measured,
            indices=self.sums.indices,
            indptr=self.sums.indptr,
            sums=self.sums.data,
            squares=self.squares.data,
        )
        atomic_write(path, content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "PlaceSums":
        """Reads sums that `save` wrote."""
        with np.load(path) as arrays:
            groups, cells, measured = (arrays[name] for name in ("groups", "cells", "measured"))
            sums, squares = (
                sp.csr_matrix((arrays[name], arrays["indices"], arrays["indptr"]), shape=(len(groups), len(measured)))
                for name in ("sums", "squares")
            )
            return cls(groups, cells, sums, squares, measured)


def merge_usual_places(paths: Sequence[Path], n_ids: int) -> dict[str, list[float]]:
    """
    Merges saved sums into the mean and the spread of each gene's place, as `LangCellFeatureExtractor(gene_places=...)`
    takes them. A type of a study weighs as the root of its number of cells, up to 20, so that the most frequent types
    do not decide what is usual. A gene counts where it was measured; one that no study measured is taken for an average
    one.
    """
    sizes: Counter[str] = Counter()
    for path in paths:
        part = PlaceSums.load(path)
        sizes.update(dict(zip(part.groups.tolist(), part.cells.tolist(), strict=True)))
    weights, sums, squares = np.zeros((3, n_ids))
    for path in paths:
        part = PlaceSums.load(path)
        per_cell = np.array([min(np.sqrt(sizes[name]), _MOST) / sizes[name] for name in part.groups.tolist()])
        weights += (per_cell * part.cells).sum() * part.measured
        sums += per_cell @ part.sums
        squares += per_cell @ part.squares
    known, at_least = weights > 0, np.maximum(weights, np.finfo(float).tiny)
    means = np.where(known, sums / at_least, UsualPlaces.AVERAGE[0])
    spreads = np.sqrt(np.maximum(squares / at_least - (sums / at_least) ** 2, 0))
    spreads = np.where(known, spreads, UsualPlaces.AVERAGE[1])
    genes = slice(GeneVocabulary.first_gene_id, -1)
    return {"means": means[genes].round(4).tolist(), "spreads": spreads[genes].round(4).tolist()}


__all__ = ["PlaceSums", "merge_usual_places"]
