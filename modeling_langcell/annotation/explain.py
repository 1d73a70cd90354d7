# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Explanations: the contribution of each gene of a cell to its match with a description."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import anndata as ad
import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedConfig

from ..io.columns import CELL_TYPE, RUN
from ..io.labels import rank_cells
from ..io.progress import progress_bar
from ..model.errors import InputError
from ..model.feature_extraction_langcell import LangCellFeatureExtractor, takes_cell_options
from ..model.marker_genes import NamedGenes
from ..model.modeling_langcell import LangCellModel
from ..model.prompts import as_texts
from ..model.ranking import RankedCells
from ..model.zero_shot import DescriptionScorer
from ..ontology import Labels
from .annotation_run import AnnotationRun
from .open_set import OpenSetScorer
from .predictor import Predictor
from .records import best_labels, label_descriptions
from .records import cell_options as recorded_options

logger = logging.getLogger(__name__)

#: `gradient` explains the similarity, `attention` the matching.
Method = Literal["gradient", "attention"]

_STEPS = 8  # Steps along the path of integrated gradients.
_MOST_LABELS = 12  # Largest number of labels that are explained; a page has no room for more.


class Explainer:
    """
    Computes the contribution of each gene of a cell to the cell's match with a text. A negative contribution counts
    against the match.

    `gradient` explains the similarity by integrated gradients (Sundararajan et al., 2017) of the cosine between cell
    and text, along the path from a cell with the same number of average genes to the cell itself. The contributions add
    up to about the difference between the two cosines.

    `attention` explains the matching by its cross-attention: each attention weight times the gradient of the log-odds
    of a match with respect to it, summed over tokens, heads and layers. This shows which genes the matching attends
    to, and whether they count for or against a match.

    Args:
        annotator: Model and processor.
        descriptions: One or several texts for each label. `gradient` explains the similarity to all of them,
            `attention` the matching, which reads the first.
        method: `gradient` or `attention`.

    Raises:
        InputError: There is no such method, or the checkpoint reads no texts.
    """

    def __init__(
        self, annotator: Predictor, descriptions: Mapping[str, str | Sequence[str]], method: Method = "gradient"
    ):
        if method not in get_args(Method):
            raise InputError(f"method={method!r} is not one of {', '.join(get_args(Method))}.")
        self.text_embeds = torch.from_numpy(annotator.embed_texts(descriptions.values())).to(annotator.device)
        assert isinstance(annotator.model, LangCellModel)  # embed_texts refuses classifiers.
        self.model, self.device, self.method = annotator.model, annotator.device, method
        self.labels = list(descriptions)
        first_texts = [as_texts(label, texts)[0] for label, texts in descriptions.items()]
        self._text_ids = annotator.processor(text=first_texts, text_kwargs={"padding": False})["input_ids"]
        genes = self.model.cell_model.embeddings.word_embeddings.weight.detach()[2:-1]
        self._average_gene = genes.mean(dim=0)

    def __call__(self, genes: np.ndarray, label: int) -> np.ndarray:
        """
        Computes the contributions of a cell's genes.

        Args:
            genes: `(genes,)` gene ids of a cell, `<cls>` first.
            label: Number of the label.

        Returns:
            `(genes - 1,)` contributions of all genes but `<cls>`.
        """
        ids = torch.from_numpy(genes.astype(np.int64)).to(self.device)[None]
        return (self._integrate if self.method == "gradient" else self._attend)(ids, label)

    def match(self, genes: np.ndarray, label: int) -> float:
        """Returns the match that is explained: the cosine, or the log-odds of the matching."""
        ids = torch.from_numpy(genes.astype(np.int64)).to(self.device)[None]
        with torch.no_grad():
            encoded = self.model.cell_model(ids, pooled_only=self.method == "gradient")
            if self.method == "gradient":
                return float(self.model.project_cells(encoded.pooler_output)[0].float() @ self.text_embeds[label])
            text = torch.tensor([self._text_ids[label]], device=self.device)
            no, yes = self.model.get_matching_logits(encoded.last_hidden_state, None, text, None)[0, 0].float()
            return float(yes - no)

    def _integrate(self, ids: torch.Tensor, label: int) -> np.ndarray:
        embeds = self.model.cell_model.embeddings.word_embeddings(ids).detach()
        step = embeds - self._average_gene
        step[:, 0] = 0  # <cls> is the same in every cell.
        shares = (torch.arange(_STEPS, device=self.device) + 0.5) / _STEPS
        path = (embeds - step * (1 - shares[:, None, None])).requires_grad_(True)
        pooled = self.model.cell_model(inputs_embeds=path, pooled_only=True).pooler_output
        cosines = self.model.project_cells(pooled).float() @ self.text_embeds[label]
        (gradients,) = torch.autograd.grad(cosines.sum(), path)
        return (gradients.mean(dim=0) * step[0]).sum(dim=-1)[1:].float().cpu().numpy()

    def _attend(self, ids: torch.Tensor, label: int) -> np.ndarray:
        with torch.no_grad():
            states = self.model.cell_model(ids).last_hidden_state
        text = torch.tensor([self._text_ids[label]], device=self.device)
        with _eager_attention(self.model.text_model.config):
            output = self.model.text_model(
                text, encoder_hidden_states=states.requires_grad_(True), texts_per_cell=1, output_attentions=True
            )
        no, yes = self.model.matching_head(output.pooler_output)[0].float()
        gradients = torch.autograd.grad(yes - no, output.cross_attentions)
        contributions = [
            (weights * gradient)[0].sum(dim=(0, 1))  # Sums over heads and tokens, for each layer.
            for weights, gradient in zip(output.cross_attentions, gradients, strict=True)
        ]
        return torch.stack(contributions).sum(dim=0)[1:].detach().float().cpu().numpy()


