# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Annotates, embeds, searches and explains the cells of an AnnData."""

from collections.abc import Sequence
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from ..checkpoint.builtin import MINI
from ..checkpoint.loading import load_checkpoint
from ..io.colours import colours
from ..io.columns import CELL_TYPE, COLOURS, EMBEDDING, PROBABILITIES, RUN, probability_columns
from ..io.h5ad import require_anndata
from ..io.progress import progress_bar
from ..model.errors import InputError
from ..model.feature_extraction_langcell import takes_cell_options
from ..model.zero_shot import Shortlist
from ..ontology import Labels
from .annotation_run import AnnotationRun
from .device import find_device, warn_if_slow
from .explain import Method, explain
from .predictions import Predictions, replace_annotation
from .predictor import Predictor
from .search import score_cells, search


class LangCellAnnotator(Predictor):
    """
    Annotates AnnData with a LangCell model.

    Args:
        model: A `LangCellModel`, or a `LangCellForSequenceClassification` for the labels it was trained on.
        processor: The model's `LangCellProcessor`.
        adaptation: The adaptation of the model, if there is one. Its labels are then the default candidates.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; by default CUDA, else Apple's MPS, else the CPU.
        batch_tokens: Number of gene positions that pass through the cell tower at once, and of word positions through
            the text tower; chosen from free memory and the device by default. It is halved when memory runs out, and
            the work continues. It does not change results.

    Example:

    ```python
    >>> from modeling_langcell import LangCellAnnotator
    >>> annotator = LangCellAnnotator.from_pretrained("langcell-mini")  # doctest: +SKIP
    >>> annotator.annotate(adata, ["B cell", "T cell", "monocyte"])  # doctest: +SKIP

    ```"""

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        batch_tokens: int | None = None,
    ) -> "LangCellAnnotator":
        """
        Loads a model and its processor from a folder or from the Hub.

        Args:
            checkpoint: Folder or Hub id. It may be left out with an adapter, which names its base checkpoint.
            adapter: Folder or Hub id of an adapter that `langcell adapt` wrote.
            device: Same as for the class.
            dtype: Precision to compute in. Published results hold for `float32`.
            revision: Branch, tag or commit of the checkpoint's Hub repository.
            batch_tokens: Same as for the class.

        Raises:
            InputError: The checkpoint does not load as a LangCell model with its processor, the adapter does not fit
                it, or this machine has no such device.
        """
        if dtype not in ("float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"dtype {dtype!r} is not one of float32, bfloat16 and float16.")
        found_device = find_device(device)
        warn_if_slow(found_device, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        model, processor, adaptation = load_checkpoint(checkpoint, adapter, dtype=dtype, revision=revision)
        return cls(model, processor, adaptation=adaptation, device=found_device, batch_tokens=batch_tokens)

    def __repr__(self) -> str:
        return f"LangCellAnnotator({', '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """Returns the facts as a table, for notebooks."""
        rows = [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self._facts().items()]
        return f"<table><caption>LangCellAnnotator</caption>{''.join(rows)}</table>"

    def _facts(self) -> dict[str, str]:
        origin = {name: value for name, value in self.origin().items() if value}
        own = self.scorer().descriptions if self.has_labels else None
        labels = "any, by description" if own is None else f"{len(own)} of its own"
        weights = f"{str(self.model.dtype).removeprefix('torch.')} on {self.device}"
        return {"checkpoint": "in memory", **origin, "labels": labels, "weights": weights}

    @takes_cell_options
    def annotate(
        self,
        adata: ad.AnnData,
        labels: Labels | None = None,
        *,
        tissue: str | Sequence[str] | None = None,
        alpha: float | None = None,
        shortlist: Shortlist = "auto",
        check: int = 0,
        error_rate: float | None = None,
        cluster_key: str | None = None,
        cluster: bool = False,
        smooth: bool = False,
        marker_weight: float | None = None,
        with_markers: bool = True,
        accept_text: bool = False,
        **cell_options: Any,
    ) -> ad.AnnData:
        """
        Finds the label that fits each cell best: among described candidates without training labels (LangCell,
        section 3.3), or among the labels of an adapted checkpoint.

        Args:
            adata: Cells with counts, in memory or backed. A view becomes an AnnData of its own, as scanpy makes it.
            labels: Candidates: names that people use or ids of the Cell Ontology; or a mapping from labels to
                descriptions: a text, several texts to compare with their mean, or `{"description": ..., "markers":
                [...], "absent": [...]}`. By default an adapted checkpoint's own, or else the cell types that
                the catalogue has for the tissue.
            tissue: Without labels: the tissue, or several, by Uberon name or id. By default it is judged by the markers
                of the cells, as `annotation.tissues` describes, and blood is added.
            alpha: Weight of the similarity against the matching head, from 0 to 1; by default the checkpoint's own. 1
                leaves the matching out, which is much faster.
            shortlist: Number of candidates that the matching reads for each cell, those most similar to it; `None` for
                all. By default all are read if there are at most 32, and otherwise 32.
            check: Score this many cells against all candidates as well, and record how often the shortlist agrees.
            error_rate: Accepted share of wrong answers, for a calibrated checkpoint; a lower one gives broader types,
                or `unknown`. 0.1 by default.
            cluster_key: Column of `obs` with clusters, each of which gets one label by the evidence of all its cells.
            cluster: Make such clusters: small ones, so that few hold two types (`annotation.neighbours`).
            smooth: Average each cell's scores with those of its neighbours in gene expression. Cells then agree with
                the cells around them; rare types among many others may be lost. Fewer than 500 cells are not smoothed.
            marker_weight: Weight of the genes that descriptions name, beside similarity and matching; by default the
                checkpoint's or the adapter's own. 0 leaves them out.
            with_markers: Give types of the catalogue their markers where the labels have none of their own. Without
                markers no tissue is judged: all types of the catalogue are candidates.
            accept_text: Read labels that the ontology does not know as texts.
            cell_options: `layer`, `use_raw`, `gene_column`, `counts` and `empty_cells` say how the cells are read, the
                same as for `LangCellFeatureExtractor`. Cells marked by `empty_cells="mark"` get no label and missing
                values.

        Returns:
            The AnnData, with `obs["langcell_cell_type"]` (categorical; its categories are the labels that at least one
            cell has), `obs["langcell_cell_type_id"]` (the label's id in the Cell Ontology, empty if it has none),
            `uns["langcell_cell_type_colors"]` (a colour for each category), `obs["langcell_score"]` (the best label's
            score), `obs["langcell_second"]` (the next label, where there are several), `obs["langcell_margin"]` (the
            difference between the two scores), `obs["langcell_novelty"]` (1 minus the cosine with the most similar
            description), `obsm["X_langcell"]` (float32 embeddings), `obsm["langcell_probabilities"]` (a column for each
            label, with `|` for `/` in its name) and `uns["langcell"]` (everything needed to repeat the run, and
            `short_names` of the labels for plots).

            If the checkpoint is calibrated for this alpha and its prompt templates, the scores are probabilities, and
            there are `obs["langcell_answer"]` (the most specific term of the Cell Ontology that is probable enough, or
            `unknown`), `obs["langcell_answer_id"]` and `obs["langcell_answer_probability"]`. With a shortlist there is
            `obs["langcell_proven"]`, true where no candidate outside the shortlist can be the best. With clusters there
            are, for each cell, `obs["langcell_cluster_label"]` (the label of its cluster),
            `obs["langcell_cluster_second"]` (the label that fits second best), `obs["langcell_cluster_answer"]` and
            `obs["langcell_cluster_answer_id"]` (if there are answers), `obs["langcell_cluster_agreement"]` (the share
            of its cells whose own label is the answer, or else the label, or a kind of it),
            `obs["langcell_cluster_mixed"]` (true if the cluster looks like two types) and, if they were made here, the
            clusters in `obs["langcell_cluster"]`. An error writes nothing.

        Raises:
            InputError: An empty list of labels, unknown labels, no such tissue, an alpha outside 0 to 1, an error rate
                that the checkpoint is not calibrated for, no such clusters, a view of a file, or cells that cannot be
                read.
        """
        _require_writable(adata)
        run = AnnotationRun(
            self,
            adata,
            cell_options,
            labels,
            alpha=alpha,
            shortlist=shortlist,
            check=check,
            error_rate=error_rate,
            cluster_key=cluster_key,
            cluster=cluster,
            smooth=smooth,
            tissue=tissue,
            marker_weight=marker_weight,
            with_markers=with_markers,
            accept_text=accept_text,
        )
        parts = run.annotate_all()
        predictions = Predictions.concatenate(part.predictions for part in parts)
        scores = np.concatenate([part.scores for part in parts])
        if run.smooths:
            smoothed = np.empty(scores.T.shape, dtype=np.float32)
            run.smooth(lambda labels: scores.T[labels], smoothed)
            scores = np.ascontiguousarray(smoothed.T)
            predictions = run.revise(predictions, run.by_chunk(scores))
        _make_actual(adata)
        run.write_obs(adata.obs, predictions, run.by_chunk(scores))
        adata.obsm[EMBEDDING] = np.concatenate([part.embeds for part in parts])
        adata.obsm[PROBABILITIES] = pd.DataFrame(
            scores,
            index=adata.obs_names,
            columns=probability_columns(run.rule.labels),
        )
        adata.uns[RUN] = run.record(predictions)
        adata.uns[COLOURS] = np.array(colours(len(adata.obs[CELL_TYPE].cat.categories)), dtype=str)
        return adata

    @takes_cell_options
    def embed(self, adata: ad.AnnData, **cell_options: Any) -> ad.AnnData:
        """
        Embeds the cells in the space that they share with texts.

        Args: `adata` and `cell_options`, same as for `annotate`.

        Returns:
            The AnnData, with `obsm["X_langcell"]`, `(cells, projection_dim)` float32, L2-normalised, and
            `uns["langcell"]`. An earlier annotation, whose record this replaces, is deleted.

        Raises:
            InputError: A view of a file, or cells that cannot be read.
        """
        _require_writable(adata)
        embeds = np.empty((adata.n_obs, self.width), dtype=np.float32)
        chunks, matched_counts = self.chunks(adata, **cell_options), []
        with progress_bar() as progress:
            task = progress.add_task("Cells", total=adata.n_obs)
            for number, ranked in enumerate(chunks):
                rows = chunks.rows(number)
                embeds[rows.start : rows.stop] = self.embed_ranked(ranked, partial(progress.advance, task))
                matched_counts.append(ranked.matched_counts)
        _make_actual(adata)
        replace_annotation(adata.obs)
        adata.obsm.pop(PROBABILITIES, None)
        adata.uns.pop(COLOURS, None)
        adata.obsm[EMBEDDING] = embeds
        adata.uns[RUN] = self.run_record(chunks, np.concatenate(matched_counts))
        return adata

    def search(
        self,
        adata: ad.AnnData,
        text: str,
        top_k: int = 20,
        *,
        exact: bool = True,
        marker_weight: float | None = None,
    ) -> pd.DataFrame:
        """
        Finds the cells that a text describes best among cells that this checkpoint embedded. Arguments, result and
        errors are the same as for `modeling_langcell.search`.
        """
        return search(self, adata, text, top_k, exact=exact, marker_weight=marker_weight)

    def score_cells(self, adata: ad.AnnData, text: str, *, marker_weight: float | None = None) -> pd.DataFrame:
        """
        Scores every cell by how well a text describes it, and writes the scores into `obs["langcell_search"]`.
        Arguments, result and errors are the same as for `modeling_langcell.annotation.search.score_cells`.
        """
        return score_cells(self, adata, text, marker_weight=marker_weight)

    @takes_cell_options
    def explain(
        self,
        adata: ad.AnnData,
        labels: Labels | None = None,
        *,
        method: Method = "gradient",
        cells_per_label: int = 50,
        seed: int = 0,
        **cell_options: Any,
    ) -> pd.DataFrame:
        """
        Finds the genes that drive the cells' matches with their labels. Arguments, result and errors are the same as
        for `modeling_langcell.explain`.
        """
        return explain(self, adata, labels, method=method, cells_per_label=cells_per_label, seed=seed, **cell_options)


def annotate(
    adata: ad.AnnData,
    labels: Labels | None = None,
    *,
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    device: str | None = None,
    **options: Any,
) -> ad.AnnData:
    """
    Annotates cells in one call, with langcell-mini by default. The checkpoint stays loaded for the next call.

    Args:
        adata: Cells with counts.
        labels: Candidates, the same as for `LangCellAnnotator.annotate`; without them those of the cells' tissue.
        model: Folder or Hub id of a checkpoint; by default an adapter's base, or else langcell-mini.
        adapter, device: Same as for `LangCellAnnotator.from_pretrained`.
        options: Further arguments of `LangCellAnnotator.annotate`, such as `cluster`, `tissue` and `error_rate`.

    Returns:
        The same AnnData with the annotation that `LangCellAnnotator.annotate` describes.

    Raises:
        InputError: For the reasons of `LangCellAnnotator.from_pretrained` and `LangCellAnnotator.annotate`.

    Example:

    ```python
    >>> import modeling_langcell as langcell
    >>> adata = langcell.load_example()  # doctest: +SKIP
    >>> langcell.annotate(adata, ["B cell", "T cell", "monocyte"], use_raw=True, counts="log1p")  # doctest: +SKIP

    ```"""
    checkpoint = MINI if model is None and adapter is None else model
    return _load(checkpoint, adapter, device).annotate(adata, labels, **options)


@lru_cache(maxsize=1)
def _load(checkpoint: str | Path | None, adapter: str | Path | None, device: str | None) -> LangCellAnnotator:
    return LangCellAnnotator.from_pretrained(checkpoint, adapter=adapter, device=device)


def _require_writable(adata: ad.AnnData) -> None:
    require_anndata(adata)
    if adata.isbacked and adata.is_view:
        raise InputError("These cells are a view of a file, so nothing can be added to them: give cells.to_memory().")


def _make_actual(adata: ad.AnnData) -> None:
    """Makes a view, which keeps nothing that is added, an AnnData of its own, in place."""
    if adata.is_view:
        adata.obs = adata.obs.copy()


__all__ = ["LangCellAnnotator", "annotate"]
