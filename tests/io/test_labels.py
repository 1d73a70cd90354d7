# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Labelled cells: labels are read from `obs` and `obsm`, drawn, split, and refused when they cannot be used."""

import logging

import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError
from modeling_langcell.io.labels import rank_cells, read_labels


@pytest.fixture
def labelled(cells):
    cells.obs["type"] = (["a", "b", "unknown"] * 4)[:12]
    cells.obsm["several"] = pd.DataFrame({"a": [1, 0] * 6, "b": [0, 0, 1] * 4}, index=cells.obs_names)
    return cells


def test_a_column(labelled, caplog):
    with caplog.at_level(logging.INFO, "modeling_langcell"):
        labels = read_labels(labelled, "type", unlabelled="skip")
    assert labels.names == ("a", "b")
    assert labels.rows.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert labels.sizes() == {"a": 4, "b": 4}
    assert not labels.multilabel
    assert "4 of 12 cells have no label in obs['type']" in caplog.text


@pytest.mark.parametrize(
    "word",
    [
        *("nan", "NA", "<NA>", "None", "Unknown", "Unassigned", "not_assigned", " ", "-", "#N/A", "N.A.", "--", "??"),
        *("Undefined", "Unknown cell type", "Un-assigned", "NotAssigned", "not applicable", "uncharacterized", "TBD"),
        *("not classified", "not labelled", "Unassigned cells", "cell type unknown", "N.D.", "UNK", "NaT", "N/D"),
    ],
)
def test_words_for_a_missing_label(labelled, word):
    adata = labelled.copy()
    known = np.arange(adata.n_obs) % 3 != 0
    adata.obs["words"] = np.where(known, np.where(np.arange(adata.n_obs) % 2, "B cell", "monocyte"), word)
    found = read_labels(adata, "words", unlabelled="skip")
    assert found.names == ("B cell", "monocyte")
    assert found.rows.tolist() == np.flatnonzero(known).tolist()
    with pytest.raises(InputError, match=r"cells have no label in obs\['words'\]"):
        read_labels(adata, "words")


@pytest.mark.parametrize("word", ["NAT", "ND", "Nd", "Empty", "NAN1"])
def test_words_that_may_be_a_label(labelled, word):
    adata = labelled.copy()
    adata.obs["words"] = [word, "B cell"] * (adata.n_obs // 2)
    assert set(read_labels(adata, "words").names) == {word, "B cell"}


def test_names_of_one_type_are_one_label(labelled):
    adata = labelled.copy()
    adata.obs["names"] = ["NK cell", "natural killer cell", "B cells", "x"] * 3
    assert read_labels(adata, "names").names == ("B cells", "NK cell", "natural killer cell", "x")
    found = read_labels(adata, "names", merge_names=True)
    assert found.names == ("B cells", "NK cell", "x")
    assert found.truth.tolist() == [1, 1, 0, 2] * 3
    adata.obs["names"] = ["NK cell", "natural killer cell"] * 6
    with pytest.raises(InputError, match="holds 1 label: at least two"):
        read_labels(adata, "names", merge_names=True)


def test_a_table(labelled):
    labels = read_labels(labelled, "several")
    assert labels.multilabel
    assert labels.sizes() == {"a": 6, "b": 4}
    assert len(labels) == 12


def test_larger_draws_contain_smaller_ones(labelled):
    labels = read_labels(labelled, "type", unlabelled="skip")
    draws = [labels.shots(number, seed=0) for number in (1, 2, 4)]
    assert [len(draw) for draw in draws] == [2, 4, 8]
    assert set(draws[0].rows) < set(draws[1].rows) < set(draws[2].rows)
    with pytest.raises(InputError, match=r"Fewer than 5 cells have the label 'a' \(4\), 'b' \(4\)"):
        labels.shots(5, seed=0)
    with pytest.raises(InputError, match="0 is not a number of cells per label"):
        labels.shots(0, seed=0)
    with pytest.raises(InputError, match="only if every cell has one label"):
        read_labels(labelled, "several").shots(1, seed=0)


def test_held_out_cells_are_stratified(labelled):
    train, test = read_labels(labelled, "type", unlabelled="skip").held_out(0.25, seed=0)
    assert (train.sizes(), test.sizes()) == ({"a": 3, "b": 3}, {"a": 1, "b": 1})
    assert not set(train.rows) & set(test.rows)
    with pytest.raises(InputError, match="cannot be held out of 8 labelled cells"):
        read_labels(labelled, "type", unlabelled="skip").held_out(0.01, seed=0)


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("type", {}, r"4 of 12 cells have no label in obs\['type'\]: label them, or skip them with unlabelled='skip'"),
        ("type", {"unlabelled": "drop"}, "unlabelled='drop' is not one of"),
        ("nowhere", {}, "No column 'nowhere' in obs, nor table in obsm; columns: "),
        ("one", {}, "'one' holds 1 label: at least two are needed"),
        ("array", {}, r"obsm\['array'\] must be a table with a named column"),
        ("words", {}, r"obsm\['words'\] must hold true or false for each label: "),
        ("numbers", {}, r"obsm\['numbers'\] must hold true or false for each label, not other numbers"),
        ("constant", {}, r"obsm\['constant'\]: every cell has 'a', so it cannot be learnt"),
    ],
)
def test_labels_that_cannot_be_used(labelled, key, options, message):
    names = labelled.obs_names
    labelled.obs["one"] = "a"
    labelled.obsm["array"] = np.zeros((12, 2))
    labelled.obsm["words"] = pd.DataFrame({"a": ["yes"] * 12, "b": ["no"] * 12}, index=names)
    labelled.obsm["numbers"] = pd.DataFrame({"a": [0, 2] * 6, "b": [0, 1] * 6}, index=names)
    labelled.obsm["constant"] = pd.DataFrame({"a": [1] * 12, "b": [0, 1] * 6}, index=names)
    with pytest.raises(InputError, match=message):
        read_labels(labelled, key, **options)


def test_cells_are_ranked_in_the_order_of_the_rows(labelled, tiny_processor):
    extractor = tiny_processor.feature_extractor
    whole = extractor.rank(labelled)
    rows = np.array([7, 2, 2])
    ranked = rank_cells(labelled, rows, extractor)
    assert [ranked[cell].tolist() for cell in range(3)] == [whole[row].tolist() for row in rows]
