# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Figures: cells on a plane, and the genes that drive each label."""

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.io.columns import CELL_TYPE, RUN
from modeling_langcell.report.plots import Layout, draw, draw_genes, lay_out, render


@pytest.fixture
def annotated(cells, tiny_checkpoint):
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    return annotator.annotate(cells, ["B cell", "natural killer cell", "monocyte"])


def test_large_layouts_are_random_samples(annotated, monkeypatch, caplog):
    monkeypatch.setattr("modeling_langcell.report.plots._MOST_CELLS", 4)
    with caplog.at_level("INFO", logger="modeling_langcell.report.plots"):
        layout = lay_out(annotated)
    assert len(np.unique(layout.rows)) == len(layout.coordinates) == 4
    assert "random sample of 4 of 12 cells" in caplog.text


def test_embeddings_are_required(annotated):
    del annotated.obsm["X_langcell"]
    with pytest.raises(InputError, match="annotate or embed the cells first"):
        lay_out(annotated)


@pytest.mark.parametrize("reference", [None, "known"])
def test_cells_are_drawn_by_label(annotated, reference):
    annotated.obs["known"] = ["B cell", "monocyte"] * 6
    figure = draw(annotated, lay_out(annotated), reference)
    scatter, beside = figure.axes[:2]
    assert len(scatter.collections) == annotated.obs["langcell_cell_type"].nunique()
    assert beside.get_title().startswith("Composition" if reference is None else "known (cells) and annotation")
    assert render(figure, dpi=20).startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [35, 70])
@pytest.mark.parametrize("reference", [None, "known"])
def test_many_labels_are_readable(number, reference):
    """No name covers another or is cut off, and the map stays a map: matplotlib warns where there is no room."""
    names = [f"cell type {letter} with a name of usual length" for letter in range(number)]
    obs = pd.DataFrame({CELL_TYPE: pd.Categorical(names * 2, names), "known": [*names[:2]] * number})
    adata = ad.AnnData(obs=obs.set_index(obs.index.astype(str)))
    adata.uns[RUN] = {"labels": np.array(names)}
    layout = Layout(np.arange(2 * number), np.random.default_rng(0).random((2 * number, 2)))
    figure = draw(adata, layout, reference)
    figure.draw_without_rendering()
    scatter, beside = figure.axes[:2]
    assert scatter.get_window_extent().height > 250
    if reference is None:
        bars = [text.get_window_extent() for text in beside.get_yticklabels()]
        assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(bars))
        assert [text.get_text() for text in beside.get_yticklabels()][60:] == ["10 further labels"] * (number > 60)
        assert sum(bar.get_width() for bar in beside.patches) == pytest.approx(1)
    else:
        assert figure.get_tightbbox().y0 >= 0  # In inches: the legend ends above the lower edge.


def test_genes_have_a_panel_for_each_label():
    labels = np.repeat(["B cell", "natural killer cell", "monocyte", "T cell"], 6)
    explained = pd.DataFrame(
        {
            "label": labels,
            "gene": [f"G{number}" for number in range(24)],
            "contribution": np.tile(np.linspace(1, 0, 6), 4),
            "cells": 3,
        }
    )
    panels = [axes for axes in draw_genes(explained, 5).axes if axes.get_visible()]
    assert len(panels) == 4
    for axes, (_, genes) in zip(panels, explained.groupby("label", sort=False), strict=True):
        assert [text.get_text() for text in axes.get_yticklabels()][::-1] == genes["gene"].head(5).tolist()


@pytest.mark.parametrize("name", [r"$\frac{x$", "$_$", "a\x1b[2J\nb", "x" * 500])
def test_names_are_drawn_as_they_are(cells, tiny_checkpoint, name):
    """Neither as mathematics, which a name may break, nor with characters that no font has."""
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    adata = annotator.annotate(cells, {f"a{name}": "cell type: a.", f"b{name}": "cell type: b."})
    adata.obs[f"known{name}"] = [f"a{name}", f"b{name}"] * 6
    for reference in (None, f"known{name}"):
        assert render(draw(adata, lay_out(adata), reference), dpi=20).startswith(b"\x89PNG")
    explained = pd.DataFrame({"label": f"a{name}", "gene": [f"G{name}"], "contribution": [1.0], "cells": 3})
    assert render(draw_genes(explained), dpi=20).startswith(b"\x89PNG")
