# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells by a text, and texts by a cell: the nearest in the space that they share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from ..io.columns import EMBEDDING, RUN
from ..model.errors import InputError
from ..ontology import all_terms, id_of
from .annotator import LangCellAnnotator

#: Up to as many embeddings all are compared; of more, an index knows where to look.
EXACT = 1_000_000

_BLOCK = 2**26  # Similarities that are held at once.


class Neighbours:
    """
    The nearest of many embeddings by cosine. Up to a million the answer is exact. Above, an HNSW graph (Malkov &
    Yashunin, 2018) is built once, and finds nearly all of them without comparing with each.

    Args:
        embeds: `(embeddings, width)` of length 1; rows of missing values are nobody's neighbours.
        exact: Whether all are compared; by default up to a million.

    Raises:
        InputError: An index is needed and usearch is not installed.
    """

    def __init__(self, embeds: np.ndarray, exact: bool | None = None):
        self.rows = np.flatnonzero(~np.isnan(embeds[:, 0]))
        self._embeds = np.ascontiguousarray(embeds[self.rows] if len(self.rows) < len(embeds) else embeds, np.float32)
        self._index: Any = None
        if not (len(self.rows) <= EXACT if exact is None else exact):
            self._index = _build_index(self._embeds)

    def __call__(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            queries: `(queries, width)` of length 1.
            n: How many to find; all, if there are fewer.

        Returns:
            `(queries, n)` places among the embeddings, the nearest first, and their cosines.
        """
        n = min(n, len(self.rows))
        if self._index is not None:
            found = self._index.search(queries.astype(np.float32), n)
            return self.rows[found.keys.astype(np.int64).reshape(len(queries), n)], 1 - found.distances.reshape(-1, n)
        parts = []
        blocks = min(len(queries), 1 + len(queries) * len(self.rows) // _BLOCK)
        for block in np.array_split(queries.astype(np.float32), blocks):
            similar = torch.from_numpy(block) @ torch.from_numpy(self._embeds).T
            parts.append([part.numpy() for part in similar.topk(n, dim=1)])
        cosines, places = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self.rows[places], cosines


def _build_index(embeds: np.ndarray) -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise InputError('So many embeddings need usearch: pip install "modeling-langcell[search]".') from error
    width = embeds.shape[1]
    index = Index(ndim=width, metric="ip", dtype="f32", connectivity=32, expansion_add=200, expansion_search=256)
    index.add(np.arange(len(embeds)), embeds)
    return index


def search(
    annotator: LangCellAnnotator, adata: ad.AnnData, text: str, n: int = 20, *, exact: bool | None = None
) -> pd.DataFrame:
    """
    The cells that a text describes best.

    Args:
        annotator: What embedded the cells.
        adata: Cells with `obsm["X_langcell"]`, as `annotate` and `embed` write it.
        text: In words of your own, or a name or id of the Cell Ontology, whose description is then searched for.
        n: How many cells.
        exact: As of `Neighbours`.

    Returns:
        A row a cell, the most similar first: its name as the index, its place in `adata` (`row`) and its cosine with
        the text (`similarity`).

    Raises:
        InputError: Cells that were not embedded, or by another checkpoint; no text; or a `CL:` id that is none.
    """
    _require_number(n)
    if not text.strip():
        raise InputError("Say what to search for: the text is empty.")
    embeds = _embeds_of(annotator, adata)
    known = text.startswith("CL:") or id_of(text) is not None
    texts = annotator.texts_of([text])[text] if known else text
    (rows,), (cosines,) = Neighbours(embeds, exact)(annotator.embed_texts([texts]), n)
    found = pd.DataFrame({"row": rows, "similarity": cosines}, index=adata.obs_names[rows])
    return found.rename_axis("cell")


def nearest_texts(
    annotator: LangCellAnnotator,
    adata: ad.AnnData,
    labels: Iterable[str] | Mapping[str, str | Sequence[str]] | None = None,
    n: int = 5,
) -> pd.DataFrame:
    """
    The texts that describe each cell best.

    Args:
        annotator, adata: As for `search`.
        labels: Labels or descriptions, as for `LangCellAnnotator.annotate`; by default all of the Cell Ontology.
        n: How many of each cell.

    Returns:
        A row a cell and rank (the index), the most similar first: `label` and `similarity`. Cells without an embedding
        have none.

    Raises:
        InputError: As for `search`, or labels that nobody knows.
    """
    _require_number(n)
    embeds = _embeds_of(annotator, adata)
    described = annotator.texts_of([term.name for term in all_terms()] if labels is None else labels)
    cells = np.flatnonzero(~np.isnan(embeds[:, 0]))
    places, cosines = Neighbours(annotator.embed_texts(described.values()))(embeds[cells], n)
    index = pd.MultiIndex.from_product([adata.obs_names[cells], range(1, places.shape[1] + 1)], names=["cell", "rank"])
    labels_of = np.array(list(described), dtype=object)[places.ravel()]
    return pd.DataFrame({"label": labels_of, "similarity": cosines.ravel()}, index=index)


def _embeds_of(annotator: LangCellAnnotator, adata: ad.AnnData) -> np.ndarray:
    if EMBEDDING not in adata.obsm or RUN not in adata.uns:
        raise InputError(f"The cells have no obsm[{EMBEDDING!r}]: embed or annotate them first.")
    run = adata.uns[RUN]
    by, own = (tuple(str(of.get(name, "")) for name in ("checkpoint", "adapter")) for of in (run, annotator.origin()))
    if by != own:
        raise InputError(
            f"The cells were embedded by {' with '.join(filter(None, by)) or 'a model in memory'}, not by "
            f"{' with '.join(filter(None, own)) or 'a model in memory'}: embed them again."
        )
    embeds = adata.obsm[EMBEDDING]
    right = isinstance(embeds, np.ndarray) and embeds.dtype.kind == "f" and embeds.shape[1:] == (annotator.width,)
    if right:
        known = embeds[~np.isnan(embeds[:, 0])]
        right = len(known) > 0 and bool(np.isfinite(known).all())
    if not right:
        raise InputError(
            f"obsm[{EMBEDDING!r}] holds no embeddings of {annotator.width} numbers a cell: embed the cells again."
        )
    return embeds


def _require_number(n: int) -> None:
    if n < 1:
        raise InputError(f"n={n} is no number of results.")


__all__ = ["EXACT", "Neighbours", "nearest_texts", "search"]
