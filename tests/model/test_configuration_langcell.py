# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The configurations: defaults, validation, composition, saving."""

import copy
import dataclasses
import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions

from modeling_langcell import LangCellCellConfig, LangCellConfig, LangCellTextConfig
from modeling_langcell.model.modeling_langcell import LangCellOutput
from tests.support.tiny import tiny_config

CONFIGS = [LangCellCellConfig, LangCellTextConfig, LangCellConfig]
AUTO_MAPS = {
    LangCellCellConfig: {
        "AutoConfig": "configuration_langcell.LangCellCellConfig",
        "AutoModel": "modeling_langcell.LangCellCellModel",
        "AutoModelForMaskedLM": "modeling_langcell.LangCellForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_langcell.LangCellForSequenceClassification",
    },
    LangCellTextConfig: {
        "AutoConfig": "configuration_langcell.LangCellTextConfig",
        "AutoModel": "modeling_langcell.LangCellTextModel",
    },
    LangCellConfig: {
        "AutoConfig": "configuration_langcell.LangCellConfig",
        "AutoModel": "modeling_langcell.LangCellModel",
        "AutoModelForPreTraining": "modeling_langcell.LangCellForPreTraining",
        "AutoModelForMaskedLM": "modeling_langcell.LangCellForMaskedLMOfJoint",
        "AutoModelForSequenceClassification": "modeling_langcell.LangCellForSequenceClassificationOfJoint",
    },
}


def tiny(config_class):
    config = tiny_config(temperature=0.1, text_config={"pooling": "mean"}, cell_config={"hidden_act": "gelu"})
    sections = {LangCellCellConfig: config.cell_config, LangCellTextConfig: config.text_config}
    return sections.get(config_class, config)


