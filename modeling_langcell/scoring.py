# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a cell's labels are judged by: descriptions, a few cells of each label, or a classification head."""

from typing import Protocol

import torch
import torch.nn.functional as F

from .modeling_langcell import LangCellForSequenceClassification
from .pipeline_langcell import DescriptionScorer


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
