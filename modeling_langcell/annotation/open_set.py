# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Whether a cell is of any candidate at all. The candidates are compared with the other types that the checkpoint knows: a
T cell among B cells and monocytes is like none of them, and very much like a T cell, which nobody named.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..model.marker_genes import NamedGenes
from ..model.modeling_langcell import LangCellModel
from ..model.packed_langcell import PackedSequences
from ..model.processing_langcell import LangCellProcessor
from ..model.prompts import Description
from ..model.token_budget import TokenBudget
from ..model.zero_shot import DescriptionScorer, KnownTypes, MarkerEvidence, Scored, Shortlist
from ..ontology import ancestors, cell_type, id_of

_ALIKE = 0.5  # Types whose embeddings have at least this cosine are too alike to compete.
_RANK = 3  # A candidate is compared with the third best of the other types.
_CLEAR = 20.0  # A lead of more than this says no more.


class OtherTypes:
    """
    The types of the catalogue that a checkpoint learnt, with their markers.

    Args:
        model, processor: The checkpoint; its config names its known types.

    Attributes:
        ids: Ids of the types in the Cell Ontology.
        embeds: `(types, width)` what their cells are compared with, L2-normalised.
        evidence: Evidence of their markers.
    """

    def __init__(self, model: LangCellModel, processor: LangCellProcessor):
        config = model.config
        listed = {number: cell_type(term) for number, term in enumerate(config.known_types or ())}
        types = {number: found for number, found in listed.items() if found is not None}
        self.ids = [found.id for found in types.values()]
        known = KnownTypes(model.known_texts.float(), model.known_cells.float(), config.known_cells_weight)
        self.embeds = known.embeds[list(types)]
        named: dict[str, NamedGenes] = {
            found.id: processor.find_genes(Description((), found.markers, found.absent)) for found in types.values()
        }
        self.evidence = MarkerEvidence(named, processor.feature_extractor.usual_places, self.embeds.device)

    def alike(self, labels: Iterable[str], label_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns `(labels, types)` booleans: true where a type is the label's own, above it or below it (`related`); and
        true where their embeddings are alike (`alike`).
        """
        above = [{one, *ancestors(one)} for one in self.ids]
        related = []
        for term in map(id_of, labels):
            own = set() if term is None else {term, *ancestors(term)}
            related.append([one in own or term in of_one for one, of_one in zip(self.ids, above, strict=True)])
        return torch.tensor(related, device=label_embeds.device), are_alike(label_embeds, self.embeds)


def are_alike(embeds: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Returns `(types, other types)` true where two types are too much alike to compete, by their embeddings."""
    return embeds @ others.T >= _ALIKE


def lead(logits: Any, other_logits: Any, competes: Any) -> np.ndarray:
    """
    Returns how much better the best candidate fits a cell than other types do, from -20 to 20: than the third best of
    them, since one or two of so many fit by chance, and a cell of no candidate is like several (T cells of all kinds).

    Args:
        logits: `(cells, labels)` similarity and weighted evidence of the candidates.
        other_logits: `(cells, types)` those of other types.
        competes: `(labels, types)` true where a type competes with a label.

    Returns:
        `(cells,)` float64.
    """
    logits, other_logits = np.asarray(logits, np.float64), np.asarray(other_logits, np.float64)
    best, support = logits.argmax(axis=1), logits.max(axis=1)
    rivals = np.where(np.asarray(competes)[best], other_logits, -np.inf)
    rivals = np.pad(rivals, ((0, 0), (_RANK, 0)), constant_values=-np.inf)
    return np.clip(support - np.partition(rivals, -_RANK, axis=1)[:, -_RANK], -_CLEAR, _CLEAR)


class OpenSetScorer:
    """
    Scores cells by descriptions, and adds the lead of the best one over other types: see `lead`.

    Args:
        by_description: Scorer of the descriptions.
        others: The types that the checkpoint knows.
    """

    def __init__(self, by_description: DescriptionScorer, others: OtherTypes):
        self.by_description, self.others = by_description, others
        self.descriptions, self.markers = by_description.descriptions, by_description.markers
        self.budget: TokenBudget = by_description.budget
        self.calibration, self.settings = by_description.calibration, by_description.settings
        related, alike = others.alike(self.descriptions, by_description.label_embeds)
        self._competes = (~related.any(dim=0) & ~alike).cpu().numpy()
        self.marker_ids = tuple(sorted({*by_description.marker_ids, *others.evidence.ids}))
        column = {gene: number for number, gene in enumerate(self.marker_ids)}
        self._own = [column[gene] for gene in by_description.marker_ids]
        self._of_others = [column[gene] for gene in others.evidence.ids]

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences, places: torch.Tensor | None = None) -> Scored:
        assert places is not None, "it has marker_ids"
        own, others = self.by_description, self.others
        states, embeds = own.read(ids, cells)
        compared = own.compare(embeds, places[:, self._own])
        support_of_others = own.model.get_similarity_logits(embeds, others.embeds)
        support_of_others = support_of_others + own.marker_weight * others.evidence(places[:, self._of_others])
        found = lead(own.support(compared).cpu(), support_of_others.cpu(), self._competes)
        return own.score(compared, states, cells)._replace(lead=torch.from_numpy(found))

    def reading(self, shortlist: Shortlist) -> "OpenSetScorer":
        return OpenSetScorer(self.by_description.reading(shortlist), self.others)


__all__ = ["OpenSetScorer", "OtherTypes", "are_alike", "lead"]
