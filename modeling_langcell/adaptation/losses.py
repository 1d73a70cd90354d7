# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The losses of labelled cells: those of LangCell's few-shot script and of LangCell-CE."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BatchEncoding

from ..model.modeling_langcell import LangCellForSequenceClassification, LangCellModel


class CellLoss(nn.Module):
    """Mean loss of a batch of cells, with the model to train inside."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """
        Returns the mean loss; `ids` and `mask` are `(cells, genes)`, and `truth`, the labels, is `(cells,)`, or
        `(cells, labels)` where a cell may have several.
        """
        raise NotImplementedError

    def weight(self, truth: torch.Tensor) -> float:
        """Returns the weight that cells with these labels have in the mean of a larger batch."""
        return float(len(truth))


class DescriptionLoss(CellLoss):
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


class ClassLoss(CellLoss):
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
        model = self.model
        pooled = model.cell_model(ids, mask, pooled_only=True, return_dict=True).pooler_output
        logits = model.classifier(model.dropout(pooled)).float()
        if self.multilabel:
            return F.binary_cross_entropy_with_logits(logits, truth.float(), pos_weight=self.weights)
        return F.cross_entropy(logits, truth, weight=self.weights)

    def weight(self, truth: torch.Tensor) -> float:
        if self.multilabel or self.weights is None:
            return super().weight(truth)
        return self.weights[truth].sum().item()


__all__ = ["CellLoss", "ClassLoss", "DescriptionLoss"]
