# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Why a cell matches a description: what each of its genes has to do with it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import anndata as ad
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedConfig

from ..io.columns import RUN
from ..io.labels import rank_cells
from ..io.progress import progress_bar
from ..model.errors import InputError
from ..model.feature_extraction_langcell import LangCellFeatureExtractor, RankedCells
from ..model.modeling_langcell import LangCellModel
from ..model.prompts import as_texts
from ..model.zero_shot import DescriptionScorer
from .annotator import LangCellAnnotator, texts_read
from .predictions import DecisionRule, best_of

#: `gradient` explains the similarity, `attention` the matching.
Method = Literal["gradient", "attention"]

_STEPS = 8  # Of the path of integrated gradients.
_LABELS = 12  # Of an annotation, as many as a page has room for.


class Explainer:
    """
    What the genes of a cell contribute to its match with a text.

    `gradient`: integrated gradients (Sundararajan et al., 2017) of the cosine of cell and text, from a cell of as many
    average genes to the cell itself. They add up to about the difference of the cosines.

    `attention`: of the matching's cross-attention, each weight times the gradient of the log-odds to match in it,
    summed over tokens, heads and layers: where the matching looks, and which way that counts.

    A contribution below 0 speaks against the match.

    Args:
        annotator: Model and processor.
        descriptions: A text or several by label: `gradient` explains the similarity to all, `attention` the matching,
            which reads the first.
        method: As above.

    Raises:
        InputError: No such method, or a checkpoint that reads no texts.
    """

    def __init__(
        self, annotator: LangCellAnnotator, descriptions: Mapping[str, str | Sequence[str]], method: Method = "gradient"
    ):
        if method not in get_args(Method):
            raise InputError(f"method={method!r} is not one of {', '.join(get_args(Method))}.")
        self.text_embeds = torch.from_numpy(annotator.embed_texts(descriptions.values())).to(annotator.device)
        assert isinstance(annotator.model, LangCellModel)  # Others have no embeddings of texts.
        self.model, self.device, self.method = annotator.model, annotator.device, method
        self.labels = list(descriptions)
        read = [as_texts(label, texts)[0] for label, texts in descriptions.items()]
        self._texts = annotator.processor(text=read, text_kwargs={"padding": False})["input_ids"]
        genes = self.model.cell_model.embeddings.word_embeddings.weight.detach()[2:-1]
        self._average = genes.mean(dim=0)

    def __call__(self, genes: np.ndarray, label: int) -> np.ndarray:
        """
        Args:
            genes: `(genes,)` ids of a cell, `<cls>` first.
            label: Number of the description.

        Returns:
            `(genes - 1,)` contributions, of all but `<cls>`.
        """
        ids = torch.from_numpy(genes.astype(np.int64)).to(self.device)[None]
        return (self._integrate if self.method == "gradient" else self._attend)(ids, label)

    def match(self, genes: np.ndarray, label: int) -> float:
        """What is explained: the cosine, or the log-odds of the matching."""
        ids = torch.from_numpy(genes.astype(np.int64)).to(self.device)[None]
        with torch.no_grad():
            encoded = self.model.cell_model(ids, pooled_only=self.method == "gradient")
            if self.method == "gradient":
                return float(self.model.project_cells(encoded.pooler_output)[0].float() @ self.text_embeds[label])
            text = torch.tensor([self._texts[label]], device=self.device)
            no, yes = self.model.get_matching_logits(encoded.last_hidden_state, None, text, None)[0, 0].float()
            return float(yes - no)

    def _integrate(self, ids: torch.Tensor, label: int) -> np.ndarray:
        embeds = self.model.cell_model.embeddings.word_embeddings(ids).detach()
        step = embeds - self._average
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
        text = torch.tensor([self._texts[label]], device=self.device)
        with _telling_weights(self.model.text_model.config):
            read = self.model.text_model(
                text, encoder_hidden_states=states.requires_grad_(True), texts_per_cell=1, output_attentions=True
            )
        no, yes = self.model.matching_head(read.pooler_output)[0].float()
        gradients = torch.autograd.grad(yes - no, read.cross_attentions)
        # (heads, tokens, genes) of each layer.
        parts = [
            (weights * gradient)[0].sum(dim=(0, 1))
            for weights, gradient in zip(read.cross_attentions, gradients, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)[1:].detach().float().cpu().numpy()


@contextmanager
def _telling_weights(config: PreTrainedConfig) -> Iterator[None]:
    """With the one implementation of attention that returns its weights."""
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def explain(
    annotator: LangCellAnnotator,
    adata: ad.AnnData,
    labels: Iterable[str] | Mapping[str, str | Sequence[str]] | None = None,
    *,
    method: Method = "gradient",
    cells_per_label: int = 50,
    seed: int = 0,
    **cell_options: Any,
) -> pd.DataFrame:
    """
    The genes that drive the cells' matches with the label found for them, label by label.

    Args:
        annotator: A checkpoint that compares cells with texts.
        adata: Cells with counts, in memory or backed.
        labels: Candidates, as for `LangCellAnnotator.annotate`.
        method: As of `Explainer`.
        cells_per_label: Of each label so many of its cells are explained, drawn at random, or all if there are fewer.
        seed: Of the drawing.
        cell_options: `layer`, `use_raw`, `gene_column`, `counts`: how the cells are read.

    Returns:
        A row a label and gene, in the order of the labels and of the contributions, the largest first: `label`, `gene`
        (its symbol), `ensembl_id`, `contribution` (the mean over the label's explained cells, 0 in those without the
        gene), `cells_with_gene` and `cells` (explained ones).

    Raises:
        InputError: As `LangCellAnnotator.annotate`; no such method; fewer cells than one a label.
    """
    scorer = annotator.scorer(labels)
    if not isinstance(scorer, DescriptionScorer):
        raise InputError("Only labels that are judged by their descriptions can be explained.")
    explainer = Explainer(annotator, scorer.descriptions, method)
    _require_cells(cells_per_label)
    rule = DecisionRule(scorer)
    best = np.concatenate(
        [
            annotator.annotate_cells(ranked, scorer, rule).answers.best
            for ranked in annotator.chunks(adata, **cell_options, empty_cells="mark")
        ]
    )
    extractor = annotator.processor.feature_extractor
    return _explain_found(explainer, extractor, adata, best, cells_per_label, seed, **cell_options)


def explain_annotated(
    annotator: LangCellAnnotator,
    adata: ad.AnnData,
    annotated: ad.AnnData,
    *,
    cells_per_label: int = 10,
    **cell_options: Any,
) -> pd.DataFrame | None:
    """
    As `explain` (by the gradient), of cells whose labels were found before, and of the most frequent labels alone.

    Args:
        adata: The cells that were annotated, with their counts.
        annotated: What was found of them, as `LangCellAnnotator.annotate` or `read_annotation` gives it.
        cells_per_label, cell_options: As of `explain`.

    Returns:
        As of `explain`; none where labels are not judged by their descriptions alone.

    Raises:
        InputError: Cells that cannot be read; fewer cells than one a label.
    """
    run = annotated.uns[RUN]
    if not isinstance(annotator.model, LangCellModel) or "prototype_weight" in run:
        return None
    descriptions = texts_read(run)
    _require_cells(cells_per_label)
    best = best_of(annotated).cat.codes.to_numpy()
    sizes = np.bincount(best[best >= 0], minlength=len(descriptions))
    frequent = np.argsort(-sizes, kind="stable")[:_LABELS]
    best = np.where(np.isin(best, frequent), best, -1)
    explainer, extractor = Explainer(annotator, descriptions), annotator.processor.feature_extractor
    return _explain_found(explainer, extractor, adata, best, cells_per_label, 0, **cell_options)


def _require_cells(cells_per_label: int) -> None:
    if cells_per_label < 1:
        raise InputError(f"cells_per_label={cells_per_label} is no number of cells.")


def _explain_found(
    explainer: Explainer,
    extractor: LangCellFeatureExtractor,
    adata: ad.AnnData,
    best: np.ndarray,
    cells_per_label: int,
    seed: int,
    **cell_options: Any,
) -> pd.DataFrame:
    """As `explain`; `best` is the `(cells,)` number of each cell's label, -1 for none."""
    rng = np.random.default_rng(seed)
    parts = []
    with progress_bar() as progress:
        labels = [(number, label) for number, label in enumerate(explainer.labels) if (best == number).any()]
        for number, label in progress.track(labels, description="Genes"):
            rows = np.sort(rng.permutation(np.flatnonzero(best == number))[:cells_per_label])
            ranked = rank_cells(adata, rows, extractor, **cell_options)
            parts.append(_of_label(explainer, ranked, number, extractor.gene_vocabulary).assign(label=label))
    columns = ["label", "gene", "ensembl_id", "contribution", "cells_with_gene", "cells"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _of_label(explainer: Explainer, ranked: RankedCells, label: int, vocabulary: Mapping[str, list]) -> pd.DataFrame:
    size = len(vocabulary["ensembl_ids"])
    summed, having = np.zeros(size), np.zeros(size, dtype=int)
    for cell in range(len(ranked)):
        genes = ranked[cell]
        places = genes[1:].astype(int) - 2  # <pad> and <mask> come first.
        summed[places] += explainer(genes, label)
        having[places] += 1
    there = np.flatnonzero(having)
    found = pd.DataFrame(
        {
            "gene": [vocabulary["names"][place].split("|")[0] for place in there],
            "ensembl_id": [vocabulary["ensembl_ids"][place] for place in there],
            "contribution": summed[there] / len(ranked),
            "cells_with_gene": having[there],
            "cells": len(ranked),
        }
    )
    return found.sort_values("contribution", ascending=False, kind="stable")


def draw_genes(explained: pd.DataFrame, genes: int = 10) -> Figure:
    """The genes that contribute most to each label's matches; `explained` as of `explain`."""
    labels = explained["label"].unique()
    columns = min(3, len(labels))
    rows = -(-len(labels) // max(1, columns))
    figure = Figure(figsize=(4.2 * columns, (0.24 * genes + 0.9) * rows), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, label in zip(panels, labels, strict=False):
        most = explained[explained["label"] == label].head(genes)[::-1]
        axes.barh(most["gene"], most["contribution"], color="C0")
        axes.set_title(f"{label if len(label) < 36 else label[:35] + '…'} ({most['cells'].iloc[0]} cells)", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("mean contribution to the match", fontsize=9)
    return figure


__all__ = ["Explainer", "Method", "draw_genes", "explain", "explain_annotated"]
