# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Search: the cells that a text describes best, and the texts that describe a cell best."""

import logging
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from ..io.columns import ANSWER, CELL_TYPE, EMBEDDING, RUN, SEARCH
from ..io.h5ad import require_anndata
from ..model.errors import InputError
from ..model.prompts import require_text
from ..ontology import Labels, human_terms
from .predictor import Predictor
from .query import Query

logger = logging.getLogger(__name__)

_BLOCK = 2**26  # Similarities that are held at once.


class Neighbours:
    """
    Finds the nearest of many embeddings by cosine: exactly, or by an HNSW graph (Malkov & Yashunin, 2018), which is
    built once and finds most of the nearest without comparing with all embeddings. To build it takes as long as
    thousands of exact queries.

    Args:
        embeds: `(embeddings, width)` of length 1; rows of missing values are never found.
        exact: False to build the graph.

    Raises:
        InputError: The graph is asked for and usearch is not installed.
    """

    def __init__(self, embeds: np.ndarray, exact: bool = True):
        self.rows = np.flatnonzero(~np.isnan(embeds[:, 0]))
        self._embeds = np.ascontiguousarray(embeds[self.rows] if len(self.rows) < len(embeds) else embeds, np.float32)
        self._index: Any = None
        if not exact:
            logger.info("Building an approximate index of %d embeddings.", len(self.rows))
            self._index = _build_index(self._embeds)

    def __call__(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Finds the embeddings that are nearest to each query.

        Args:
            queries: `(queries, width)` of length 1.
            top_k: Number of embeddings to find; all of them if there are fewer.

        Returns:
            `(queries, top_k)` rows of the embeddings, the nearest first, and their cosines.
        """
        top_k = min(top_k, len(self.rows))
        if self._index is not None:
            found = self._index.search(queries.astype(np.float32), top_k)
            rows = self.rows[found.keys.astype(np.int64).reshape(len(queries), top_k)]
            return rows, 1 - found.distances.reshape(-1, top_k)
        parts = []
        blocks = min(len(queries), 1 + len(queries) * len(self.rows) // _BLOCK)
        for block in np.array_split(queries.astype(np.float32), blocks):
            similarities = torch.from_numpy(block) @ torch.from_numpy(self._embeds).T
            parts.append([part.numpy() for part in similarities.topk(top_k, dim=1)])
        cosines, places = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self.rows[places], cosines


def _build_index(embeds: np.ndarray) -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise InputError(
            'The graph of neighbours (exact=False) needs usearch: pip install "modeling-langcell[search]".'
        ) from error
    width = embeds.shape[1]
    # Texts lie apart from cells, whose neighbours lead past the nearest ones: the search has to look at many.
    index = Index(ndim=width, metric="ip", dtype="f32", connectivity=32, expansion_add=200, expansion_search=16_384)
    index.add(np.arange(len(embeds)), embeds)
    return index


def score_cells(
    annotator: Predictor, adata: ad.AnnData, text: str, *, marker_weight: float | None = None
) -> pd.DataFrame:
    """
    Scores every cell by how well a text describes it, and writes the scores into `obs["langcell_search"]`, to colour a
    map of the cells by: the probability that the text describes the cell (`fit`), or its similarity where the
    checkpoint does not know other types to compare with.

    Args:
        annotator, adata, text, marker_weight: Same as for `search`.

    Returns:
        A row for each cell, by its name, with the columns of `search` except `row` and `label`. Cells without an
        embedding have missing values.

    Raises:
        InputError: Same as for `search`.
    """
    embeds, query = _embeds_of(annotator, adata), Query(annotator, text, marker_weight)
    found = query.of_embeds(embeds) if query.named is None else query.of_cells(embeds, adata)
    found = found.set_axis(adata.obs_names).rename_axis("cell")
    adata.obs[SEARCH] = (found["fit"] if "fit" in found else found["similarity"]).astype(np.float32)
    return found


def search(
    annotator: Predictor,
    adata: ad.AnnData,
    text: str,
    top_k: int = 20,
    *,
    exact: bool = True,
    marker_weight: float | None = None,
) -> pd.DataFrame:
    """
    Finds the cells that a text describes best. If the text names genes, or a type of the catalogue, the places of the
    genes in the rankings of the cells count too: the cells' counts are read again, in the same way as when they were
    embedded. If the genes are named by the text itself, cells that express all of them come first, then those that
    express all but one, and so on.

    Args:
        annotator: The annotator that embedded the cells.
        adata: Cells with `obsm["X_langcell"]`, as `annotate` and `embed` write it.
        text: Free text, or a name or id of the Cell Ontology, which is searched for by its description.
        top_k: Number of cells to find.
        exact: Same as for `Neighbours`, for texts without genes.
        marker_weight: Weight of the genes, same as for `DescriptionScorer`.

    Returns:
        A row for each cell, the best first: its name as the index, its position in `adata` (`row`), its answer or label
        if it was annotated (`label`), its cosine with the text (`similarity`), the probability that the text describes
        it (`fit`: the lead of the text over the other types that the checkpoint knows, calibrated; more probably than
        not from 0.5 on) if the checkpoint can tell and, if genes count, their evidence (`evidence`) and the share of
        the measured ones that the cell expresses, or does not express if they should be absent (`agreeing`).

    Raises:
        InputError: The cells were not embedded, or were embedded by a different checkpoint; the text is empty; the
            ontology has no such `CL:` id; or genes count and the cells cannot be read.
    """
    _require_positive(top_k)
    require_text(text, "The text to search for")
    embeds, query = _embeds_of(annotator, adata), Query(annotator, text, marker_weight)
    if query.named is None:
        (rows,), _ = Neighbours(embeds, exact)(query.embed[None], top_k)
        found = query.of_embeds(embeds[rows])
    else:
        scored = query.of_cells(embeds, adata)
        scores = (
            scored["similarity"] / annotator.model.config.temperature + query.weight * scored["evidence"]
        ).to_numpy()
        # The genes that the text itself names come before all else. Missing values come last.
        order = np.lexsort((-scores, np.zeros(len(scores)) if query.is_term else -scored["agreeing"].to_numpy()))
        rows = order[~np.isnan(scores[order])][:top_k]
        found = scored.iloc[rows].reset_index(drop=True)
    found.insert(0, "row", rows)
    if (column := next((one for one in (ANSWER, CELL_TYPE) if one in adata.obs), None)) is not None:
        found.insert(1, "label", adata.obs[column].astype("string").iloc[rows].fillna("").to_numpy(dtype=object))
    return found.set_axis(adata.obs_names[rows]).rename_axis("cell")


def nearest_texts(
    annotator: Predictor,
    adata: ad.AnnData,
    labels: Labels | None = None,
    top_k: int = 5,
) -> pd.DataFrame:
    """
    Finds the texts that describe each cell best.

    Args:
        annotator, adata: Same as for `search`.
        labels: Labels or descriptions, the same as for `LangCellAnnotator.annotate`; by default all terms of the Cell
            Ontology.
        top_k: Number of texts to find for each cell.

    Returns:
        A row for each cell and rank (the index), the most similar first: `label` and `similarity`. Cells without an
        embedding have no rows.

    Raises:
        InputError: Same as for `search`, or a label is unknown.
    """
    _require_positive(top_k)
    embeds = _embeds_of(annotator, adata)
    texts = annotator.texts_of([term.name for term in human_terms()] if labels is None else labels)
    cells = np.flatnonzero(~np.isnan(embeds[:, 0]))
    places, cosines = Neighbours(annotator.embed_texts(texts.values()))(embeds[cells], top_k)
    index = pd.MultiIndex.from_product([adata.obs_names[cells], range(1, places.shape[1] + 1)], names=["cell", "rank"])
    found = np.array(list(texts), dtype=object)[places.ravel()]
    return pd.DataFrame({"label": found, "similarity": cosines.ravel()}, index=index)


def _embeds_of(annotator: Predictor, adata: ad.AnnData) -> np.ndarray:
    require_anndata(adata)
    if EMBEDDING not in adata.obsm or not isinstance(adata.uns.get(RUN), Mapping):
        raise InputError(f"The cells have no obsm[{EMBEDDING!r}]: embed or annotate them first.")
    run = adata.uns[RUN]
    origin_of_cells, origin_of_model = _origin_name(run), _origin_name(annotator.origin())
    if origin_of_cells != origin_of_model:
        raise InputError(f"The cells were embedded by {origin_of_cells}, not by {origin_of_model}: embed them again.")
    embeds = adata.obsm[EMBEDDING]
    valid = isinstance(embeds, np.ndarray) and embeds.dtype.kind == "f" and embeds.shape[1:] == (annotator.width,)
    if valid:
        known = embeds[~np.isnan(embeds[:, 0])]
        valid = len(known) > 0 and bool(np.isfinite(known).all())
    if not valid:
        raise InputError(
            f"obsm[{EMBEDDING!r}] does not hold {annotator.width} numbers for each cell: embed the cells again."
        )
    return embeds


def _origin_name(origin: Mapping[str, Any]) -> str:
    names = [str(origin.get(name, "")) for name in ("checkpoint", "adapter")]
    return " with ".join(filter(None, names)) or "a model in memory"


def _require_positive(top_k: int) -> None:
    if top_k < 1:
        raise InputError(f"top_k={top_k} is not a number of results: give 1 or more.")


__all__ = ["Neighbours", "nearest_texts", "score_cells", "search"]
