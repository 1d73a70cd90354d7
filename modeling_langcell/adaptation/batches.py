# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Batches of labelled cells: in order, or anew in each epoch with other cells together and other genes dropped."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ..model.ranking import RankedCells

#: The arguments of a `CellLoss`: `ids`, `mask` and `truth`.
Batch = dict[str, torch.Tensor]


class CellBatches:
    """
    Batches of labelled cells.

    Args:
        ranked: Cells.
        truth: Labels of the cells.
        size: Number of cells in a batch.
    """

    def __init__(self, ranked: RankedCells, truth: np.ndarray, size: int):
        self.ranked, self.truth, self.size = ranked, truth, size

    def __len__(self) -> int:
        return math.ceil(len(self.ranked) / self.size)

    def shuffled(self, rng: np.random.Generator, gene_dropout: float) -> Iterator[Batch]:
        """Yields all cells in random order, each without a random share of its genes of at most `gene_dropout`."""
        for rows in np.array_split(rng.permutation(len(self.ranked)), len(self)):
            yield self._batch(rows, lambda cell: self._drop_genes(cell, rng, gene_dropout))

    def in_order(self) -> Iterator[Batch]:
        """Yields all cells in order, with all their genes."""
        for rows in np.array_split(np.arange(len(self.ranked)), len(self)):
            yield self._batch(rows, lambda cell: cell)

    def _batch(self, rows: np.ndarray, select: Callable[[np.ndarray], np.ndarray]) -> Batch:
        genes = [select(self.ranked[row]) for row in rows]
        offsets = np.cumsum([0, *map(len, genes)])
        cells = RankedCells(np.concatenate(genes), offsets, self.ranked.matched_counts[rows], self.ranked.places[rows])
        ids, mask = map(torch.from_numpy, cells.pad())
        return {"ids": ids, "mask": mask, "truth": torch.from_numpy(self.truth[rows])}

    @staticmethod
    def _drop_genes(cell: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
        kept = rng.random(len(cell)) >= share * rng.random()
        kept[0] = True  # <cls>
        return cell[kept]


class ShuffledBatches(IterableDataset):
    """
    Batches to train on: each pass over them is the next epoch. All processes that have the same seed get the same ones.

    Args:
        batches: Batches of the training cells.
        gene_dropout: Upper bound of the random share of genes dropped from a cell.
        seed: Seed of the order of cells and of the genes dropped.
    """

    def __init__(self, batches: CellBatches, gene_dropout: float, seed: int):
        self.batches, self.gene_dropout = batches, gene_dropout
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches.shuffled(self.rng, self.gene_dropout)


__all__ = ["Batch", "CellBatches", "ShuffledBatches"]
