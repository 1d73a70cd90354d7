# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Figures: annotated cells on a plane, their labels, and the genes that drive them."""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from sklearn.metrics import accuracy_score

from ..annotation.metrics import Comparison, compare
from ..annotation.nearest import connect
from ..annotation.records import label_colours
from ..io.colours import GREY, colours
from ..io.columns import CELL_TYPE, EMBEDDING
from ..io.file_kinds import FIGURE, require_replaceable
from ..io.printable import one_line
from ..io.replace import write_result
from ..model.errors import InputError

logger = logging.getLogger(__name__)

#: Names may hold what matplotlib reads as mathematics, which it does when text is made as well as when it is drawn.
_NAMES_AS_THEY_ARE = rc_context({"text.parse_math": False})
_SEED = 0
_MOST_CELLS = 20_000  # Most cells on a map; a random sample of this size is drawn from more cells.
_MOST_BARS = 60  # Most labels whose shares are drawn: the most frequent ones, which have different colours.
_LINE = 0.16  # Height of a line of a legend, in inches.


@dataclass(frozen=True)
class Layout:
    """
    Positions of cells on a plane.

    Args:
        rows: `(drawn,)` row numbers of the cells that are drawn, in order.
        coordinates: `(drawn, 2)` positions.
    """

    rows: np.ndarray
    coordinates: np.ndarray


def lay_out(adata: ad.AnnData) -> Layout:
    """
    Computes a UMAP of the embeddings; of a random sample of them above 20,000 cells. Cells without an embedding are
    left out.

    Raises:
        InputError: There are no embeddings.
    """
    import scanpy as sc

    if EMBEDDING not in adata.obsm:
        raise InputError(f"There is no obsm[{EMBEDDING!r}]: annotate or embed the cells first.")
    embeds = np.asarray(adata.obsm[EMBEDDING])
    rows = np.flatnonzero(~np.isnan(embeds[:, 0]))
    if len(rows) > _MOST_CELLS:
        logger.info("Drawing a random sample of %d of %d cells.", _MOST_CELLS, len(rows))
        rows = np.sort(np.random.default_rng(_SEED).permutation(rows)[:_MOST_CELLS])
    embeds = embeds[rows]
    if len(rows) < 5:  # They are too few for a neighbourhood graph: the first two numbers of the embedding are used.
        return Layout(rows, embeds[:, :2])
    space = ad.AnnData(obs=pd.DataFrame(index=adata.obs_names[rows]), obsm={EMBEDDING: embeds})
    connect(space, min(15, len(rows) - 1), use_rep=EMBEDDING, metric="cosine", seed=_SEED)
    sc.tl.umap(space, random_state=_SEED, init_pos="random" if len(rows) < 50 else "spectral")
    return Layout(rows, space.obsm["X_umap"])


@_NAMES_AS_THEY_ARE
def draw(adata: ad.AnnData, layout: Layout, reference: str | None = None) -> Figure:
    """
    Draws the cells, coloured by label, next to the shares of the labels or, with a reference column, the confusion
    matrix with its labels. The figure is as high as these names need.
    """
    labels = adata.obs[CELL_TYPE].cat.remove_unused_categories()
    names = labels.cat.categories
    compared = None if reference is None else compare(adata, reference)
    columns = 2 if all(len(name) <= 40 for name in names) else 1  # Two columns of long names are wider than the map.
    legend = 0 if compared is None else _LINE * -(-len(names) // columns)
    lines = min(len(names), _MOST_BARS) if compared is None else len(set(compared.known))
    figure = Figure(figsize=(15, max(5.0, 1 + 1.4 * _LINE * lines) + legend), layout="constrained")
    scatter, beside = figure.subplots(1, 2, width_ratios=(1, 1.05))
    drawn, colour_of = labels.iloc[layout.rows], dict(zip(names, label_colours(adata), strict=True))
    for name in names:
        chosen = (drawn == name).to_numpy()
        scatter.scatter(*layout.coordinates[chosen].T, s=9, color=colour_of[name], label=_shorten(name), linewidths=0)
    scatter.set(xticks=[], yticks=[], title=f"{len(drawn):,} cells by label", xlabel="UMAP of X_langcell")
    if compared is None:
        _draw_shares(beside, labels, colour_of)
    else:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.06), "ncols": columns}
        scatter.legend(fontsize=7, markerscale=2, frameon=False, **below)
        draw_confusion(beside, compared, str(reference))
    return figure


