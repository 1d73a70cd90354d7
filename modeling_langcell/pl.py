# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Figures of an annotation in the style of scanpy's `pl`, for a notebook: do the cells express the markers of their
labels, what are samples made of, and how far do the labels agree with known ones.

```python
>>> import modeling_langcell as langcell
>>> adata = langcell.annotate(langcell.load_example(), ["B cell", "T cell", "monocyte"])  # doctest: +SKIP
>>> langcell.pl.dotplot(adata)  # doctest: +SKIP

```"""

from collections.abc import Sequence
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.axes import Axes

from .annotation.expression import express, markers_of, measured_markers
from .annotation.metrics import compare
from .annotation.records import candidate_labels, label_colours
from .checkpoint.builtin import MINI
from .checkpoint.loading import load_processor
from .io.columns import CELL_TYPE, RUN, require_column
from .io.h5ad import require_anndata
from .model.errors import InputError
from .model.feature_extraction_langcell import LangCellFeatureExtractor
from .report.plots import draw_composition, draw_confusion, lay_out


def dotplot(
    adata: ad.AnnData,
    groupby: str = CELL_TYPE,
    n_genes: int = 3,
    *,
    extractor: LangCellFeatureExtractor | None = None,
    **options: Any,
) -> Any:
    """
    Draws the markers of the labels against the labels: the first look at whether an annotation can be believed. Cells
    of a label should express its own markers, and the others less.

    Args:
        adata: Annotated cells, with their counts.
        groupby: Column of `obs` with names of cell types: the labels, those of clusters, answers, or known labels.
        n_genes: Largest number of markers of each label, the best first.
        extractor: Feature extractor of the checkpoint, which is loaded by default.
        options: Further arguments of `scanpy.pl.dotplot`, such as `show`, `save` and `standard_scale`.

    Returns:
        What `scanpy.pl.dotplot` returns.

    Raises:
        InputError: The cells are not annotated, or no label has a marker that they measure.
    """
    require_anndata(adata)
    require_column(adata.obs, groupby)
    names = [str(name) for name in adata.obs[groupby].dropna().unique()]
    reader = _extractor_of(adata) if extractor is None else extractor
    genes = {name: markers_of(adata, name) for name in sorted(names)}
    expressed = expression(adata, [gene for own in genes.values() for gene in own], extractor=reader)
    shown = {name: measured_markers(own, expressed.var_names, n_genes) for name, own in genes.items()}
    shown = {name: own for name, own in shown.items() if own}
    if not shown:
        raise InputError(f"No name in obs[{groupby!r}] has a marker that these cells measure.")
    expressed = expressed[adata.obs[groupby].notna().to_numpy()].copy()
    expressed.obs[groupby] = pd.Categorical(expressed.obs[groupby].astype(str), [*shown, *sorted({*names} - {*shown})])
    return sc.pl.dotplot(expressed, shown, groupby, **{"standard_scale": "var", **options})


def markers(
    adata: ad.AnnData,
    label: str,
    n_genes: int = 6,
    *,
    basis: str | None = None,
    extractor: LangCellFeatureExtractor | None = None,
    **options: Any,
) -> Any:
    """
    Draws the cells on a plane for each marker of a label, coloured by expression.

    Args:
        adata: Annotated cells, with their counts.
        label: One of the labels, or any type of the catalogue.
        n_genes: Largest number of markers, the best first.
        basis: Key of positions in `obsm`; by default `X_umap`, or else a UMAP of the embeddings is made.
        extractor: Feature extractor of the checkpoint, which is loaded by default.
        options: Further arguments of `scanpy.pl.embedding`, such as `ncols`, `show` and `save`.

    Returns:
        What `scanpy.pl.embedding` returns.

    Raises:
        InputError: The cells are not annotated, or the label has no marker that they measure.
    """
    reader = _extractor_of(adata) if extractor is None else extractor
    expressed = expression(adata, markers_of(adata, label), extractor=reader)
    if not expressed.n_vars:
        raise InputError(f"{label!r} has no marker that these cells measure.")
    if basis is None and "X_umap" not in adata.obsm:
        layout = lay_out(adata)
        expressed, basis = expressed[layout.rows].copy(), "UMAP of X_langcell"
        expressed.obsm[basis] = layout.coordinates
    else:
        basis = "X_umap" if basis is None else basis
        expressed.obsm[basis] = np.asarray(adata.obsm[basis])[:, :2]
    title = [f"{gene} ({label})" for gene in expressed.var_names[:n_genes]]
    return sc.pl.embedding(
        expressed, basis, color=[*expressed.var_names[:n_genes]], **{"title": title, "cmap": "viridis", **options}
    )


def composition(adata: ad.AnnData, by: str, groupby: str = CELL_TYPE, *, ax: Axes | None = None) -> Axes:
    """
    Draws the share of each label in each sample, donor or condition, as stacked bars.

    Args:
        adata: Annotated cells.
        by: Column of `obs`: a bar for each of its values.
        groupby: Column of `obs` with the labels.
        ax: Axes to draw on; by default a new figure's.

    Returns:
        The axes.

    Raises:
        InputError: There is no such column.
    """
    require_anndata(adata)
    require_column(adata.obs, by)
    require_column(adata.obs, groupby)
    colours = label_colours(adata) if groupby == CELL_TYPE else None
    ax = _new_axes(width=8) if ax is None else ax
    draw_composition(ax, adata.obs[by], adata.obs[groupby], colours)
    return ax


def confusion(adata: ad.AnnData, reference: str, *, ax: Axes | None = None) -> Axes:
    """
    Draws which known types got which labels. Names that mean the same term of the Cell Ontology are the same.

    Args:
        adata: Annotated cells.
        reference: Column of `obs` with the known types.
        ax: Axes to draw on; by default a new figure's.

    Returns:
        The axes.

    Raises:
        InputError: There is no such column, or none of its types is a candidate.
    """
    compared = compare(adata, reference)
    if ax is None:
        ax = _new_axes(width=4 + 0.45 * len({*compared.known, *compared.found}))
    draw_confusion(ax, compared, reference)
    return ax


def expression(
    adata: ad.AnnData, genes: Sequence[str], *, extractor: LangCellFeatureExtractor | None = None
) -> ad.AnnData:
    """
    Returns the expression of genes, read as the annotation read the cells: by any name of a gene, and whatever array
    holds the counts.

    Args:
        adata: Annotated cells, with their counts.
        genes: Symbols; those that the cells do not measure are left out.
        extractor: Feature extractor of the checkpoint, which is loaded by default.

    Returns:
        An AnnData with the cells' `obs` and log(1 + counts per 10,000).

    Raises:
        InputError: The cells are not annotated, or cannot be read.
    """
    candidate_labels(adata)
    return express(_extractor_of(adata) if extractor is None else extractor, adata, adata, genes)


def _extractor_of(adata: ad.AnnData) -> LangCellFeatureExtractor:
    """Returns the feature extractor of the checkpoint that annotated cells; of a model in memory, langcell-mini's."""
    checkpoint = str(adata.uns.get(RUN, {}).get("checkpoint") or MINI)
    return load_processor(checkpoint).feature_extractor


def _new_axes(width: float) -> Axes:
    return plt.subplots(figsize=(width, 5), layout="constrained")[1]


__all__ = ["composition", "confusion", "dotplot", "expression", "markers"]
