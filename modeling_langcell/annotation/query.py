# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A text to search cells for: what it asks for, and how well it describes each of them."""

from collections.abc import Iterator
from functools import cached_property

import anndata as ad
import numpy as np
import pandas as pd
import torch

from ..io.columns import RUN
from ..model.marker_genes import NamedGenes
from ..model.prompts import as_description, require_text
from ..model.zero_shot import MarkerEvidence
from ..ontology import id_of
from .calibration import Calibration
from .open_set import OtherTypes, lead
from .predictor import Predictor
from .records import cell_options

_CELLS = 65536  # Cells that are compared with all known types at once.


class Query:
    """
    What a text asks for: its embedding, and the genes that it names.

    Args:
        annotator: The annotator that embedded the cells.
        text: Free text, or a name or id of the Cell Ontology, which is searched for by its description.
        marker_weight: Weight of the genes, same as for `DescriptionScorer`.

    Attributes:
        is_term: True where the text means a term.
        embed: `(width,)` embedding.
        named: The genes that count.
        weight: Their weight.

    Raises:
        InputError: The text is empty, or the ontology has no such `CL:` id.
    """

    def __init__(self, annotator: Predictor, text: str, marker_weight: float | None = None):
        require_text(text, "The text to search for")
        self.annotator, self.text = annotator, text
        self.is_term = text.startswith("CL:") or id_of(text) is not None
        given = annotator.descriptions_of([text])[text] if self.is_term else text
        config = annotator.model.config
        self.weight = getattr(config, "marker_weight", 0) if marker_weight is None else marker_weight
        found = annotator.processor.find_genes(given) if self.weight else NamedGenes()
        self.named = found if found.present or found.absent else None
        self.embed = annotator.embed_texts([as_description("", given).texts])[0]
        self._temperature = config.temperature
        self._calibration = None if config.calibration is None else Calibration.from_dict(config.calibration)
        if self._calibration is not None and (self._calibration.lead is None or config.known_types is None):
            self._calibration = None

    @cached_property
    def _others(self) -> OtherTypes:
        return OtherTypes(self.annotator.model, self.annotator.processor)

    @cached_property
    def _competes(self) -> np.ndarray:
        related, alike = self._others.alike([self.text], torch.from_numpy(self.embed[None]).to(self._others.embeds))
        return (~related.any(dim=0) & ~alike).cpu().numpy()

    def of_embeds(self, embeds: np.ndarray) -> pd.DataFrame:
        """Scores `(cells, width)` embeddings: columns `similarity` and, where the checkpoint can tell, `fit`."""
        found = pd.DataFrame({"similarity": embeds @ self.embed})
        if self._calibration is not None:
            fits = [np.zeros(0)]
            for block in _blocks(embeds):
                fits.append(self._fit(block @ self.embed / self._temperature, self._others_logits(block)))
            found["fit"] = np.concatenate(fits)
        return found

    def of_cells(self, embeds: np.ndarray, adata: ad.AnnData) -> pd.DataFrame:
        """Scores embedded cells by the genes, too: columns `evidence` and `agreeing` besides."""
        assert self.named is not None
        usual = self.annotator.processor.feature_extractor.usual_places
        evidence = MarkerEvidence({"": self.named}, usual, torch.device("cpu"))
        absent = np.isin(evidence.ids, self.named.absent)
        other_ids = () if self._calibration is None else self._others.evidence.ids
        asked = tuple(sorted({*evidence.ids, *other_ids}))
        own, others = np.searchsorted(asked, evidence.ids), np.searchsorted(asked, other_ids)
        options = cell_options(adata.uns[RUN]) | {"empty_cells": "mark", "places_of": asked}
        parts, start = [], 0
        for ranked in self.annotator.chunks(adata, **options):
            block = embeds[start : start + len(ranked.places)]
            start += len(block)
            places = torch.from_numpy(ranked.places)
            part = pd.DataFrame({"similarity": block @ self.embed})
            part["evidence"] = evidence(places[:, own])[:, 0].numpy()
            measured = ~np.isnan(ranked.places[:, own])
            agrees = ((ranked.places[:, own] > 0) != absent) & measured
            part["agreeing"] = agrees.sum(axis=1) / np.maximum(measured.sum(axis=1), 1)
            if self._calibration is not None:
                of_text = part["similarity"] / self._temperature + self.weight * part["evidence"]
                of_others = self._others.evidence(places[:, others].to(self._others.embeds.device)).cpu().numpy()
                part["fit"] = self._fit(of_text.to_numpy(), self._others_logits(block) + self.weight * of_others)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _others_logits(self, embeds: np.ndarray) -> np.ndarray:
        return embeds @ self._others.embeds.cpu().numpy().T / self._temperature

    def _fit(self, logits: np.ndarray, other_logits: np.ndarray) -> np.ndarray:
        """Returns `(cells,)` probabilities that the text describes a cell; missing where the cell has no embedding."""
        assert self._calibration is not None
        there = ~np.isnan(logits)
        found = np.full(len(logits), np.nan)
        found[there] = self._calibration.fit_probability(lead(logits[there, None], other_logits[there], self._competes))
        return found


def _blocks(embeds: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(embeds), _CELLS):
        yield embeds[start : start + _CELLS]


__all__ = ["Query"]
