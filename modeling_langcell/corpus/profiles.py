# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Cells drawn from profiles: rows of a study that are averages or sums over many cells, as atlases publish them.

A profile ranks genes that no single cell would show, so it is not used as a cell. Cells are drawn from it: the genes of
each count are those of the profile, and of a few counts those of the background, the mean of the profiles beside it,
as RNA that floats around the cells is counted with them (Young & Behjati, 2020, "SoupX").
"""

import numpy as np
import scipy.sparse as sp

#: Counts of a drawn cell, from the fewest to the most, as droplet-based studies have them.
COUNTS = (800, 6000)
#: Largest share of a drawn cell's counts that comes from the background.
BACKGROUND = 0.2
#: Cells drawn from each profile where the genes of a corpus are described; training draws new ones at every step.
CELLS = 5


def draw_cell(
    genes: np.ndarray, values: np.ndarray, background: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """
    Draws a cell: its number of counts, equally likely on a logarithmic scale between `COUNTS`; the share of the
    background among them, up to `BACKGROUND`; and the gene of each count.

    Args:
        genes: Numbers of the genes of the profile.
        values: Their counts or rates, of any sum.
        background: `(all genes,)` cumulative sums of the background.
        rng: The source of the draws.

    Returns:
        The cell's genes, ascending, and their counts.
    """
    n_counts = round(float(np.exp(rng.uniform(*np.log(COUNTS)))))
    n_background = rng.binomial(n_counts, rng.uniform(0, BACKGROUND))
    own = genes[_draw(values.cumsum(dtype=np.float64), n_counts - n_background, rng)]
    return np.unique(np.concatenate([own, _draw(background, n_background, rng)]), return_counts=True)


def _draw(cumulative: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draws positions in proportion to values that are given by their cumulative sums."""
    drawn = np.searchsorted(cumulative, rng.random(number) * cumulative[-1], side="right")
    return np.minimum(drawn, len(cumulative) - 1)


def draw_cells(counts: sp.csr_matrix, is_profile: np.ndarray, seed: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """
    Replaces each profile among some rows by `CELLS` cells drawn from it, with the mean of the profiles as background. A
    profile without counts stays as it is.

    Args:
        counts: `(rows, genes)` counts or rates.
        is_profile: `(rows,)` true where a row is a profile.
        seed: Seed of the draws.

    Returns:
        `(cells, genes)` counts, and the `(cells,)` row of each.
    """
    totals = counts.sum(axis=1, dtype=np.float64).A1
    is_profile = is_profile & (totals > 0)
    if not is_profile.any():
        return counts, np.arange(counts.shape[0])
    shares = sp.diags(1 / totals[is_profile]) @ counts[is_profile]
    rng, background = np.random.default_rng(seed), np.asarray(shares.sum(axis=0)).cumsum()
    parts, rows = [counts[~is_profile]], [np.flatnonzero(~is_profile)]
    for row in np.flatnonzero(is_profile).tolist():
        profile = counts[row]
        for _ in range(CELLS):
            genes, values = draw_cell(profile.indices, profile.data, background, rng)
            bounds = np.array([0, len(genes)])
            parts.append(sp.csr_matrix((values.astype(counts.dtype), genes, bounds), shape=(1, counts.shape[1])))
        rows.append(np.full(CELLS, row))
    return sp.vstack(parts).tocsr(), np.concatenate(rows)


__all__ = ["BACKGROUND", "CELLS", "COUNTS", "draw_cell", "draw_cells"]
