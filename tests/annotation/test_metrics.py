# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Agreement of an annotation with known labels."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError
from modeling_langcell.annotation.metrics import agreement, paired_labels


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


def test_pairs_are_of_cells_whose_known_label_is_a_candidate(annotated):
    known, found = paired_labels(annotated, "known")
    assert known.tolist() == ["B cell", "B cell", "T cell", "B cell"]
    assert found.tolist() == ["B cell", "B cell", "T cell", "T cell"]


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
