# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A checkpoint on a device: it ranks and embeds cells, embeds texts, and scores cells against labels."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import anndata as ad
import numpy as np
import torch
import torch.nn.functional as F

from ..checkpoint.adaptation_record import Adaptation
from ..checkpoint.builtin import display_name
from ..model.errors import InputError
from ..model.feature_extraction_langcell import RankedChunks, require_cell_options
from ..model.modeling_langcell import LangCellForSequenceClassification, LangCellModel
from ..model.packed_langcell import PackedSequences
from ..model.processing_langcell import LangCellProcessor
from ..model.prompts import Description
from ..model.ranking import RankedCells
from ..model.token_budget import TokenBudget, dispatched_to
from ..model.zero_shot import DescriptionScorer, Shortlist, read_cells
from ..ontology import Labels, descriptions_of, get_term, texts_of, usual_in, without_repeats
from .device import find_device, reuse_memory
from .open_set import OpenSetScorer, OtherTypes
from .scorers import ClassScorer, PrototypeScorer, Scorer

logger = logging.getLogger(__name__)

CHUNK_SIZE = 4096  # Number of cells that are ranked and sorted by length together.


class Predictor:
    """
    A model and its processor on a device.

    Args:
        model: A `LangCellModel`, or a `LangCellForSequenceClassification` for the labels it was trained on.
        processor: The model's `LangCellProcessor`.
        adaptation: The adaptation of the model, if there is one. Its labels are then the default candidates.
        device: Device to compute on, by the rules of `find_device`.
        batch_tokens: Number of gene positions that pass through the cell tower at once, and of word positions through
            the text tower; chosen from free memory and the device by default. It is halved when memory runs out, and
            the work continues. It does not change results.
    """

    def __init__(
        self,
        model: LangCellModel | LangCellForSequenceClassification,
        processor: LangCellProcessor,
        *,
        adaptation: Adaptation | None = None,
        device: str | torch.device | None = None,
        batch_tokens: int | None = None,
    ):
        dispatched = dispatched_to(model)  # accelerate has placed such a model, and forbids moving it.
        self.device = dispatched or find_device(device)
        self.model = (model if dispatched else model.to(self.device)).eval()
        self.processor, self.adaptation = processor, adaptation
        reuses_memory = self.device.type == "cpu" and reuse_memory()
        self.budget = (
            TokenBudget.for_model(self.model, reuses_memory) if batch_tokens is None else TokenBudget(batch_tokens)
        )

    def chunks(self, adata: ad.AnnData, **cell_options: Any) -> RankedChunks:
        """
        Ranks the cells, a chunk at a time. Arguments and errors are the same as for `LangCellFeatureExtractor.chunks`.

        Raises:
            TypeError: There is no such option.
        """
        require_cell_options(cell_options)
        return self.processor.feature_extractor.chunks(adata, chunk_size=CHUNK_SIZE, **cell_options)

    @property
    def has_labels(self) -> bool:
        """True if the checkpoint was adapted or trained for labels of its own."""
        return self.adaptation is not None or isinstance(self.model, LangCellForSequenceClassification)

    @property
    def width(self) -> int:
        """Length of an embedding."""
        config = self.model.config
        return config.projection_dim if isinstance(self.model, LangCellModel) else config.hidden_size

    @torch.inference_mode()
    def embed_packed(self, ids: torch.Tensor, cells: PackedSequences) -> torch.Tensor:
        """
        Embeds packed cells.

        Args:
            ids: `(1, genes of all cells)` gene ids, one cell after the other.
            cells: The boundaries of the cells.

        Returns:
            `(cells, width)` float32, L2-normalised.
        """
        read = self.model.cell_model(ids, pooled_only=True, return_dict=True, **cells.arguments)
        pooled = read.pooler_output
        if isinstance(self.model, LangCellModel):
            return self.model.project_cells(pooled).float()
        return F.normalize(pooled.float(), dim=-1)

    def embed_ranked(self, ranked: RankedCells, advance: Callable[[int], Any]) -> np.ndarray:
        """
        Embeds ranked cells. `advance` is called with the number of cells of each batch.

        Returns:
            `(cells, width)` float32, L2-normalised; NaN for cells without known genes.
        """
        embeds = np.full((len(ranked), self.width), np.nan, dtype=np.float32)
        for rows, found in read_cells(ranked, self.embed_packed, self.budget, self.device):
            embeds[rows] = found.cpu().numpy()
            advance(len(rows))
        return embeds

    def descriptions_of(self, labels: Labels, **options: Any) -> dict[str, Description]:
        """
        Returns what describes each label for this checkpoint, with texts in its processor's prompt templates. Arguments
        and errors are the same as for `ontology.candidates`.
        """
        return descriptions_of(labels, self.processor.prompt_templates, **options)

    def texts_of(self, labels: Labels) -> dict[str, tuple[str, ...]]:
        """
        Returns the texts that this checkpoint compares cells with for each label, in its processor's prompt
        templates. Arguments and errors are the same as for `ontology.candidates`.
        """
        return texts_of(labels, self.processor.prompt_templates)

    def embed_texts(self, texts: Iterable[str | Sequence[str]]) -> np.ndarray:
        """
        Embeds texts, such as descriptions, in the space of the cells. Several texts for one label, as `texts_of`
        returns them, get one joint embedding, as in `DescriptionScorer`.

        Returns:
            `(texts, projection_dim)` float32, L2-normalised.

        Raises:
            InputError: The checkpoint is a classifier, which reads no texts.
        """
        if not isinstance(self.model, LangCellModel):
            raise InputError("This checkpoint classifies into its own labels and does not read texts.")
        descriptions = {str(number): text for number, text in enumerate(texts)}
        scorer = DescriptionScorer(self.model, self.processor, descriptions, 1.0, budget=self.budget, marker_weight=0)
        return scorer.text_embeds.cpu().numpy()

    def scorer(
        self,
        labels: Labels | None = None,
        alpha: float | None = None,
        shortlist: Shortlist = "auto",
        *,
        tissue: str | Sequence[str] | None = None,
        marker_weight: float | None = None,
        with_markers: bool = True,
        accept_text: bool = False,
    ) -> Scorer:
        """
        Returns the scorer of the candidates. Arguments and errors are the same as for `LangCellAnnotator.annotate`,
        except that without labels and tissue all types of the catalogue are candidates: there are no cells to judge by.
        """
        adaptation = self.adaptation
        if isinstance(self.model, LangCellForSequenceClassification):
            if any(given is not None for given in (labels, alpha, tissue, marker_weight)):
                raise InputError(
                    "This checkpoint classifies into its own labels: leave out labels, tissue, alpha and marker_weight."
                )
            names = dict.fromkeys(self.model.config.id2label.values(), "")
            return ClassScorer(self.model, names if adaptation is None else adaptation.labels, self.budget)
        if tissue is not None and labels is not None:
            raise InputError("Give either labels or a tissue, not both.")
        own = adaptation if labels is None and tissue is None else None
        if labels is None and own is None:
            usual = usual_in([tissue] if isinstance(tissue, str) else tissue or [])
            labels = [get_term(one.id).name for one in usual]
            logger.info("The candidates are the %d cell types of the catalogue.", len(usual))
        if alpha is None:
            alpha = self.model.config.alpha if adaptation is None else adaptation.alpha
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha} is not between 0 and 1.")
        descriptions: Mapping[str, Any]
        if own is None:
            options = {"with_markers": with_markers, "accept_text": accept_text}
            descriptions = self.descriptions_of(() if labels is None else without_repeats(labels), **options)
        else:
            descriptions = own.descriptions
            if marker_weight is None:
                marker_weight = own.marker_weight if with_markers else 0
        by_description = DescriptionScorer(
            self.model,
            self.processor,
            descriptions,
            alpha,
            shortlist,
            self.budget,
            marker_weight,
            relatives_weight=None if own is None else 0,  # The adapted model has learnt its labels' descriptions,
            known_cells_weight=None if adaptation is None else 0,  # and places cells elsewhere.
        )
        if by_description.calibration is not self.model.config.calibration:
            logger.info("Scores are not calibrated: the calibration is for a different alpha or prompt templates.")
        if own is not None and own.prototypes is not None:
            return PrototypeScorer(by_description, own.prototypes, own.prototype_weight)
        if (by_description.calibration or {}).get("lead") and self.model.config.known_types is not None:
            return OpenSetScorer(by_description, OtherTypes(self.model, self.processor))
        return by_description

    def origin(self) -> dict[str, str]:
        """Returns the names of the `checkpoint`, its `revision` and the `adapter`; empty where there is none."""
        config = self.model.config
        return {
            "checkpoint": display_name(config.name_or_path or ""),
            "revision": str(getattr(config, "_commit_hash", None) or ""),
            "adapter": "" if self.adaptation is None else self.adaptation.loaded_from,
        }

    def run_record(self, chunks: RankedChunks, matched_counts: np.ndarray) -> dict[str, Any]:
        """
        Returns the record of a run for `uns["langcell"]`, in types that `.h5ad` holds.

        Args:
            chunks: The cells.
            matched_counts: `(cells,)` share of each cell's counts that lies in known genes.
        """
        match = chunks.match
        facts = {
            "array": chunks.label,
            "counts": chunks.kind.counts,
            **({} if chunks.kind.base == math.e else {"log_base": chunks.kind.base}),
            "empty_cells": chunks.empty_cells,
            **({} if chunks.gene_column is None else {"gene_column": chunks.gene_column}),
            **({} if chunks.organism is None else {"chosen_organism": chunks.organism}),
            "organism": match.organism,
            **({"no_genes": chunks.n_others} if chunks.n_others else {}),
            "genes": len(match.token_ids),
            "genes_by_ensembl_id": match.by_ensembl_id,
            "genes_by_symbol": match.by_symbol,
            "genes_by_synonym": match.by_synonym,
            "matched_counts": float(np.median(matched_counts)),
        }
        return {
            **self.origin(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "input": facts,
            "versions": {name: version(name) for name in ("modeling-langcell", "transformers", "torch", "anndata")},
        }


__all__ = ["CHUNK_SIZE", "Predictor"]
