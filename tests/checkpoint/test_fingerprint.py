# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checkpoints with the same hash annotate alike, and whatever changes scores changes it."""

import pytest
import torch

from modeling_langcell import LangCellAnnotator
from modeling_langcell.checkpoint.fingerprint import fingerprint


@pytest.fixture
def annotator(tiny_checkpoint):
    return LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")


def test_equal_weights_have_one_hash(annotator):
    weight, hashes = next(annotator.model.parameters()), set()
    for zero in (0.0, -0.0):
        with torch.no_grad():
            weight.view(-1)[0] = zero
        hashes.add(fingerprint(annotator.model, annotator.processor))
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ["alpha", "marker_weight", "relatives_weight", "known_cells_weight"])
def test_each_weight_of_the_scores_changes_it(annotator, name):
    before = fingerprint(annotator.model, annotator.processor)
    setattr(annotator.model.config, name, 0.25)
    assert fingerprint(annotator.model, annotator.processor) != before
