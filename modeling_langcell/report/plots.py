# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Where annotated cells lie on a plane, and the figure of it."""

import io
from dataclasses import dataclass

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, confusion_matrix

from ..annotation.metrics import compared
from ..io.columns import CELL_TYPE, EMBEDDING
from ..model.errors import InputError

_SEED = 0
_MOST = 20_000  # Cells that are drawn; of more, so many at random.


@dataclass(frozen=True)
class Layout:
    """
    Cells on a plane.

    Args:
        rows: `(drawn,)` numbers of the cells that are drawn, in order.
        coordinates: `(drawn, 2)` where.
    """

    rows: np.ndarray
    coordinates: np.ndarray


def lay_out(adata: ad.AnnData) -> Layout:
    """
    The cells that have an embedding on a UMAP of it; of very many, some at random.

    Raises:
        InputError: There are no embeddings.
    """
    import scanpy as sc

    if EMBEDDING not in adata.obsm:
        raise InputError(f"There is no obsm[{EMBEDDING!r}]: annotate or embed the cells first.")
    embeds = np.asarray(adata.obsm[EMBEDDING])
    rows = np.flatnonzero(~np.isnan(embeds[:, 0]))
    if len(rows) > _MOST:
        rows = np.sort(np.random.default_rng(_SEED).permutation(rows)[:_MOST])
    embeds = embeds[rows]
    if len(rows) < 5:  # Too few for a neighbourhood graph: the embedding's first two numbers.
        return Layout(rows, embeds[:, :2])
    space = ad.AnnData(obs=pd.DataFrame(index=adata.obs_names[rows]), obsm={EMBEDDING: embeds})
    sc.pp.neighbors(space, use_rep=EMBEDDING, metric="cosine", n_neighbors=min(15, len(rows) - 1), random_state=_SEED)
    sc.tl.umap(space, random_state=_SEED, init_pos="random" if len(rows) < 50 else "spectral")
    return Layout(rows, space.obsm["X_umap"])


def draw(adata: ad.AnnData, layout: Layout, reference: str | None = None) -> Figure:
    """
    Draws the cells, coloured by the label found, beside the shares of the labels or, with a reference column, the
    confusion with its labels.
    """
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    scatter, beside = figure.subplots(1, 2, width_ratios=(1, 1.05))
    labels = adata.obs[CELL_TYPE].cat.remove_unused_categories()
    drawn = labels.iloc[layout.rows]
    names = labels.cat.categories
    for name, colour in zip(names, colours(len(names)), strict=True):
        chosen = (drawn == name).to_numpy()
        scatter.scatter(*layout.coordinates[chosen].T, s=9, color=colour, label=_shorten(name), linewidths=0)
    scatter.set(xticks=[], yticks=[], title=f"{len(drawn):,} cells by the label found", xlabel="UMAP of X_langcell")
    scatter.legend(fontsize=7, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
    if reference is None:
        shares = labels.value_counts(normalize=True).sort_values()
        beside.barh([_shorten(name) for name in shares.index], shares)
        beside.set(title="Shares of the labels", xlabel="share of cells")
    else:
        _draw_confusion(figure, beside, *compared(adata, reference), reference)
    return figure


def draw_genes(explained: pd.DataFrame, genes: int = 10) -> Figure:
    """Draws the genes that contribute most to each label's matches; `explained` is a table from `explain`."""
    labels = explained["label"].unique()
    columns = min(3, len(labels))
    rows = -(-len(labels) // max(1, columns))
    figure = Figure(figsize=(4.2 * columns, (0.24 * genes + 0.9) * rows), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, label in zip(panels, labels, strict=False):
        most = explained[explained["label"] == label].head(genes)[::-1]
        axes.barh(most["gene"], most["contribution"], color="C0")
        axes.set_title(f"{_shorten(label, 36)} ({most['cells'].iloc[0]} cells)", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("mean contribution to the match", fontsize=9)
    return figure


def colours(number: int) -> list[str]:
    """So many, as `#rrggbb`; from the 21st on they come again."""
    palette = matplotlib.colormaps["tab10" if number <= 10 else "tab20"]
    return [to_hex(palette(place % palette.N)) for place in range(number)]


def _draw_confusion(figure, axes, truth: np.ndarray, predicted: np.ndarray, reference: str) -> None:
    names = sorted(set(truth) | set(predicted))
    shares = confusion_matrix(truth, predicted, labels=names, normalize="true")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    ticks = range(len(names))
    axes.set_xticks(ticks, [str(number + 1) for number in ticks])
    sizes = [int((truth == name).sum()) for name in names]
    axes.set_yticks(ticks, [f"{_shorten(name)} ({sizes[i]:,})   {i + 1}" for i, name in enumerate(names)], fontsize=8)
    for row, column in np.argwhere(shares >= 0.05):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=7, color=colour)
    accuracy = accuracy_score(truth, predicted)
    axes.set(title=f"{reference} (cells) against the label found: accuracy {accuracy:.2f}", xlabel="label found")
    figure.colorbar(image, ax=axes, label="share of the row's cells", shrink=0.8)


def _shorten(label: str, length: int = 60) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def render(figure: Figure, dpi: int = 130) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


__all__ = ["Layout", "colours", "draw", "draw_genes", "lay_out", "render"]
