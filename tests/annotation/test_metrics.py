# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Agreement of an annotation with known labels."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError
from modeling_langcell.annotation.metrics import agreement, compare, describe_agreement


@pytest.fixture
def annotated():
    """Five cells: three right, one wrong, and one whose known label is not a candidate."""
    obs = pd.DataFrame(
        {
            "langcell_cell_type": pd.Categorical(["B cell", "B cell", "T cell", "T cell", "T cell"]),
            "known": ["B cell", "B cell", "T cell", "B cell", "neuron"],
        },
        index=list("abcde"),
    )
    return ad.AnnData(obs=obs, uns={"langcell": {"labels": np.array(["B cell", "T cell"])}})


def test_scores_by_hand(annotated):
    found = agreement(annotated, "known")
    assert found["cells"] == 4
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def annotate_as(found, known, candidates):
    obs = pd.DataFrame({"langcell_cell_type": pd.Categorical(found), "known": known})
    obs.index = obs.index.astype(str)
    return ad.AnnData(obs=obs, uns={"langcell": {"labels": np.array(candidates)}})


def test_names_of_one_term_are_the_same():
    known = ["B cells", "CL:0000236", "B lymphocyte", "b cell", "Treg"]
    found = ["B cell"] * 4 + ["regulatory T cell"]
    scores = agreement(annotate_as(found, known, ["B cell", "regulatory T cell"]), "known")
    assert (scores["cells"], scores["accuracy"], scores["no_candidate"]) == (5, 1, {})


def test_a_broader_type_and_a_kind_of_the_type_are_told_apart():
    known = ["CD4-positive, alpha-beta T cell", "T cell", "T cell", "monocyte"]
    found = ["T cell", "CD8-positive, alpha-beta T cell", "T cell", "T cell"]
    adata = annotate_as(found, known, ["T cell", "CD8-positive, alpha-beta T cell", "monocyte"])
    compared = compare(adata, "known")
    assert compared.is_broader.tolist() == [True, False, False, False]
    assert compared.is_narrower.tolist() == [False, True, False, False]
    scores = agreement(adata, "known")
    assert [scores[name] for name in ("accuracy", "broader", "narrower")] == [0.25, 0.25, 0.25]
    words = "25% are labelled with a broader type; 25% are labelled with a kind of their type."
    assert describe_agreement(scores, "known") == [f"Accuracy against known: 0.250 over 4 cells; {words}"]


def test_cells_whose_type_is_no_candidate_are_counted(annotated):
    scores = agreement(annotated, "known")
    assert scores["no_candidate"] == {"neuron": 1}
    assert describe_agreement(scores, "known")[1] == "Further cells whose type is no candidate: 1, of neuron (1)."
    compared = compare(annotated, "known")
    assert compared.known.tolist() == ["B cell", "B cell", "T cell", "B cell", "neuron"]
    assert compared.is_candidate.tolist() == [True, True, True, True, False]


def test_labels_outside_the_ontology_are_compared_as_they_are():
    adata = annotate_as(["mine 1", "mine 2"], ["mine 1", "mine 1"], ["mine 1", "mine 2"])
    assert agreement(adata, "known")["accuracy"] == 0.5


def test_cells_without_a_known_type_are_left_out():
    adata = annotate_as(["B cell"] * 4, ["B cell", None, "unknown", " "], ["B cell"])
    assert agreement(adata, "known")["cells"] == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nope", "No column 'nope' in obs"),
        ("langcell_cell_type", "is the annotation itself"),
        ("other", "None of the labels in obs\\['other'\\] is a candidate"),
    ],
)
def test_bad_references_are_refused(annotated, reference, message):
    annotated.obs["other"] = "neuron"
    with pytest.raises(InputError, match=message):
        agreement(annotated, reference)
