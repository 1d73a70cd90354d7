# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Which cells a training step sees, and which of the processes reads which of them."""

from collections.abc import Sequence

import numpy as np


class CellSampler:
    """
    Draws each step's cells: as many as have a budget of genes, balanced over groups (a type of a study).

    What a step draws depends on the seed and its number alone. So it costs nothing to go on anywhere, and it does not
    matter how many processes there are.

    Args:
        lengths: `(cells,)` genes of each cell, as many as the model will be shown.
        groups: `(cells,)` arrays of numbers from 0 on; cells alike in all of them are one group.
        balance: 1 draws cells as they come, 0 each group equally often; between, in proportion to its size to this
            power.
        batch_tokens: The budget, over all processes.
        seed: Of all steps.
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
        """Distinct cells; at least two, so that there is something to tell apart."""
        rng = np.random.default_rng([self.seed, step])
        if self.batch_tokens >= self.lengths.sum():
            return rng.permutation(len(self.lengths))
        drawn = np.empty(0, dtype=np.int64)
        while (within := int((np.cumsum(self.lengths[drawn]) <= self.batch_tokens).sum())) == len(drawn):
            groups = rng.choice(len(self.sizes), 2 + int(self.batch_tokens / self.lengths.mean()), p=self.shares)
            cells = self.members[self.starts[groups] + rng.integers(self.sizes[groups])]
            drawn = np.concatenate([drawn, cells])
            _, first = np.unique(drawn, return_index=True)
            drawn = drawn[np.sort(first)]
        return drawn[: max(2, within)]


def share_out(lengths: np.ndarray, processes: int) -> list[np.ndarray]:
    """
    Splits a batch into shares of about equal work: runs of similar length, the longer the fewer.

    Args:
        lengths: `(cells,)`.
        processes: How many shares; there must be as many cells.

    Returns:
        For each process its cells, ascending by length.
    """
    order = np.argsort(lengths, kind="stable")
    middle = np.cumsum(lengths[order]) - lengths[order] / 2
    shares, start = [], 0
    for process in range(processes):
        end = int(np.searchsorted(middle, lengths.sum() * (process + 1) / processes))
        # Nobody goes without, however long the longest cell is.
        end = min(max(end, start + 1), len(order) - (processes - 1 - process))
        shares.append(order[start:end])
        start = end
    return shares


__all__ = ["CellSampler", "share_out"]
