# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The public procedure of zero-shot annotation, written plainly: one text at a time for a whole batch of cells, in single
precision, padded to the batch's longest cell, with plain attention, and computing a cell's keys and values again for
every text. It is the baseline of the speed benchmarks and shares only the weights with the package.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from modeling_langcell import LangCellModel

#: Number of cells in a batch of the public notebook.
BATCH = 32


def attend(attention: Any, states: torch.Tensor, others: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attends from `(rows, tokens, width)` states to `(rows, others, width)` ones; `mask` is 0 at padding."""
    heads, size = attention.self.config.num_attention_heads, attention.self.head_size

    def by_head(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, layer.weight, layer.bias).unflatten(-1, (heads, size)).transpose(1, 2)

    query = by_head(attention.self.query, states)
    key, value = by_head(attention.self.key, others), by_head(attention.self.value, others)
    scores = query @ key.transpose(2, 3) / size**0.5 + (1.0 - mask[:, None, None]) * torch.finfo(states.dtype).min
    attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    return finish(attention.output, attended, states)


def finish(output: Any, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Applies the dense layer, adds the residual and normalises."""
    summed = F.linear(states, output.dense.weight, output.dense.bias) + residual
    return F.layer_norm(summed, summed.shape[-1:], output.LayerNorm.weight, output.LayerNorm.bias, output.LayerNorm.eps)


def encode(
    tower: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cells: torch.Tensor | None = None,
    cell_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the last hidden states of a tower, with cross-attention to the states of one cell per row if given."""
    embeddings, config = tower.embeddings, tower.config
    states = F.embedding(ids, embeddings.word_embeddings.weight)
    states = states + embeddings.position_embeddings.weight[: ids.shape[1]]
    norm = embeddings.LayerNorm
    states = F.layer_norm(states, states.shape[-1:], norm.weight, norm.bias, norm.eps)
    activate: Any = {"relu": F.relu, "gelu": F.gelu}[config.hidden_act]
    mask = mask.to(states.dtype)
    for layer in tower.encoder.layer:
        states = attend(layer.attention, states, states, mask)
        if cells is not None and cell_mask is not None:
            states = attend(layer.crossattention, states, cells, cell_mask.to(states.dtype))
        wide = layer.intermediate.dense
        states = finish(layer.output, activate(F.linear(states, wide.weight, wide.bias)), states)
    return states


class NaiveProcedure:
    """
    The public loop over texts for a batch of cells.

    Args:
        model: A joint model in single precision.
        texts: Token ids of each description.
        alpha: Weight of the similarity.
    """

    def __init__(self, model: LangCellModel, texts: Sequence[Sequence[int]], alpha: float):
        self.model, self.alpha = model, alpha
        self.texts = [torch.tensor([text], device=model.device) for text in texts]
        with torch.no_grad():
            pooled = [encode(model.text_model, text, torch.ones_like(text))[:, 0] for text in self.texts]
            self.text_embeds = F.normalize(self._through(model.text_projection, torch.cat(pooled)), dim=-1)

    @torch.no_grad()
    def encode_cells(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the last hidden states of `(cells, genes)` ids, and the softmax of similarities `(cells, texts)`."""
        states = encode(self.model.cell_model, ids, mask)
        embeds = F.normalize(self._through(self.model.cell_projection, states[:, 0]), dim=-1)
        return states, (embeds @ self.text_embeds.T / self.model.config.temperature).softmax(dim=-1)

    @torch.no_grad()
    def match(self, states: torch.Tensor, mask: torch.Tensor, text: int) -> torch.Tensor:
        """Returns `(cells,)` probabilities that one text matches the cells."""
        ids = self.texts[text].repeat(len(states), 1)
        pairs = encode(self.model.text_model, ids, torch.ones_like(ids), states, mask)
        return self._through(self.model.matching_head, pairs[:, 0]).softmax(dim=-1)[:, 1]

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the scores `(cells, texts)` of a batch."""
        states, similarity = self.encode_cells(ids, mask)
        match = torch.stack([self.match(states, mask, text) for text in range(len(self.texts))], dim=1)
        return self.alpha * similarity + (1 - self.alpha) * match.softmax(dim=-1)

    @staticmethod
    def _through(layer: Any, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, layer.weight, layer.bias)


__all__ = ["BATCH", "NaiveProcedure"]
