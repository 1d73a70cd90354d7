# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation as a transformers pipeline, which every checkpoint carries."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .configuration_langcell import PIPELINE_TASK
from .errors import InputError
from .feature_extraction_langcell import require_cell_options
from .prompts import Description, as_description, check_labels, fill_templates
from .token_budget import execution_device
from .zero_shot import DescriptionScorer, read_cells

logger = logging.getLogger(__name__)


class ZeroShotCellAnnotationPipeline(Pipeline):
    """
    Ranks candidate labels for every cell, like transformers' zero-shot pipelines. With the same descriptions its scores
    are those of `LangCellAnnotator`, which also knows the Cell Ontology and writes into the AnnData; the pipeline needs
    only transformers.

    Takes one or several AnnData, in memory or backed, and these arguments:

    - `candidate_labels`: names, or `{label: description}` with a text, several texts, or
      `{"description": ..., "markers": [...], "absent": [...]}`;
    - `hypothesis_template`: the prompt template, with `{}` for the name; by default the processor's templates that a
      name alone can fill, or else `"cell type: {}."`;
    - `alpha`, `marker_weight`: weight of the similarity against the matching, and of the genes that descriptions name;
      the checkpoint's own by default;
    - `shortlist`: number of candidates most similar to a cell that the matching reads, the same as for
      `DescriptionScorer`;
    - `top_k`: number of candidates to return for a cell, all by default;
    - `layer`, `use_raw`, `gene_column`, `organism`, `counts`, `empty_cells`: the same as for
      `LangCellFeatureExtractor`.

    Returns a list of `{"label": ..., "score": ...}` for every cell, the best first; an empty one for a cell without
    known genes (`empty_cells="mark"`).

    Raises:
        InputError: No candidates, one given twice, an alpha outside 0 to 1, or cells that cannot be read.
        TypeError: There is no such argument.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> annotate = pipeline("zero-shot-cell-annotation", model="langcell-mini")  # doctest: +SKIP
    >>> annotate(adata, candidate_labels=["B cell", "monocyte"], top_k=1)[0]  # doctest: +SKIP
    [{'label': 'monocyte', 'score': 0.93}]

    ```"""

    task_name = PIPELINE_TASK
    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = False

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves model and processor, with the pipeline's code, which the config names."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def __call__(self, inputs, **kwargs):
        """Annotates as the class describes; batches are made by number of genes, and `batch_size` is ignored."""
        if kwargs.pop("batch_size", None) is not None:
            logger.info("batch_size is ignored: cells are batched by their number of genes, to fit the free memory.")
        return super().__call__(inputs, batch_size=1, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels=None,
        hypothesis_template=None,
        alpha=None,
        shortlist="auto",
        marker_weight=None,
        top_k=None,
        **cells,
    ):
        require_cell_options(cells)
        if candidate_labels is not None and not isinstance(candidate_labels, (str, Mapping)):
            candidate_labels = list(candidate_labels)
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise InputError(f"top_k={top_k!r} is not a number of candidates.")
        if alpha is not None and not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
            raise InputError(f"alpha={alpha!r} is not between 0 and 1.")
        texts = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template}
        texts = {name: value for name, value in texts.items() if value is not None}
        how = {} if alpha is None else {"alpha": alpha}
        how |= {} if shortlist == "auto" else {"shortlist": shortlist}
        how |= {} if marker_weight is None else {"marker_weight": marker_weight}
        return texts | cells, how, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, cells, candidate_labels=(), hypothesis_template=None, **cell_options):
        return {
            "cells": cells,
            "descriptions": _describe(candidate_labels, hypothesis_template, self.processor.prompt_templates),
            "cell_options": cell_options,
        }

    def _forward(self, given, alpha=None, shortlist="auto", marker_weight=None):
        """Returns the labels, and the scores `(cells, labels)` float32, NaN for cells without known genes."""
        model = self.model
        alpha = model.config.alpha if alpha is None else alpha
        scorer = DescriptionScorer(
            model.eval(), self.processor, given["descriptions"], alpha, shortlist, marker_weight=marker_weight
        )
        parts, device = [], execution_device(model)
        extractor = self.processor.feature_extractor
        for ranked in extractor.stream(given["cells"], places_of=scorer.marker_ids, **given["cell_options"]):
            parts.append(np.full((len(ranked), len(scorer.descriptions)), np.nan, dtype=np.float32))
            for rows, found in read_cells(ranked, scorer, scorer.budget, device):
                parts[-1][rows] = found.scores.cpu().numpy()
        return {"scores": torch.from_numpy(np.concatenate(parts)), "labels": list(scorer.descriptions)}

    def postprocess(self, found, top_k=None):
        scores, labels = found["scores"].numpy(), found["labels"]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [] if np.isnan(row[0]) else [{"label": labels[i], "score": float(row[i])} for i in order]
            for row, order in zip(scores, best, strict=True)
        ]


def _describe(
    candidates: Sequence[str] | Mapping[str, Any], template: str | None, prompt_templates: Sequence[str]
) -> dict[str, Description]:
    """Returns the description of each candidate."""
    if isinstance(candidates, str):
        raise InputError(f"candidate_labels must be several labels, not one text: [{candidates!r}, ...].")
    if template is not None and (not isinstance(template, str) or "{}" not in template):
        raise InputError(f"hypothesis_template {template!r} has no {{}} for the label.")
    described: dict[str, Description] = {}
    check_labels(candidates)
    for label in candidates:
        own = as_description(label, candidates[label]) if isinstance(candidates, Mapping) else Description()
        if own.texts:
            texts = own.texts
        elif template is not None:
            texts = (template.replace("{}", label),)
        else:
            texts = tuple(text.text for text in fill_templates(prompt_templates, str(label)))
        described[str(label)] = replace(own, texts=texts)
    if not described:
        raise InputError("No candidates: give candidate_labels, names or {label: description}.")
    return described


__all__ = ["ZeroShotCellAnnotationPipeline"]
