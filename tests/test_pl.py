# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Figures of an annotation for a notebook, of the example's real cells."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import modeling_langcell as langcell
from modeling_langcell import InputError, pl
from modeling_langcell.io.example import CELL_OPTIONS

LABELS = ["B cell", "CD14-positive monocyte", "natural killer cell", "T cell"]


@pytest.fixture(scope="module")
def annotated():
    cells = langcell.load_example()[::3].copy()
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 3, "A", "B")
    return langcell.annotate(cells, LABELS, **CELL_OPTIONS)


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def test_expression_is_that_of_the_counts_by_any_name(annotated):
    found = pl.expression(annotated, ["MS4A1", "ENSG00000156738", "no such gene", "CD79A"])
    assert found.var_names.tolist() == ["MS4A1", "ENSG00000156738", "CD79A"]
    assert found.n_obs == annotated.n_obs
    raw = annotated.raw.to_adata()[:, ["MS4A1", "CD79A"]].X.toarray()
    ours = found[:, ["MS4A1", "CD79A"]].X.toarray()
    counts = np.expm1(annotated.raw.X.toarray())
    expected = np.log1p(np.expm1(raw) / counts.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_a_dot_plot_has_the_markers_of_each_label(annotated):
    axes = pl.dotplot(annotated, n_genes=2, show=False)["mainplot_ax"]
    genes = [text.get_text() for text in axes.get_xticklabels()]
    assert {"CD79A", "NKG7"} <= {*genes}
    assert [text.get_text() for text in axes.get_yticklabels()] == sorted(annotated.obs["langcell_cell_type"].unique())


def test_a_dot_plot_of_known_labels(annotated):
    annotated.obs["mine"] = pd.Series(["B cells", np.nan, "blob"] * annotated.n_obs)[: annotated.n_obs].to_numpy()
    axes = pl.dotplot(annotated, "mine", show=False)["mainplot_ax"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["B cells", "blob"]
    annotated.obs["mine"] = "blob"
    with pytest.raises(InputError, match="No name in obs\\['mine'\\] has a marker that these cells measure"):
        pl.dotplot(annotated, "mine")


def test_markers_are_drawn_on_a_plane(annotated):
    panels = pl.markers(annotated, "B cell", 2, show=False)
    assert [panel.get_title() for panel in panels] == ["MS4A1 (B cell)", "CD79A (B cell)"]
    own = ad.AnnData(annotated.X, obs=annotated.obs, uns=annotated.uns, obsm={"X_umap": np.zeros((annotated.n_obs, 2))})
    own.raw = annotated.raw.to_adata()
    assert len(pl.markers(own, "NK cell", 2, show=False)) == 2
    with pytest.raises(InputError, match="'hepatocyte' has no marker that these cells measure"):
        pl.markers(annotated, "hepatocyte")


def test_bars_of_a_composition_add_up_to_one(annotated):
    axes = pl.composition(annotated, "donor")
    heights = pd.DataFrame([(round(bar.get_x(), 3), bar.get_height()) for bar in axes.patches]).groupby(0)[1].sum()
    assert heights.tolist() == pytest.approx([1, 1])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["A", "B"]
    labels = annotated.obs["langcell_cell_type"].cat.categories
    colours = dict(zip(labels, annotated.uns["langcell_cell_type_colors"], strict=True))
    legend = axes.get_legend()
    assert {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    } == colours


def test_a_confusion_names_rows_and_columns(annotated):
    axes = pl.confusion(annotated, "author_cell_type")
    assert {text.get_text() for text in axes.get_xticklabels()} <= {*LABELS}
    assert any(text.get_text().startswith("B cell (") for text in axes.get_yticklabels())
    mine = plt.subplots()[1]
    assert pl.confusion(annotated, "author_cell_type", ax=mine) is mine


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda cells: pl.dotplot(cells), "No column 'langcell_cell_type' in obs.* Annotate the cells first"),
        (lambda cells: pl.composition(cells, "donor"), "No column 'donor' in obs"),
        (lambda cells: pl.confusion(cells, "bulk_labels"), "annotate them first"),
        (lambda cells: pl.markers(cells, "B cell"), "annotate them first"),
    ],
)
def test_what_is_missing_is_said(draw, said):
    with pytest.raises(InputError, match=said):
        draw(langcell.load_example()[:20].copy())