@contextmanager
def _eager_attention(config: PreTrainedConfig) -> Iterator[None]:
    """Switches to eager attention, the only implementation that returns its weights."""
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@takes_cell_options
def explain(
    annotator: Predictor,
    adata: ad.AnnData,
    labels: Labels | None = None,
    *,
    method: Method = "gradient",
    cells_per_label: int = 50,
    seed: int = 0,
    **cell_options: Any,
) -> pd.DataFrame:
    """
    Finds the genes that drive the cells' matches with their best labels.

    Args:
        annotator: An annotator that compares cells with texts.
        adata: Cells with counts, in memory or backed.
        labels: Candidates, the same as for `LangCellAnnotator.annotate`. By default cells that this checkpoint has
            annotated are explained by the labels that they have, and are read as they were read then.
        method: Same as for `Explainer`.
        cells_per_label: Number of cells that are explained for each label, drawn at random; all if there are fewer.
        seed: Seed of the draw.
        cell_options: `layer`, `use_raw`, `gene_column` and `counts` say how the cells are read.

    Returns:
        A row for each label and gene, in the order of the labels and with the largest contribution first: `label`,
        `gene` (symbol), `ensembl_id`, `contribution` (the mean over the label's explained cells, 0 in those without
        the gene), `cells_with_gene` and `cells` (number of explained cells). Genes that the label's description names
        are `marker` or `absent` in the column `named`, and have their mean `place` in the rankings of these cells (1
        for the first, 0 where a cell does not express them, missing if they were not measured) and their `usual_place`.

    Raises:
        InputError: Same as for `LangCellAnnotator.annotate`; or there is no such method, or `cells_per_label` is below
            1.
    """
    extractor = annotator.processor.feature_extractor
    if labels is None and _has_annotation(annotator, adata):
        descriptions = label_descriptions(adata.uns[RUN])
        explainer = Explainer(annotator, {label: one.texts for label, one in descriptions.items()}, method)
        _require_cells(cells_per_label)
        best = best_labels(adata).cat.codes.to_numpy()
        markers = {label: annotator.processor.find_genes(one) for label, one in descriptions.items()}
        given = {name: value for name, value in cell_options.items() if value not in (None, False, "auto")}
        cell_options = recorded_options(adata.uns[RUN]) | given
    else:
        run = AnnotationRun(annotator, adata, cell_options | {"empty_cells": "mark"}, labels)
        if not isinstance(run.scorer, DescriptionScorer | OpenSetScorer):
            raise InputError("Only labels that are scored by their descriptions can be explained.")
        explainer = Explainer(annotator, run.scorer.descriptions, method)
        _require_cells(cells_per_label)
        best, markers = np.concatenate([part.predictions.best for part in run.annotate_all()]), run.scorer.markers
    return _explain_labels(explainer, extractor, adata, best, markers, cells_per_label, seed, **cell_options)


def _has_annotation(annotator: Predictor, adata: ad.AnnData) -> bool:
    """Returns true if this checkpoint annotated the cells, and scored the labels by their descriptions alone."""
    run = adata.uns.get(RUN, {})
    own = "labels" in run and CELL_TYPE in adata.obs and "alpha" in run and "prototype_weight" not in run
    return own and all(str(run.get(name, "")) == value for name, value in annotator.origin().items())


