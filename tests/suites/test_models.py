# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""transformers' shared tests of models and configs, with a tester for each config of the family."""

import copy
import unittest

import torch

from modeling_langcell import (
    LangCellCellConfig,
    LangCellCellModel,
    LangCellConfig,
    LangCellForMaskedLM,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellModel,
    LangCellTextConfig,
    LangCellTextModel,
)
from tests.suites.upstream import leave_out, upstream

common = upstream("transformers", "test_modeling_common")
configs = upstream("transformers", "test_configuration_common")

# As in transformers' own tables of classes, from which the tests know which have no loss and which take what labels.
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "cells": "LangCellCellModel", "texts": "LangCellTextModel"}
common.MODEL_FOR_MASKED_LM_MAPPING_NAMES = {"cells": "LangCellForMaskedLM"}
common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES = {"cells": "LangCellForSequenceClassification"}

OF_THE_TOWERS = "the outputs of the towers have them, whose tests ask for them"


class TowerTester:
    """A tiny tower, and a batch of full rows for it."""

    is_training = True
    batch_size, seq_length = 4, 7
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, config_class: type, vocab_size: int, **settings: int):
        self.config_class, self.vocab_size, self.settings = config_class, vocab_size, settings

    def get_config(self):
        return self.config_class(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            max_position_embeddings=64,
            **self.settings,
        )

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(2, 20, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# `<cls>` is not the last id, because a test takes ids away. That test also gives texts the ids that it adds to cells.
CELLS = TowerTester(LangCellCellConfig, vocab_size=43, cls_token_id=20)
TEXTS = TowerTester(LangCellTextConfig, vocab_size=99, cell_hidden_size=TowerTester.hidden_size)


class JointTester:
    """Both towers, and a batch with a text for each cell."""

    is_training = True
    batch_size, seq_length = TowerTester.batch_size, TowerTester.seq_length
    text_model_tester = TEXTS

    def get_config(self):
        return LangCellConfig(cell_config=CELLS.get_config(), text_config=TEXTS.get_config(), projection_dim=16)

    def prepare_config_and_inputs_for_common(self):
        _, cells = CELLS.prepare_config_and_inputs_for_common()
        _, texts = TEXTS.prepare_config_and_inputs_for_common()
        inputs = {f"cell_{name}": tensor for name, tensor in cells.items()} | texts
        return self.get_config(), inputs | {"return_matching": True}


class PreTrainingTester(JointTester):
    """The joint model, and a batch in which nothing is left to be drawn."""

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        del inputs["return_matching"]
        ids = inputs["cell_input_ids"]
        is_masked = torch.arange(self.seq_length) == 2
        inputs["text_index"] = torch.arange(self.batch_size)
        inputs["masked_input_ids"] = ids.masked_fill(is_masked, config.cell_config.mask_token_id)
        inputs["masked_gene_targets"] = ids.masked_fill(~is_masked, -100)
        inputs["negative_draws"] = torch.rand(self.batch_size, 2)
        return config, inputs


class ModelTests(common.ModelTesterMixin):
    """Tests of one or several classes with the same config."""

    def setUp(self):
        self.config_class = type(self.model_tester.get_config())
        self.config_tester = configs.ConfigTester(self, self.config_class, has_text_modality=not self._is_composite)

    def test_config(self):
        self.config_tester.run_common_tests()


class TestCellModels(ModelTests, unittest.TestCase):
    all_model_classes = (LangCellCellModel, LangCellForMaskedLM, LangCellForSequenceClassification)
    model_tester = CELLS


class TestTextModel(ModelTests, unittest.TestCase):
    all_model_classes = (LangCellTextModel,)
    model_tester = TEXTS


@leave_out(
    {
        "test_attention_outputs": OF_THE_TOWERS,
        "test_hidden_states_output": OF_THE_TOWERS,
        "test_retain_grad_hidden_states_attentions": OF_THE_TOWERS,
    }
)
class TestJointModel(ModelTests, unittest.TestCase):
    all_model_classes = (LangCellModel,)
    model_tester = JointTester()
    additional_model_inputs = ("input_ids",)
    _is_composite = True

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        labels = {"labels": torch.arange(JointTester.batch_size)} if return_labels else {}
        return copy.deepcopy(inputs_dict) | labels


@leave_out(
    {
        "test_hidden_states_output": OF_THE_TOWERS,
        "test_retain_grad_hidden_states_attentions": OF_THE_TOWERS,
    }
)
class TestPreTraining(ModelTests, unittest.TestCase):
    all_model_classes = (LangCellForPreTraining,)
    model_tester = PreTrainingTester()
    has_attentions = False  # It returns losses.
    _is_composite = True
