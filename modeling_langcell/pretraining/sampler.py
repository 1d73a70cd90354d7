# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Sampling the cells of each training step, and splitting them over processes."""

from collections.abc import Sequence

import numpy as np


class CellSampler:
    """
    Draws the cells of each step within a budget of genes, balanced over groups such as a type in a study.

    The cells depend only on the seed and the step's number, so a run can resume at any step, and the number of
    processes does not matter.

    Args:
        lengths: `(cells,)` number of genes of each cell, as many as the model will read.
        groups: `(cells,)` arrays of numbers from 0 on; cells that agree in all of them are one group.
        balance: Groups are drawn in proportion to their size to this power: 1 draws all cells equally often, 0
            draws all groups equally often.
        batch_tokens: Number of genes in a batch, over all processes.
        seed: Seed of all steps.
    """

    def __init__(
        self, lengths: np.ndarray, groups: Sequence[np.ndarray], *, balance: float, batch_tokens: int, seed: int
    ):
        self.lengths, self.batch_tokens, self.seed = lengths, batch_tokens, seed
        combined = np.zeros(len(lengths), dtype=np.int64)
        for group in groups:
            combined = combined * (int(group.max()) + 1) + group
        _, group_of, self.sizes = np.unique(combined, return_inverse=True, return_counts=True)
        self.members = np.argsort(group_of, kind="stable")
        self.starts = np.cumsum(self.sizes) - self.sizes
        weights = self.sizes**balance
        self.shares = weights / weights.sum()

    def cells(self, step: int) -> np.ndarray:
        """Draws the distinct cells of a step; at least two, for the contrastive objectives."""
        rng = np.random.default_rng([self.seed, step])
        if self.batch_tokens >= self.lengths.sum():
            return rng.permutation(len(self.lengths))
        sampled = np.empty(0, dtype=np.int64)
        while (within := int((np.cumsum(self.lengths[sampled]) <= self.batch_tokens).sum())) == len(sampled):
            groups = rng.choice(len(self.sizes), 2 + int(self.batch_tokens / self.lengths.mean()), p=self.shares)
            cells = self.members[self.starts[groups] + rng.integers(self.sizes[groups])]
            sampled = np.concatenate([sampled, cells])
            _, first = np.unique(sampled, return_index=True)
            sampled = sampled[np.sort(first)]
        return sampled[: max(2, within)]


def split_by_length(lengths: np.ndarray, processes: int) -> list[np.ndarray]:
    """
    Splits a batch into parts of similar length and about equal work: parts with longer cells have fewer.

    Args:
        lengths: `(cells,)` number of genes of each cell.
        processes: Number of parts; there must be at least as many cells.

    Returns:
        The cells of each process, ascending by length.
    """
    order = np.argsort(lengths, kind="stable")
    middle = np.cumsum(lengths[order]) - lengths[order] / 2
    parts, start = [], 0
    for process in range(processes):
        end = int(np.searchsorted(middle, lengths.sum() * (process + 1) / processes))
        # Each process gets at least one cell, even if one cell is very long.
        end = min(max(end, start + 1), len(order) - (processes - 1 - process))
        parts.append(order[start:end])
        start = end
    return parts


__all__ = ["CellSampler", "split_by_length"]
