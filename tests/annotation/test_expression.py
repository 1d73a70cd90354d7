# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The expression of markers in real blood cells, whichever cells are asked for and however they are read."""

import anndata as ad
import numpy as np
import pytest

import modeling_langcell as langcell
from modeling_langcell import InputError
from modeling_langcell.annotation.expression import express, express_markers, markers_of
from modeling_langcell.checkpoint.loading import load_processor
from modeling_langcell.io.h5ad import open_lightly

LABELS = {
    "B cell": {"description": "B cell", "markers": ["MS4A1", "CD79A", "CD19", "BANK1"]},
    "monocyte": "",
    "T cell": "",
    "a cell without markers": "some cell",
}


@pytest.fixture(scope="module")
def extractor():
    return load_processor("langcell-mini").feature_extractor


@pytest.fixture(scope="module")
def blood(shared):
    return langcell.annotate(ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[:300].copy(), LABELS)


def test_markers_are_those_that_the_labels_were_described_with(extractor, blood):
    found = express_markers(extractor, blood, blood)
    assert found.uns["markers"]["B cell"] == ["MS4A1", "CD79A", "CD19"]
    assert found.uns["markers"]["monocyte"] == [
        gene for gene in markers_of(blood, "monocyte") if gene in {*found.var_names}
    ]
    assert [*found.uns["markers"]] == [
        str(label)
        for label in blood.obs["langcell_cell_type"].value_counts().index
        if (blood.obs["langcell_cell_type"] == label).any()
    ]
    assert {*found.var_names} == {gene for own in found.uns["markers"].values() for gene in own}
    b_cells = (blood.obs["langcell_cell_type"] == "B cell").to_numpy()
    assert found[b_cells, "CD79A"].X.mean() > 5 * found[~b_cells, "CD79A"].X.mean()


def test_some_cells_of_a_file_are_read_in_blocks(extractor, blood, tmp_path, monkeypatch):
    blood.write_h5ad(tmp_path / "cells.h5ad")
    rows = np.array([3, 4, 90, 91, 299])
    genes = ["CD3D", "LYZ", "no such gene"]
    expected = express(extractor, blood, blood, genes)[rows]
    monkeypatch.setattr("modeling_langcell.annotation.expression._BLOCK", 32)
    with open_lightly(tmp_path / "cells.h5ad") as cells:
        found = express(extractor, cells, blood, genes, rows)
    assert found.var_names.tolist() == ["CD3D", "LYZ"]
    assert found.obs_names.tolist() == blood.obs_names[rows].tolist()
    np.testing.assert_allclose(found.X.toarray(), expected.X.toarray())
    assert express(extractor, blood, blood, genes, np.array([], dtype=int)).shape == (0, 2)


def test_cells_without_an_annotation_are_refused(extractor, blood):
    with pytest.raises(InputError, match="annotate them first"):
        express(extractor, blood, ad.AnnData(blood.X, var=blood.var), ["CD3D"])