def _draw_shares(axes: Axes, labels: pd.Series, colour_of: Mapping[str, str]) -> None:
    """Draws the share of the cells that each label has, the most frequent at the top, in the label's colour."""
    shares = labels.value_counts(normalize=True)
    shown, others = shares[:_MOST_BARS], shares[_MOST_BARS:]
    names, colour = [_shorten(name) for name in shown.index], [colour_of[name] for name in shown.index]
    if len(others):
        names, colour = [*names, f"{len(others)} further labels"], [*colour, GREY]
    sizes = [*shown, *([others.sum()] if len(others) else [])]
    axes.barh(range(len(names)), sizes, color=colour)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(title="Composition", xlabel="share of cells")


@_NAMES_AS_THEY_ARE
def draw_genes(explained: pd.DataFrame, genes: int = 10) -> Figure:
    """Draws the genes that contribute most to each label's matches; `explained` is a table from `explain`."""
    labels = explained["label"].unique()
    columns = min(3, len(labels))
    rows = -(-len(labels) // max(1, columns))
    figure = Figure(figsize=(4.2 * columns, (0.24 * genes + 0.9) * rows), layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, label in zip(panels, labels, strict=False):
        most = explained[explained["label"] == label].head(genes)[::-1]
        axes.barh(most["gene"].map(_shorten), most["contribution"], color="C0")
        cells = most["cells"].iloc[0]
        axes.set_title(f"{_shorten(label, 36)} ({cells} {'cell' if cells == 1 else 'cells'})", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("mean contribution to the match", fontsize=9)
    return figure


@_NAMES_AS_THEY_ARE
def draw_confusion(axes: Axes, compared: Comparison, reference: str) -> None:
    """Draws the share of the cells of each known type, in rows, that have each label, in columns."""
    truth, predicted, rows = compared.known, compared.found, compared.is_candidate
    known, found = sorted(set(truth)), sorted(set(predicted))
    counts = pd.crosstab(truth, predicted).reindex(index=known, columns=found).to_numpy()
    shares = counts / counts.sum(axis=1, keepdims=True)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(found)), [_shorten(name, 32) for name in found], fontsize=8, rotation=40, ha="right")
    sizes = counts.sum(axis=1)
    names = [f"{_shorten(name)} ({size:,})" for name, size in zip(known, sizes, strict=True)]
    axes.set_yticks(range(len(known)), names, fontsize=8)
    for row, column in np.argwhere(shares >= 0.05):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=7, color=colour)
    accuracy = accuracy_score(truth[rows], predicted[rows])
    axes.set(title=f"{_shorten(reference)} (cells) and annotation: accuracy {accuracy:.2f}", xlabel="annotation")
    axes.figure.colorbar(image, ax=axes, label="share of the row's cells", shrink=0.8)


@_NAMES_AS_THEY_ARE
def draw_composition(axes: Axes, groups: pd.Series, labels: pd.Series, label_colours: list[str] | None = None) -> None:
    """Draws a bar for each group of cells, divided by the shares of the labels, the most frequent first."""
    labels = labels.astype("category")
    names = labels.cat.categories
    by_name = dict(zip(names, label_colours or colours(len(names)), strict=True))
    shares = pd.crosstab(groups, labels, normalize="index")
    frequent = labels.value_counts()
    frequent = frequent[frequent > 0]
    below = np.zeros(len(shares))
    for name in frequent.index:
        axes.bar([_shorten(str(group), 32) for group in shares.index], shares[name], bottom=below, color=by_name[name])
        below += shares[name].to_numpy()
    patches = [Patch(color=by_name[name], label=_shorten(str(name))) for name in frequent.index]
    axes.legend(handles=patches, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.tick_params(axis="x", labelrotation=40)
    axes.set(ylabel="share of cells", ylim=(0, 1), xlabel=_shorten(str(groups.name)))
    axes.spines[["top", "right"]].set_visible(False)


def _shorten(label: str, length: int = 60) -> str:
    label = one_line(label)
    return label if len(label) <= length else label[: length - 1] + "…"


@_NAMES_AS_THEY_ARE
def render(figure: Figure, dpi: int = 130, file_format: str = "png") -> bytes:
    """Renders a figure, as PNG by default."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=dpi)
    return buffer.getvalue()


def write_figure(figure: Figure, path: str | Path, dpi: int = 130) -> Path:
    """
    Writes a figure in the format of the path's suffix, whole or not at all, and returns the path.

    Raises:
        InputError: The suffix is none of `.png`, `.pdf` and `.svg`, the file cannot be written, or it would replace one
            that is no figure.
    """
    path = Path(path)
    require_replaceable(path, FIGURE)
    return write_result(path, render(figure, dpi, path.suffix[1:].lower()), FIGURE)


__all__ = ["Layout", "draw", "draw_composition", "draw_confusion", "draw_genes", "lay_out", "render", "write_figure"]
