# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation as every checkpoint carries it: the scores, and transformers' pipeline around them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Pipeline

from .feature_extraction_langcell import InputError
from .processing_langcell import LangCellProcessor

if TYPE_CHECKING:
    from .modeling_langcell import LangCellModel

#: How many gene positions, and how many word positions, go through the model at once.
BATCH_TOKENS = 16_384


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
        model: "LangCellModel",
        processor: LangCellProcessor,
        descriptions: dict[str, str],
        alpha: float,
        batch_tokens: int = BATCH_TOKENS,
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
        """
        Args: `ids` and `mask`, `(cells, genes)`.

        Returns:
            Embeddings `(cells, width)`, L2-normalised, and scores from 0 to 1 `(cells, labels)`, both float32.
        """
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


class ZeroShotCellAnnotationPipeline(Pipeline):
    """
    Finds for every cell the candidate that fits it best, in the manner of transformers' zero-shot pipelines. With the
    same descriptions its scores are those of `LangCellAnnotator`, which also knows the Cell Ontology and writes into
    the AnnData; this needs transformers alone.

    Called with an AnnData, in memory or backed, or several, and

    - `candidate_labels`: names, or `{label: description}`;
    - `hypothesis_template`: what makes a description of a name, `"cell type: {}."` by default;
    - `alpha`: weight of the similarity against the matching, the checkpoint's own by default;
    - `top_k`: how many of a cell's candidates to give, all by default;
    - `layer`, `use_raw`, `gene_column`, `counts`, `empty_cells`: as for `LangCellFeatureExtractor`.

    It gives for every cell a list of `{"label": ..., "score": ...}`, the best first; an empty one for a cell without
    known genes (`empty_cells="mark"`).

    Raises:
        InputError: No candidates, one given twice, an alpha outside 0 to 1, or cells that cannot be read.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> annotate = pipeline("zero-shot-cell-annotation", model="hub_configs/langcell-mini")  # doctest: +SKIP
    >>> annotate(adata, candidate_labels=["B cell", "monocyte"], top_k=1)[0]  # doctest: +SKIP
    [{'label': 'monocyte', 'score': 0.93}]

    ```"""

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = False

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves model and processor; the config of a LangCell names its pipeline, whose code goes with them."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def __call__(self, inputs, **kwargs):
        """As the class says; cells go through the model by the number of their genes, whatever `batch_size` says."""
        kwargs.pop("batch_size", None)
        return super().__call__(inputs, batch_size=1, **kwargs)

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, alpha=None, top_k=None, **cells):
        if candidate_labels is not None and not isinstance(candidate_labels, (str, Mapping)):
            candidate_labels = list(candidate_labels)
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise InputError(f"top_k={top_k!r} is no number of candidates.")
        if alpha is not None and not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
            raise InputError(f"alpha={alpha!r} is not between 0 and 1.")
        texts = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template}
        texts = {name: value for name, value in texts.items() if value is not None}
        return texts | cells, {} if alpha is None else {"alpha": alpha}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, cells, candidate_labels=(), hypothesis_template="cell type: {}.", **cell_options):
        return {
            "cells": cells,
            "descriptions": _describe(candidate_labels, hypothesis_template),
            "cell_options": cell_options,
        }

    def _forward(self, given, alpha=None):
        """The scores of all cells, `(cells, labels)` float32, NaN for those without known genes; and the labels."""
        model = self.model
        alpha = model.config.alpha if alpha is None else alpha
        scorer = DescriptionScorer(model.eval(), self.processor, given["descriptions"], alpha)
        parts = []
        for ranked in self.processor.feature_extractor.stream(given["cells"], **given["cell_options"]):
            parts.append(np.full((len(ranked), len(scorer.descriptions)), np.nan, dtype=np.float32))
            for rows in ranked.batches(BATCH_TOKENS):
                ids, mask = (torch.from_numpy(array).to(model.device) for array in ranked.pad(rows))
                parts[-1][rows] = scorer(ids, mask)[1].cpu().numpy()
        return {"scores": torch.from_numpy(np.concatenate(parts)), "labels": list(scorer.descriptions)}

    def postprocess(self, found, top_k=None):
        scores, labels = found["scores"].numpy(), found["labels"]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [] if np.isnan(row[0]) else [{"label": labels[i], "score": float(row[i])} for i in order]
            for row, order in zip(scores, best, strict=True)
        ]


def _describe(candidates: Sequence[str] | Mapping[str, str], template: str) -> dict[str, str]:
    if isinstance(candidates, str):
        raise InputError(f"candidate_labels must be several labels, not one text: [{candidates!r}, ...].")
    if not isinstance(template, str) or "{}" not in template:
        raise InputError(f"hypothesis_template {template!r} has no {{}} for the label.")
    pairs = candidates.items() if isinstance(candidates, Mapping) else ((label, template) for label in candidates)
    described: dict[str, str] = {}
    for label, text in pairs:
        if not isinstance(label, str) or not isinstance(text, str) or not text:
            raise InputError(f"Labels and descriptions must be texts, not {label!r} and {text!r}.")
        if label in described:
            raise InputError(f"The label {label!r} was given twice.")
        described[str(label)] = text if isinstance(candidates, Mapping) else text.replace("{}", label)
    if not described:
        raise InputError("No candidates: give candidate_labels, names or {label: description}.")
    return described


__all__ = ["DescriptionScorer", "ZeroShotCellAnnotationPipeline"]
