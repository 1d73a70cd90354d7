# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells of types that training withheld, and of the others, are judged apart."""

import pytest

from modeling_langcell import LangCellAnnotator
from modeling_langcell.eval.experiments import relatives
from modeling_langcell.eval.experiments.withheld_types import read_withheld, with_kinds


def test_the_sets_share_no_type():
    one, other = (read_withheld(name) for name in ("fitted-a", "fitted-b"))
    assert len(one) == len(other) == 8
    assert not {*one} & {*other}


@pytest.mark.long
def test_new_and_known_types_are_judged_apart(shared):
    study = shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad"
    annotator = LangCellAnnotator.from_pretrained("langcell-mini")
    found = relatives.measure(annotator, with_kinds(read_withheld("fitted-a")), study)
    assert found["new"].keys() == {
        "CD14-positive monocyte",
        "natural killer cell",
        "naive thymus-derived CD8-positive, alpha-beta T cell",
    }
    assert len(found["known"]) == 8
    recalls = [*found["new"].values(), *found["known"].values()]
    assert abs(sum(recalls) / len(recalls) - found["accuracy"]) < 1e-6, "each type has as many cells"
