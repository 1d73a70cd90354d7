# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Training on labelled cells: the losses of LangCell's few-shot script and of LangCell-CE, and the training loop."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BatchEncoding, get_scheduler

from ..io.progress import progress_bar
from ..model.errors import InputError
from ..model.modeling_langcell import LangCellForSequenceClassification, LangCellModel
from ..model.ranking import RankedCells


class DescriptionLoss(nn.Module):
    """
    Cross-entropy of the similarity between cells and the descriptions of the labels. With `matching` it adds the
    cross-entropy of the matching probabilities, which the published script takes as logits.

    Args:
        model: Model, with or without adapters inside.
        texts: Descriptions of the labels, tokenized.
        temperature: Temperature of the cosine. With the checkpoint's own the loss vanishes as soon as a few cells are
            separated; a higher one requires wider margins.
        matching: True to train matching too.
        adapt_texts: True to train the text tower. Otherwise it encodes the descriptions here, once.
    """

    def __init__(
        self, model: LangCellModel, texts: BatchEncoding, *, temperature: float, matching: bool, adapt_texts: bool
    ):
        super().__init__()
        self.model, self.texts = model, texts.to(model.device)
        self.temperature, self.matching = temperature, matching
        self.pooled_texts: torch.Tensor | None = None
        if not adapt_texts:
            with torch.no_grad():
                model.eval()
                self.pooled_texts = model.text_model(**self.texts, pooled_only=True, return_dict=True).pooler_output

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss; `ids` and `mask` are `(cells, genes)`, and `truth`, the labels, is `(cells,)`."""
        model, texts = self.model, self.texts
        cells = model.cell_model(ids, mask, pooled_only=not self.matching, return_dict=True)
        if self.pooled_texts is None:
            text_embeds = model.get_text_features(**texts, pooled_only=True, return_dict=True).pooler_output
        else:
            text_embeds = model.project_texts(self.pooled_texts)
        similarity = model.project_cells(cells.pooler_output) @ text_embeds.T / self.temperature
        loss = F.cross_entropy(similarity.float(), truth)
        if self.matching:
            pairs = model.get_matching_logits(
                cells.last_hidden_state, mask, texts["input_ids"], texts["attention_mask"]
            )
            loss = loss + F.cross_entropy(pairs.float().softmax(dim=-1)[..., 1], truth)
        return loss


class ClassLoss(nn.Module):
    """
    Cross-entropy of the classification head; binary cross-entropy per label where a cell may have several.

    Args:
        model: Model, with or without adapters inside.
        truth: Labels of all training cells.
        balanced: True to give every label the same weight, so that cells of frequent labels weigh less.
    """

    def __init__(self, model: LangCellForSequenceClassification, truth: np.ndarray, balanced: bool):
        super().__init__()
        self.model, self.multilabel = model, truth.ndim == 2
        self.weights: torch.Tensor | None = None
        if balanced:
            labels = truth.shape[1] if self.multilabel else model.config.num_labels
            sizes = truth.sum(axis=0) if self.multilabel else np.bincount(truth, minlength=labels)
            sizes = np.maximum(sizes, 1)
            weights = (len(truth) - sizes) / sizes if self.multilabel else len(truth) / (labels * sizes)
            self.weights = torch.tensor(weights, dtype=torch.float32, device=model.device)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss, like `DescriptionLoss`; `truth` is `(cells, labels)` where a cell may have several."""
        model = self.model
        pooled = model.cell_model(ids, mask, pooled_only=True, return_dict=True).pooler_output
        logits = model.classifier(model.dropout(pooled)).float()
        if self.multilabel:
            return F.binary_cross_entropy_with_logits(logits, truth.float(), pos_weight=self.weights)
        return F.cross_entropy(logits, truth, weight=self.weights)


class CellBatches:
    """
    Batches of labelled cells.

    Args:
        ranked: Cells.
        truth: Labels of the cells.
        size: Number of cells in a batch.
        device: Device of the batches.
    """

    def __init__(self, ranked: RankedCells, truth: np.ndarray, size: int, device: torch.device):
        self.ranked, self.truth, self.size, self.device = ranked, truth, size, device

    def __len__(self) -> int:
        return math.ceil(len(self.ranked) / self.size)

    def shuffled(self, rng: np.random.Generator, gene_dropout: float) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yields all cells in random order, each without a random share of its genes of at most `gene_dropout`."""
        for rows in np.array_split(rng.permutation(len(self.ranked)), len(self)):
            yield self._batch(rows, lambda cell: self._drop_genes(cell, rng, gene_dropout))

    def in_order(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yields all cells in order, with all their genes."""
        for rows in np.array_split(np.arange(len(self.ranked)), len(self)):
            yield self._batch(rows, lambda cell: cell)

    def _batch(self, rows: np.ndarray, select: Callable[[np.ndarray], np.ndarray]) -> tuple[torch.Tensor, ...]:
        genes = [select(self.ranked[row]) for row in rows]
        offsets = np.cumsum([0, *map(len, genes)])
        cells = RankedCells(np.concatenate(genes), offsets, self.ranked.matched_counts[rows], self.ranked.places[rows])
        return tuple(torch.from_numpy(array).to(self.device) for array in (*cells.pad(), self.truth[rows]))

    @staticmethod
    def _drop_genes(cell: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
        kept = rng.random(len(cell)) >= share * rng.random()
        kept[0] = True  # <cls>
        return cell[kept]


def fit(
    loss_of: nn.Module,
    training: CellBatches,
    held_out: CellBatches | None,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    gene_dropout: float,
    patience: int,
    seed: int,
) -> tuple[float, ...]:
    """
    Trains the parameters of a loss's model that need gradients, by AdamW with a short warm-up and cosine decay. With
    `held_out` cells, the weights of the epoch with the lowest loss on them are kept, and training stops after
    `patience` epochs without a lower one.

    Returns:
        Mean loss of each epoch, on the held-out cells if there are any.

    Raises:
        InputError: The loss is not finite.
    """
    trained = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * len(training)
    schedule = get_scheduler("cosine", optimizer, min(10, steps // 10), steps)
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    best: list[torch.Tensor] = []
    with progress_bar() as progress:
        task = progress.add_task("Epochs", total=epochs)
        for epoch in range(epochs):
            loss_of.train()
            total = 0.0
            for ids, mask, truth in training.shuffled(rng, gene_dropout):
                loss = loss_of(ids, mask, truth)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                total += loss.item() * len(ids)
            losses.append(total / len(training.ranked) if held_out is None else _mean_loss(loss_of, held_out))
            if not math.isfinite(losses[-1]):
                raise InputError(f"The loss of epoch {epoch + 1} is not finite: lower the learning_rate.")
            if held_out is not None and losses[-1] == min(losses):
                best = [parameter.detach().clone() for parameter in trained]
            progress.advance(task)
            if held_out is not None and epoch - int(np.argmin(losses)) >= patience:
                break
    if best:
        with torch.no_grad():
            for parameter, value in zip(trained, best, strict=True):
                parameter.copy_(value)
    loss_of.eval()
    return tuple(losses)


@torch.inference_mode()
def _mean_loss(loss_of: nn.Module, held_out: CellBatches) -> float:
    loss_of.eval()
    totals = [loss_of(ids, mask, truth).item() * len(ids) for ids, mask, truth in held_out.in_order()]
    return sum(totals) / len(held_out.ranked)


__all__ = ["CellBatches", "ClassLoss", "DescriptionLoss", "fit"]
