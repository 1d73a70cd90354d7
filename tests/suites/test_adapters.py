# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""peft's shared tests of every adapter method, on the family's towers and classifier in place of models of the Hub."""

import pytest
import torch

from modeling_langcell import LangCellCellModel, LangCellForSequenceClassification, LangCellTextModel
from tests.suites.upstream import leave_out, upstream
from tests.support.tiny import tiny_config

features = upstream("peft", "test_feature_extraction_models")
classification = upstream("peft", "test_seq_classifier")

#: A random model by the name of its folder, which stands in the tests for an id on the Hub.
MODELS = {
    "cell-tower": lambda config: LangCellCellModel(config.cell_config),
    "text-tower": lambda config: LangCellTextModel(config.text_config),
    "classifier": lambda config: LangCellForSequenceClassification(config.cell_config),
}
# The tests were given these lists.
features.PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST[:] = ["cell-tower", "text-tower"]
classification.PEFT_SEQ_CLS_MODELS_TO_TEST[:] = ["classifier"]

#: Methods that do not apply, each with its reason.
LEFT_OUT = {
    "PrefixTuningConfig": "the towers take no past keys and values",
    "ShadowConfig": "it is for decoders; peft leaves it out for BERT too",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of the saved models."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        make(tiny_config()).save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def _that_apply(request, models, monkeypatch):
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    method = getattr(params.get("config_cls"), "__name__", None)
    if method in LEFT_OUT:
        pytest.skip(LEFT_OUT[method])
    monkeypatch.chdir(models)


class TestFeatures(features.TestPeftFeatureExtractionModel):
    pass


@leave_out({"test_prompt_tuning_text_prepare_for_training": "cells have no tokenizer"})
class TestClassifier(classification.TestSequenceClassificationModels):
    pass
