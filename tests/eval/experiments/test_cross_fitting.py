# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Trainings that leave studies out."""

import anndata as ad
import pytest

from modeling_langcell.eval.experiments.cross_fitting import FITTED, FOLDS, JUDGED, cross_fitted, files_of


@pytest.fixture
def data(shared):
    return shared / "data"


def test_each_study_is_left_out_once(data):
    left_out = [name for fold in FOLDS for name in fold]
    assert len(set(left_out)) == len(left_out)
    assert set(left_out) <= files_of(data).keys()
    assert {*FITTED, *JUDGED} <= set(left_out)


def test_a_study_is_scored_by_the_training_that_left_it_out(data, tmp_path):
    pairs = {path.stem: folder for path, folder in cross_fitted(data, tmp_path, FITTED).items()}
    assert pairs.keys() == set(FITTED)
    assert all(name in FOLDS[int(folder.name)] for name, folder in pairs.items())


def test_the_calibration_is_fitted_on_studies_with_several_types(data):
    files = files_of(data)
    for name in (*FITTED, *JUDGED):
        types = ad.read_h5ad(files[name], backed="r").obs["cell_type"].unique()
        assert len(set(types) - {"unknown"}) >= 3, name