class TestDefaults:
    """The published geometry (LangCell, section 3.1 and the released config.json files)."""

    def test_cell_tower(self):
        config = LangCellCellConfig()
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (12, 512, 8)
        assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (1024, 2048, 25427)
        assert (config.hidden_act, config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (
            "relu",
            0.02,
            0.02,
        )
        assert (config.pad_token_id, config.mask_token_id, config.cls_token_id) == (0, 1, 25426)
        assert config.layer_norm_eps == 1e-12
        assert config.tie_word_embeddings

    def test_text_tower(self):
        config = LangCellTextConfig()
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (12, 768, 12)
        assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (3072, 512, 30524)
        assert (config.hidden_act, config.cell_hidden_size, config.pooling) == ("gelu", 512, "cls")

    def test_joint_model(self):
        config = LangCellConfig()
        assert config.cell_config.to_dict() == LangCellCellConfig().to_dict()
        assert config.text_config.to_dict() == LangCellTextConfig().to_dict()
        assert (config.projection_dim, config.temperature, config.alpha) == (256, 0.05, 0.1)
        weights = config.masked_gene_weight, config.cell_cell_weight, config.cell_text_weight, config.matching_weight
        assert weights == (1, 1, 1, 1)
        assert config.masked_gene_probability == 0.15


class TestValidation:
    @pytest.mark.parametrize(
        ("config_class", "field", "value"),
        [
            (LangCellCellConfig, "hidden_size", "512"),
            (LangCellCellConfig, "hidden_dropout_prob", None),
            (LangCellCellConfig, "hidden_act", 3),
            (LangCellCellConfig, "tie_word_embeddings", "yes"),
            (LangCellTextConfig, "num_hidden_layers", 2.5),
            (LangCellTextConfig, "pooling", "max"),
            (LangCellTextConfig, "layer_norm_eps", "1e-12"),
            (LangCellConfig, "temperature", "hot"),
            (LangCellConfig, "projection_dim", 2.5),
            (LangCellConfig, "cell_config", 12),
            (LangCellConfig, "matching_weight", None),
        ],
    )
    def test_wrong_type(self, config_class, field, value):
        with pytest.raises(StrictDataclassError, match=field):
            config_class(**{field: value})
        with pytest.raises(StrictDataclassError, match=field):
            setattr(config_class(), field, value)

    @pytest.mark.parametrize("config_class", [LangCellCellConfig, LangCellTextConfig])
    def test_heads_divide_the_hidden_size(self, config_class):
        with pytest.raises(StrictDataclassError, match=r"hidden_size \(50\) must be a multiple .* \(7\)"):
            config_class(hidden_size=50, num_attention_heads=7)

    @pytest.mark.parametrize("tower", ["cell_config", "text_config"])
    def test_towers_are_validated(self, tower):
        with pytest.raises(StrictDataclassError, match="must be a multiple"):
            LangCellConfig(**{tower: {"hidden_size": 50, "num_attention_heads": 7}})
        with pytest.raises(StrictDataclassError, match="vocab_size"):
            LangCellConfig(**{tower: {"vocab_size": "many"}})

    def test_integers_are_accepted_for_floats(self):
        assert LangCellConfig(temperature=1, matching_weight=0).temperature == 1


class TestComposition:
    def test_towers_from_dicts(self):
        config = LangCellConfig(cell_config={"num_hidden_layers": 6}, text_config={"num_hidden_layers": 4})
        assert type(config.cell_config) is LangCellCellConfig
        assert type(config.text_config) is LangCellTextConfig
        assert (config.cell_config.num_hidden_layers, config.text_config.num_hidden_layers) == (6, 4)
        assert config.cell_config.hidden_size == 512

    def test_towers_from_configs(self):
        cell, text = LangCellCellConfig(num_hidden_layers=3), LangCellTextConfig(num_hidden_layers=2)
        config = LangCellConfig(cell_config=cell, text_config=text)
        assert (config.cell_config.num_hidden_layers, config.text_config.num_hidden_layers) == (3, 2)

    def test_no_defaults_are_shared(self):
        one, other = LangCellConfig(), LangCellConfig()
        one.cell_config.num_hidden_layers = 1
        assert other.cell_config.num_hidden_layers == 12

    @pytest.mark.parametrize("text", [{}, {"cell_hidden_size": 99}, LangCellTextConfig(cell_hidden_size=99)])
    def test_text_tower_reads_what_the_cell_tower_writes(self, text, tmp_path):
        config = LangCellConfig(cell_config={"hidden_size": 64}, text_config=text)
        assert config.text_config.cell_hidden_size == 64
        config.save_pretrained(tmp_path)
        assert LangCellConfig.from_pretrained(tmp_path).text_config.cell_hidden_size == 64

    @pytest.mark.parametrize("tied", [True, False])
    def test_tying_is_set_by_the_cell_tower(self, tied):
        assert LangCellConfig(cell_config={"tie_word_embeddings": tied}).tie_word_embeddings is tied

    def test_tying_can_be_set(self, tmp_path):
        config = LangCellConfig(tie_word_embeddings=False)
        assert config.cell_config.tie_word_embeddings is False
        config.save_pretrained(tmp_path)
        assert LangCellConfig.from_pretrained(tmp_path).tie_word_embeddings is False
        config.tie_word_embeddings = True
        assert config.cell_config.tie_word_embeddings is True

    def test_cls_is_the_last_id_unless_it_is_given(self, tmp_path):
        config = LangCellCellConfig(vocab_size=43)
        assert config.cls_token_id == 42
        config.vocab_size = 50
        config.save_pretrained(tmp_path)
        assert LangCellCellConfig.from_pretrained(tmp_path).cls_token_id == 42

    def test_outputs_that_evaluation_does_not_keep(self):
        """They are outputs of the classes, and neither losses nor logits that a metric would take."""
        outputs = {
            LangCellConfig: LangCellOutput,
            LangCellCellConfig: BaseModelOutputWithPooling,
            LangCellTextConfig: BaseModelOutputWithPoolingAndCrossAttentions,
        }
        for config_class, output in outputs.items():
            ignored = config_class().keys_to_ignore_at_inference
            assert ignored
            assert {*ignored} < {field.name for field in dataclasses.fields(output)}
            assert "keys_to_ignore_at_inference" not in config_class().to_dict()

    def test_input_embeddings_are_of_genes(self):
        config = LangCellConfig()
        assert config.get_text_config() is config.cell_config
        assert config.get_text_config(decoder=True) is config.cell_config


@pytest.mark.parametrize("config_class", CONFIGS)
class TestSaving:
    def test_round_trip(self, config_class, tmp_path):
        config = tiny(config_class)
        config.save_pretrained(tmp_path)
        for again in (config_class.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(again) is config_class
            assert again.to_diff_dict() == config.to_diff_dict()
        assert config.to_diff_dict() != config_class().to_diff_dict()

    def test_auto_map(self, config_class, tmp_path):
        """It is complete for every class, so that one folder serves every Auto class."""
        config = tiny(config_class)
        for step in range(2):
            config.save_pretrained(tmp_path / str(step))
            assert json.loads((tmp_path / str(step) / "config.json").read_text())["auto_map"] == AUTO_MAPS[config_class]
            config = config_class.from_pretrained(tmp_path / str(step))

    def test_auto_map_names_what_exists(self, config_class):
        import modeling_langcell

        for reference in AUTO_MAPS[config_class].values():
            module, name = reference.split(".")
            assert getattr(modeling_langcell, name).__module__ == f"modeling_langcell.model.{module}"

    def test_by_model_type(self, config_class):
        assert type(AutoConfig.for_model(config_class.model_type)) is config_class

    def test_copies(self, config_class):
        config = tiny(config_class)
        copied = copy.deepcopy(config)
        assert copied.to_dict() == config.to_dict()
        section = copied.cell_config if config_class is LangCellConfig else copied
        section.vocab_size = 99
        original = config.cell_config if config_class is LangCellConfig else config
        assert original.vocab_size != 99


def test_towers_of_a_joint_checkpoint(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    assert LangCellCellConfig.from_pretrained(tmp_path).to_dict() == config.cell_config.to_dict()
    assert LangCellTextConfig.from_pretrained(tmp_path).to_dict() == config.text_config.to_dict()
