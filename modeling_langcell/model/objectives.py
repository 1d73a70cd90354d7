# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The four pre-training objectives, one class each (LangCell, section 3.2).

A batch holds `cells` cells and the `texts` *distinct* descriptions of them; `text_index[i]` is the row of cell `i`'s
description. Because descriptions are distinct, two cells that share one are both its positives and never each
other's negatives.

With several processes, each computes an objective over the cells of all processes: it gathers their outputs with
`gather_rows`, and its gradients, averaged over the processes as DDP does, are those of one process with all the cells.

In training, masked genes and negatives are drawn anew each time; in evaluation the same numbers are drawn for every
batch, so that the losses of a model on the same cells are always the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

#: Label of positions that the losses ignore.
IGNORED = -100


def process_and_processes() -> tuple[int, int]:
    """Returns the number of this process and the number of processes that train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward pass sums, for each process, the gradients of all processes for its rows."""

    @staticmethod
    def forward(ctx, rows, sizes):
        ctx.start, ctx.rows = sum(sizes[: dist.get_rank()]), len(rows)
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.rows], None


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """
    Gathers the `(rows, ...)` of all processes, in their order and with gradients; the numbers of rows may differ. With
    one process, returns the rows as they are.
    """
    _, processes = process_and_processes()
    if processes == 1:
        return rows
    sizes = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(processes)]
    dist.all_gather(sizes, torch.tensor(len(rows), device=rows.device))
    return _GatherRows.apply(rows, [int(size) for size in sizes])


def first_row(rows: torch.Tensor) -> int:
    """Returns the place of this process's first row among those that `gather_rows` gathers."""
    process, processes = process_and_processes()
    if processes == 1:
        return 0
    return int(gather_rows(torch.tensor([len(rows)], device=rows.device))[:process].sum())


