# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The regression that the model is compared with: its rows are balanced, and each belongs to the nearest candidate."""

import numpy as np
import pytest

from modeling_langcell import LangCellAnnotator
from modeling_langcell.eval.experiments.logistic_regression import ROWS, nearest_candidate, read_rows
from modeling_langcell.ontology import id_of


@pytest.mark.parametrize(
    ("term", "candidate"),
    [
        ("B cell", "B cell"),
        ("naive B cell", "B cell"),
        ("CD8-positive, alpha-beta cytotoxic T cell", "CD8-positive, alpha-beta T cell"),
        ("natural killer cell", "lymphocyte"),
        ("hepatocyte", ""),
        ("leukocyte", ""),
    ],
)
def test_a_row_belongs_to_its_type_or_the_nearest_above(term, candidate):
    names = ("lymphocyte", "B cell", "CD8-positive, alpha-beta T cell")
    assert nearest_candidate(str(id_of(term)), {str(id_of(name)): name for name in names}) == candidate


def test_cells_without_a_type_belong_to_no_candidate():
    assert nearest_candidate("unknown", {"CL:0000236": "B cell"}) == ""


@pytest.mark.parametrize("name", ["train/pbmc_facs_zheng", "more/profiles/retina_lung_ovary_profiles"])
def test_rows_are_balanced_counts(shared, name):
    extractor = LangCellAnnotator.from_pretrained("langcell-mini").processor.feature_extractor
    rows = read_rows(shared / "data" / f"{name}.h5ad", extractor, seed=0)
    _, sizes = np.unique(rows.types, return_counts=True)
    assert rows.counts.shape == (len(rows.types), len(extractor))
    assert 1 < sizes.max() <= ROWS
    assert (rows.counts.data == rows.counts.data.round()).all()
    assert np.isin(np.unique(rows.counts.indices), rows.genes).all()