def explain_annotated(
    annotator: Predictor,
    adata: ad.AnnData,
    annotated: ad.AnnData,
    *,
    cells_per_label: int = 10,
    **cell_options: Any,
) -> pd.DataFrame | None:
    """
    Explains the most frequent labels of an earlier annotation, by the gradient.

    Args:
        annotator: The annotator that annotated the cells.
        adata: The cells that were annotated, with their counts.
        annotated: Their annotation, as `LangCellAnnotator.annotate` or `read_annotation` returns it.
        cells_per_label, cell_options: Same as for `explain`.

    Returns:
        A table like that of `explain`; None where the labels were not scored by their descriptions alone.

    Raises:
        InputError: The cells cannot be read, or `cells_per_label` is below 1.
    """
    run = annotated.uns[RUN]
    if not isinstance(annotator.model, LangCellModel) or "prototype_weight" in run:
        logger.info("Genes are not explained: the labels were not scored by their descriptions alone.")
        return None
    descriptions = label_descriptions(run)
    _require_cells(cells_per_label)
    labels = best_labels(annotated)
    sizes = labels.value_counts(sort=False).sort_values(ascending=False, kind="stable")
    if (found := int((sizes > 0).sum())) > _MOST_LABELS:
        logger.info("Genes are explained for the %d most frequent of %d labels.", _MOST_LABELS, found)
    frequent = sizes.index[: min(max(found, 1), _MOST_LABELS)]
    descriptions = {label: one for label, one in descriptions.items() if label in frequent}
    best = labels.cat.set_categories(list(descriptions)).cat.codes.to_numpy()
    markers = {label: annotator.processor.find_genes(one) for label, one in descriptions.items()}
    explainer = Explainer(annotator, {label: one.texts for label, one in descriptions.items()})
    extractor = annotator.processor.feature_extractor
    return _explain_labels(explainer, extractor, adata, best, markers, cells_per_label, 0, **cell_options)


def _require_cells(cells_per_label: int) -> None:
    if cells_per_label < 1:
        raise InputError(f"cells_per_label={cells_per_label} is not a number of cells: give 1 or more.")


def _explain_labels(
    explainer: Explainer,
    extractor: LangCellFeatureExtractor,
    adata: ad.AnnData,
    best: np.ndarray,
    markers: Mapping[str, NamedGenes],
    cells_per_label: int,
    seed: int,
    **cell_options: Any,
) -> pd.DataFrame:
    """
    Explains some cells of each label; `best` is the `(cells,)` number of each cell's label, -1 for none, and `markers`
    are the genes that the labels' descriptions name.
    """
    rng = np.random.default_rng(seed)
    tables = []
    with progress_bar() as progress:
        labels = [(number, label) for number, label in enumerate(explainer.labels) if (best == number).any()]
        for number, label in progress.track(labels, description="Genes"):
            rows = np.sort(rng.permutation(np.flatnonzero(best == number))[:cells_per_label])
            named = markers.get(label, NamedGenes())
            ranked = rank_cells(adata, rows, extractor, places_of=(*named.present, *named.absent), **cell_options)
            tables.append(_explain_label(explainer, ranked, number, named, extractor).assign(label=label))
    counts, places = ("contribution", "cells_with_gene", "cells"), ("named", "place", "usual_place")
    columns = ["label", "gene", "ensembl_id", *counts, *places]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _explain_label(
    explainer: Explainer, ranked: RankedCells, label: int, named: NamedGenes, extractor: LangCellFeatureExtractor
) -> pd.DataFrame:
    genes = extractor.genes
    contributions, cells_with_gene = np.zeros(len(extractor)), np.zeros(len(extractor), dtype=int)
    for cell in range(len(ranked)):
        read = ranked[cell]
        contributions[read[1:]] += explainer(read, label)
        cells_with_gene[read[1:]] += 1
    role, place = np.full(len(extractor), "", dtype=object), np.full(len(extractor), np.nan)
    # The ranking that the model reads is cut and may not reach the named genes.
    present, absent = list(named.present), list(named.absent)
    role[present], role[absent] = "marker", "absent"
    place[present + absent] = ranked.places.mean(axis=0)
    cells_with_gene[present + absent] = (ranked.places > 0).sum(axis=0)
    ids = np.flatnonzero((cells_with_gene > 0) | (role != "")).tolist()
    table = pd.DataFrame(
        {
            "gene": [genes.symbol_of(number) for number in ids],
            "ensembl_id": [extractor.gene_vocabulary["ensembl_ids"][number - genes.first_gene_id] for number in ids],
            "contribution": contributions[ids] / len(ranked),
            "cells_with_gene": cells_with_gene[ids],
            "cells": len(ranked),
            "named": role[ids],
            "place": place[ids],
            "usual_place": np.where(role[ids] == "", np.nan, extractor.usual_places.means[ids]),
        }
    )
    return table.sort_values("contribution", ascending=False, kind="stable")


__all__ = ["Explainer", "Method", "explain", "explain_annotated"]