def merge_texts(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    text_index: torch.Tensor,
    ignored_pairs: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Merges the texts of all processes where each has its own cells and texts; equal texts become one.

    Args:
        input_ids, attention_mask: `(texts, tokens)` of this process.
        text_index: `(cells,)` row of each of its cells' own text.
        ignored_pairs: `(cells, texts)` of its cells and texts. Texts of other processes that it does not have are taken
            as wrong for its cells.

    Returns:
        The same of all processes: the distinct texts, sorted by their ids, and the cells in the order of the processes.
    """
    padding = -1  # It tells padding from tokens whatever the tokenizer pads with.
    tokens = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, padding)
    if process_and_processes()[1] > 1:
        lengths = gather_rows(torch.tensor([tokens.shape[1]], device=tokens.device))
        tokens = F.pad(tokens, (0, int(lengths.max()) - tokens.shape[1]), value=padding)
    distinct, places = gather_rows(tokens).unique(dim=0, return_inverse=True)
    first = first_row(tokens)
    places = places[first : first + len(tokens)]
    if ignored_pairs is not None:
        of_all = ignored_pairs.new_zeros(len(ignored_pairs), len(distinct))
        of_all[:, places] = ignored_pairs
        ignored_pairs = gather_rows(of_all)
    mask = distinct != padding
    return distinct.masked_fill(~mask, 0), mask.long(), gather_rows(places[text_index]), ignored_pairs


def _evaluation_generator(module: nn.Module, device: torch.device) -> torch.Generator | None:
    """Returns where a module draws from: the same numbers each time in evaluation, torch's own in training."""
    return None if module.training else torch.Generator(device).manual_seed(0)


def _mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy of `(rows, classes)` over the labelled rows of all processes; 0 without any."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    n_labelled = (labels != IGNORED).sum()
    return gather_rows(total[None]).sum() / gather_rows(n_labelled[None]).sum().clamp(min=1)


class MaskedGeneModelling(nn.Module):
    """
    MGM: 15% of a cell's genes are hidden and predicted from the rest, like BERT's masked language modelling.

    Args:
        vocab_size: Number of gene ids, including special ones; `<cls>` is the last.
        mask_token_id: Id of `<mask>`. Genes are the ids between it and `<cls>`.
        probability: Share of the genes that is chosen; 80% of these become `<mask>`, 10% another gene, and 10% stay
            unchanged.
    """

    def __init__(self, vocab_size: int, mask_token_id: int = 1, probability: float = 0.15):
        super().__init__()
        self.first_gene = mask_token_id + 1
        self.cls_token_id = vocab_size - 1
        self.mask_token_id = mask_token_id
        self.probability = probability

    def corrupt(
        self, input_ids: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks ids of any shape; returns the ids to show, and the labels, `-100` where no gene was chosen."""
        shape, device = input_ids.shape, input_ids.device
        generator = generator or _evaluation_generator(self, device)
        is_gene = (input_ids >= self.first_gene) & (input_ids < self.cls_token_id)
        draw = torch.rand(shape, generator=generator, device=device)
        chosen = is_gene & (draw < self.probability)
        labels = input_ids.masked_fill(~chosen, IGNORED)
        # The same draw, rescaled, decides the fate of a chosen gene.
        shown = input_ids.masked_fill(chosen & (draw < 0.8 * self.probability), self.mask_token_id)
        swapped = chosen & (draw >= 0.9 * self.probability)
        others = torch.randint(self.first_gene, self.cls_token_id, shape, generator=generator, device=device)
        return torch.where(swapped, others, shown), labels

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy of `(..., vocab_size)` logits at the labelled positions; 0 without any."""
        return _mean_cross_entropy(logits.flatten(0, -2), labels.flatten())


class DataCollatorForMaskedGenes:
    """
    Pads cells to a batch and masks their genes, for `LangCellForMaskedLM` in transformers' `Trainer`.

    What is masked depends only on the cells of the batch. In training, where batches are shuffled, a cell is therefore
    masked anew in each epoch; in evaluation always alike. A resumed training sees what it would have seen without
    interruption, although batches are made ahead of the steps.

    Args:
        feature_extractor: The `LangCellFeatureExtractor` that made the ids.
        probability: Share of a cell's genes that is masked.
    """

    def __init__(self, feature_extractor: Any, probability: float = 0.15):
        self.pad_token_id = feature_extractor.pad_token_id
        self.masking = MaskedGeneModelling(len(feature_extractor), feature_extractor.mask_token_id, probability)

    def __call__(self, cells: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns `(cells, genes)` `input_ids`, `attention_mask` and `labels` of cells that have `input_ids`."""
        rows = [torch.as_tensor(cell["input_ids"]) for cell in cells]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        shown, labels = self.masking.corrupt(ids, torch.Generator().manual_seed(int(ids.sum())))
        return {"input_ids": shown, "attention_mask": (ids != self.pad_token_id).long(), "labels": labels}


class CellCellContrast(nn.Module):
    """
    C-C: a cell seen twice under dropout is nearer to itself than to the other cells of the batch (SimCSE).

    Args:
        temperature: Divides the cosine.
    """

    def __init__(self, temperature: float = 0.05):
        super().__init__()
        self.temperature = temperature

    def forward(self, view: torch.Tensor, other_view: torch.Tensor) -> torch.Tensor:
        """Returns the InfoNCE loss of two `(cells, width)` views of this process's cells, among the cells of all."""
        view, other_view = (gather_rows(F.normalize(v.float(), dim=-1)) for v in (view, other_view))
        logits = view @ other_view.T / self.temperature
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class CellTextContrast(nn.Module):
    """C-T: a cell is nearest to its own description and a description to its own cells, by symmetric InfoNCE."""

    def forward(
        self, logits_per_cell: torch.Tensor, text_index: torch.Tensor, ignored_pairs: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Computes the symmetric InfoNCE loss.

        Args:
            logits_per_cell: `(cells, texts)` cosines over temperature, against distinct texts.
            text_index: `(cells,)` row of each cell's own description.
            ignored_pairs: `(cells, texts)` booleans, true where a description is true of a cell without being its own
                (an ancestor in the ontology): such pairs are neither positives nor negatives.

        Returns:
            The mean of the cell-to-text and the text-to-cell loss. Each cell of a description is its positive in turn,
            without the description's other cells among the negatives.
        """
        logits = logits_per_cell.float()
        cells = torch.arange(len(logits), device=logits.device)
        own = text_index[:, None] == torch.arange(logits.shape[1], device=logits.device)
        if ignored_pairs is not None:
            logits = logits.masked_fill(ignored_pairs & ~own, -torch.inf)
        cell_to_text = F.cross_entropy(logits, text_index)

        positives = logits[cells, text_index]
        negatives = logits.masked_fill(own, -torch.inf).logsumexp(dim=0)[text_index]
        text_to_cell = (torch.logaddexp(positives, negatives) - positives).mean()
        return (cell_to_text + text_to_cell) / 2


class CellTextMatching(nn.Module):
    """
    CTM: decides whether a description is true of a cell, for every cell with its own description and with a hard
    negative description, and for every description with a hard negative cell.
    """

    @torch.no_grad()
    def draw_negatives(
        self,
        logits_per_cell: torch.Tensor,
        text_index: torch.Tensor,
        ignored_pairs: torch.Tensor | None = None,
        draws: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Draws wrong partners in proportion to the softmax of the similarity, never of the same description.

        Args:
            logits_per_cell, text_index, ignored_pairs: The same as for `CellTextContrast.forward`.
            draws: `(cells, 2)` uniform random numbers from 0 to 1 that determine the partners, the same in every
                process; by default, what the first process draws.

        Returns:
            `(cells,)` a wrong text for each cell; `(cells,)` a wrong cell for each cell's own description; `(cells,)`
            booleans, false for cells that lack one or the other (all the batch's texts are true of the cell, or its
            text is true of all the cells), whose draws are meaningless.
        """
        logits = logits_per_cell.float()
        own = text_index[:, None] == torch.arange(logits.shape[1], device=logits.device)
        wrong = ~own if ignored_pairs is None else ~(own | ignored_pairs)
        wrong_per_text = wrong.T[text_index]  # row i: cells for which cell i's description is wrong
        usable = wrong.any(dim=1) & wrong_per_text.any(dim=1)
        if draws is None:
            generator = _evaluation_generator(self, logits.device)
            draws = gather_rows(torch.rand(len(logits), 2, generator=generator, device=logits.device))[: len(logits)]

        def draw(scores, allowed, uniform):
            # A row without any candidate must still be a distribution; `usable` marks its draw as meaningless.
            scores = scores.masked_fill(~allowed, -torch.inf)
            scores = torch.where(allowed.any(dim=1, keepdim=True), scores, torch.zeros_like(scores))
            cumulated = scores.double().softmax(dim=1).cumsum(dim=1)
            # The first candidate whose cumulated share exceeds the number; it cannot have a share of 0.
            chosen = torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True).squeeze(1)
            return chosen.clamp(max=scores.shape[1] - 1)  # NaN alone leads beyond the end, and the loss will show it.

        return draw(logits, wrong, draws[:, 0]), draw(logits.T[text_index], wrong_per_text, draws[:, 1]), usable

    def forward(self, matching_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy of `(pairs, 2)` logits, 1 for a match; labels of `-100` are ignored."""
        return _mean_cross_entropy(matching_logits, labels)
