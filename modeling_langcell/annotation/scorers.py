# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Scorers of cells against labels: by descriptions, by a few cells of each label, or by a classification head."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..model.marker_genes import NamedGenes
from ..model.modeling_langcell import LangCellForSequenceClassification
from ..model.packed_langcell import PackedSequences
from ..model.prompts import as_texts
from ..model.token_budget import TokenBudget
from ..model.zero_shot import DescriptionScorer, Scored, Shortlist


class Scorer(Protocol):
    """Embeds cells and scores them against labels."""

    #: The texts that describe each label; an empty tuple where they are unknown.
    descriptions: dict[str, tuple[str, ...]]
    #: The genes that each label's description names; empty where they have no weight.
    markers: dict[str, NamedGenes]
    #: The numbers that decide the scores, by name.
    settings: dict[str, float]
    #: Limit on the positions that pass through a tower at once.
    budget: TokenBudget
    #: The calibration that makes the scores probabilities; None if they are not calibrated.
    calibration: dict[str, Any] | None

    @property
    def marker_ids(self) -> tuple[int, ...]:
        """Ids of the genes whose places the scores need."""

    def __call__(self, ids: torch.Tensor, cells: PackedSequences, places: torch.Tensor | None = None) -> Scored:
        """
        Scores packed cells.

        Args:
            ids: `(genes of all cells,)` gene ids, one cell after the other.
            cells: The boundaries of the cells.
            places: `(cells, genes of marker_ids)` places of the genes in the rankings of the cells.
        """

    def reading(self, shortlist: Shortlist) -> "Scorer":
        """Returns the scorer with a different shortlist, if it uses one."""


class PrototypeScorer:
    """
    Scores cells few-shot, without training. A label's prototype is the mean embedding of its few cells (Snell et al.,
    2017). Its score blends two probabilities over the labels: that from the similarity to the prototypes, with weight
    `weight`, and that from the descriptions.

    Args:
        by_description: Scorer of the descriptions.
        prototypes: `(labels, projection_dim)`, L2-normalised, in the order of the descriptions.
        weight: Weight of the prototypes, from 0 to 1.
    """

    calibration: dict[str, Any] | None = None

    def __init__(self, by_description: DescriptionScorer, prototypes: torch.Tensor, weight: float):
        self.by_description, self.weight = by_description, weight
        self.descriptions, self.budget = by_description.descriptions, by_description.budget
        self.markers = by_description.markers
        self.settings = {**by_description.settings, "prototype_weight": float(weight)}
        self.prototypes = prototypes.to(by_description.text_embeds)

    @property
    def marker_ids(self) -> tuple[int, ...]:
        return self.by_description.marker_ids

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences, places: torch.Tensor | None = None) -> Scored:
        embeds, described, shortlist_is_exact, max_cosine, _ = self.by_description(ids, cells, places)
        similarity = self.by_description.model.get_similarity_logits(embeds, self.prototypes)
        # A shortlist that is exact for the descriptions' part of the score may not be exact for the blend.
        shortlist_is_exact &= self.by_description.shortlist is None
        scores = self.weight * similarity.softmax(dim=1) + (1 - self.weight) * described
        return Scored(embeds, scores, shortlist_is_exact, max_cosine)

    def reading(self, shortlist: Shortlist) -> "PrototypeScorer":
        return PrototypeScorer(self.by_description.reading(shortlist), self.prototypes, self.weight)


class ClassScorer:
    """
    Scores cells by the probabilities of a classification head (LangCell-CE), independently for each label where a cell
    may have several. The embeddings are the cells' `<cls>` states.

    Args:
        model: The classifier.
        descriptions: A description for each label, or an empty text.
        budget: Limit on the positions that pass through the cell tower at once.
    """

    calibration: dict[str, Any] | None = None
    marker_ids: tuple[int, ...] = ()

    def __init__(
        self, model: LangCellForSequenceClassification, descriptions: dict[str, str], budget: TokenBudget | None = None
    ):
        self.model = model
        self.descriptions = {label: as_texts(label, text) if text else () for label, text in descriptions.items()}
        self.budget = TokenBudget.for_model(model) if budget is None else budget
        self.settings: dict[str, float] = {}
        self.markers: dict[str, NamedGenes] = {}

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences, places: torch.Tensor | None = None) -> Scored:
        read = self.model.cell_model(ids, pooled_only=True, return_dict=True, **cells.arguments)
        pooled = read.pooler_output
        logits = self.model.classifier(pooled).float()
        multilabel = self.model.config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if multilabel else logits.softmax(dim=1)
        no_text = torch.full((len(cells),), torch.nan)
        return Scored(F.normalize(pooled.float(), dim=-1), scores, torch.ones(len(cells), dtype=torch.bool), no_text)

    def reading(self, shortlist: Shortlist) -> "ClassScorer":
        return self


__all__ = ["ClassScorer", "DescriptionScorer", "PrototypeScorer", "Scorer"]
