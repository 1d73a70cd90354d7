# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a cell's labels are judged by: descriptions, a few cells of each label, or a classification head."""

from typing import Protocol

import torch
import torch.nn.functional as F

from ..model.modeling_langcell import LangCellForSequenceClassification
from ..model.packed_langcell import PackedSequences
from ..model.prompts import as_texts
from ..model.token_budget import TokenBudget
from ..model.zero_shot import DescriptionScorer, Scored


class Scorer(Protocol):
    """Embeds cells and scores them against labels."""

    #: The texts that each label is described by; none where that is not known.
    descriptions: dict[str, tuple[str, ...]]
    #: What else decides the scores, by name.
    settings: dict[str, float]
    #: How many positions go through a tower at once.
    budget: TokenBudget

    def __call__(self, ids: torch.Tensor, cells: PackedSequences) -> Scored:
        """
        Args:
            ids: `(genes of all cells,)`, cells laid end to end.
            cells: Where each cell is.
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
        self.descriptions, self.budget = by_description.descriptions, by_description.budget
        self.settings = {**by_description.settings, "prototype_weight": float(weight)}
        self.prototypes = prototypes.to(by_description.text_embeds)

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences) -> Scored:
        embeds, described, shortlist_is_exact, max_cosine = self.by_description(ids, cells)
        similarity = self.by_description.model.get_similarity_logits(embeds, self.prototypes)
        # What is proven of a part of the score is not proven of all of it.
        shortlist_is_exact &= self.by_description.shortlist is None
        scores = self.weight * similarity.softmax(dim=1) + (1 - self.weight) * described
        return Scored(embeds, scores, shortlist_is_exact, max_cosine)


class ClassScorer:
    """
    LangCell-CE: the probabilities of a classification head; of each label by itself where a cell may have several. The
    embeddings are the cells' `<cls>` states.
    """

    def __init__(
        self, model: LangCellForSequenceClassification, descriptions: dict[str, str], budget: TokenBudget | None = None
    ):
        self.model = model
        self.descriptions = {label: as_texts(label, text) if text else () for label, text in descriptions.items()}
        self.budget = TokenBudget.for_model(model) if budget is None else budget
        self.settings: dict[str, float] = {}

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences) -> Scored:
        _, pooled = self.model.cell_model.read_packed(ids, cells, pooled_only=True)
        logits = self.model.classifier(pooled).float()
        multilabel = self.model.config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if multilabel else logits.softmax(dim=1)
        no_text = torch.full((len(cells),), torch.nan)
        return Scored(F.normalize(pooled.float(), dim=-1), scores, torch.ones(len(cells), dtype=torch.bool), no_text)


__all__ = ["ClassScorer", "DescriptionScorer", "PrototypeScorer", "Scorer"]
