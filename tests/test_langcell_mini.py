# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The shipped checkpoint: complete, with the package's code, small, and accurate on held-out cells."""

from pathlib import Path

import anndata as ad
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_langcell import LangCellAnnotator, LangCellModel
from tests.support.paths import REPOSITORY

MINI = REPOSITORY / "hub_configs" / "langcell-mini"
ACCURACY = 0.5


@pytest.fixture(scope="module")
def annotator():
    return LangCellAnnotator.from_pretrained(MINI)


def test_it_loads_completely_in_float32():
    model, report = AutoModel.from_pretrained(MINI, output_loading_info=True)
    assert type(model) is LangCellModel
    assert model.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(MINI)
    assert len(processor.feature_extractor) == model.config.cell_config.vocab_size
    assert len(processor.tokenizer) == model.config.text_config.vocab_size


@pytest.mark.parametrize("folder", ["langcell-base", "langcell-mini"])
def test_its_code_is_linked_to_the_package(folder):
    source = REPOSITORY / "modeling_langcell" / "model"
    linked = sorted((REPOSITORY / "hub_configs" / folder).glob("*.py"))
    assert {path.name for path in linked} == {path.name for path in source.glob("*.py")} - {"__init__.py"}
    for path in linked:
        assert path.readlink() == Path("../../modeling_langcell/model", path.name)


def test_its_weights_are_small_and_safe():
    files = {path.name for path in MINI.iterdir()}
    assert (MINI / "model.safetensors").stat().st_size < 90e6
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


def test_zero_shot_accuracy_on_held_out_blood(annotator, shared):
    adata = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")
    truth = adata.obs["cell_type"].astype(str)
    annotator.annotate(adata, sorted(set(truth)))
    assert (adata.obs["langcell_cell_type"].astype(str) == truth).mean() >= ACCURACY
