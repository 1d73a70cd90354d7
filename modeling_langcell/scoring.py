# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a cell's labels are judged by: descriptions, a few cells of each label, or a classification head."""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F

from .modeling_langcell import LangCellForSequenceClassification, LangCellModel
from .processing_langcell import LangCellProcessor


class Scorer(Protocol):
    """Embeds cells and scores them against labels."""

    #: What each label is described by; empty where it is not known.
    descriptions: dict[str, str]
    #: What else decides the scores, by name.
    settings: dict[str, float]

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args: `ids` and `mask`, `(cells, genes)`.

        Returns:
            Embeddings `(cells, width)`, L2-normalised, and scores from 0 to 1 `(cells, labels)`, both float32.
        """


class DescriptionScorer:
    """
    Zero-shot (LangCell, section 3.3): a label's score blends two probabilities over the labels, that of the similarity
    in the shared space, with weight `alpha`, and that of the matching head, with weight `1 - alpha`.

    Args:
        model, processor: The checkpoint.
        descriptions: By label. They are read and embedded here, once.
        alpha: 1 leaves the matching out, which is much faster.
        batch_tokens: How many word positions go through the text tower at once.
    """

    def __init__(
        self,
        model: LangCellModel,
        processor: LangCellProcessor,
        descriptions: dict[str, str],
        alpha: float,
        batch_tokens: int,
    ):
        self.model, self.descriptions, self.alpha, self.batch_tokens = model, descriptions, alpha, batch_tokens
        self.settings = {"alpha": float(alpha)}
        texts = processor(text=list(descriptions.values()), return_tensors="pt").to(model.device)
        self.text_ids, self.text_mask = texts["input_ids"], texts["attention_mask"]
        shape = (len(descriptions), model.config.projection_dim)
        self.text_embeds = torch.empty(shape, device=model.device, dtype=model.dtype)
        with torch.inference_mode():
            for rows, text_ids, text_mask in self._blocks(batch_tokens):
                self.text_embeds[rows] = model.get_text_features(text_ids, text_mask)

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model = self.model
        cells = model.cell_model(ids, mask, pooled_only=self.alpha == 1, return_dict=True)
        embeds = model.project_cells(cells.pooler_output)
        scores = model.get_similarity_logits(embeds, self.text_embeds).float().softmax(dim=1)
        if self.alpha < 1:
            match = torch.empty_like(scores)
            for texts, text_ids, text_mask in self._blocks(self.batch_tokens // len(ids)):
                logits = model.get_matching_logits(cells.last_hidden_state, mask, text_ids, text_mask)
                match[:, texts] = logits.float().softmax(dim=-1)[..., 1]
            # The published procedure takes the softmax, over candidates, of the probabilities themselves.
            scores = self.alpha * scores + (1 - self.alpha) * match.softmax(dim=1)
        return embeds.float(), scores

    def _blocks(self, words: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """
        Texts of similar length together, at least one and at most as many as `words` hold: their rows, ids and masks
        without the columns that none of them fills.
        """
        lengths = self.text_mask.sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        while len(order):
            longest = int(lengths[order[0]])
            rows, order = order.tensor_split([max(1, words // longest)])
            yield rows, self.text_ids[rows, :longest], self.text_mask[rows, :longest]


class PrototypeScorer:
    """
    Few-shot without training: a label's prototype is the mean embedding of its few cells (Snell et al., 2017), and its
    score the blend of two probabilities over the labels, that of the similarity to the prototypes, with weight
    `weight`, and what the descriptions say.

    Args:
        by_description: What the descriptions say.
        prototypes: `(labels, projection_dim)`, L2-normalised, in the order of the descriptions.
        weight: From 0 to 1.
    """

    def __init__(self, by_description: DescriptionScorer, prototypes: torch.Tensor, weight: float):
        self.by_description, self.weight = by_description, weight
        self.descriptions = by_description.descriptions
        self.settings = {**by_description.settings, "prototype_weight": float(weight)}
        self.prototypes = prototypes.to(by_description.text_embeds)

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, described = self.by_description(ids, mask)
        similarity = self.by_description.model.get_similarity_logits(embeds, self.prototypes.float())
        return embeds, self.weight * similarity.softmax(dim=1) + (1 - self.weight) * described


class ClassScorer:
    """
    LangCell-CE: the probabilities of a classification head; of each label by itself where a cell may have several. The
    embeddings are the cells' `<cls>` states.
    """

    def __init__(self, model: LangCellForSequenceClassification, descriptions: dict[str, str]):
        self.model, self.descriptions = model, descriptions
        self.settings: dict[str, float] = {}

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.model.cell_model(ids, mask, pooled_only=True, return_dict=True).pooler_output
        logits = self.model.classifier(pooled).float()
        several = self.model.config.problem_type == "multi_label_classification"
        return F.normalize(pooled.float(), dim=-1), logits.sigmoid() if several else logits.softmax(dim=1)


__all__ = ["ClassScorer", "DescriptionScorer", "PrototypeScorer", "Scorer"]
