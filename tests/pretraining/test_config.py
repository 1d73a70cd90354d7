# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Configuration files of pre-training runs."""

import math

import pytest
import yaml

from modeling_langcell import InputError
from modeling_langcell.pretraining.config import PretrainingConfig


@pytest.mark.parametrize(
    ("values", "overrides", "says"),
    [
        ({"corpus": "x"}, [], "output must be set"),
        ({"corpus": "x", "output": "y", "stepz": 3}, [], "unknown field"),
        ({"corpus": "x", "output": "y", "steps": "many"}, [], "steps must be a whole number"),
        ({"corpus": "x", "output": "y", "steps": 1.5}, [], "steps must be a whole number"),
        ({"corpus": "x", "output": "y", "learning_rate": "fast"}, [], "learning_rate must be a number"),
        ({"corpus": "x", "output": "y", "compile": 1}, [], "compile must be true or false"),
        ({"corpus": "x", "output": "y", "schedule": "flat"}, [], "schedule must be one of cosine, linear"),
        ({"corpus": "x", "output": "y", "accumulation": 0}, [], "accumulation must be at least 1"),
        ({"corpus": "x", "output": "y", "weight_decay": -1}, [], "weight_decay must be at least 0"),
        ({"corpus": "x", "output": "y", "panel_share": 1.5}, [], "panel_share must be between 0 and 1"),
        ({"corpus": "x", "output": "y", "steps": math.inf}, [], "steps must be a whole number"),
        ({"corpus": "x", "output": "y", "learning_rate": math.nan}, [], "learning_rate must be a number"),
        ({"corpus": "x", "output": "y", "model": None}, [], "model must map settings to values"),
        ({"corpus": 5, "output": "y"}, [], "corpus must be a text"),
        ({"corpus": "x", "output": "y", "start": 3}, [], "start must be a text"),
        (["corpus", "output"], [], "must map fields to values"),
        ("corpus", [], "must map fields to values"),
        ({"corpus": "x", "output": "y"}, ["steps"], "key=value"),
        ({"corpus": "x", "output": "y"}, ["steps=[1"], "cannot be read as YAML"),
        ({"corpus": "x", "output": "y", "steps": 4}, ["steps.x=3"], "steps holds a value, not a mapping"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, values, overrides, says):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=says):
        PretrainingConfig.from_yaml(tmp_path / "c.yaml", overrides)


def test_files_that_are_not_yaml_are_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("corpus: [a\noutput: b")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        PretrainingConfig.from_yaml(tmp_path / "c.yaml")


def test_overrides_reach_into_the_model(tmp_path):
    (tmp_path / "c.yaml").write_text("corpus: a\noutput: b\nmodel: {temperature: 0.1}\n")
    config = PretrainingConfig.from_yaml(tmp_path / "c.yaml", ["steps=7.0", "model.temperature=0.07"])
    assert (config.steps, config.model["temperature"]) == (7, 0.07)
    assert type(config.steps) is int


def test_numbers_without_a_point(tmp_path):
    (tmp_path / "c.yaml").write_text("corpus: a\noutput: b\nlearning_rate: 1e-3\n")
    assert PretrainingConfig.from_yaml(tmp_path / "c.yaml").learning_rate == 1e-3


def test_the_former_name_of_length_groups_is_read(tmp_path):
    (tmp_path / "c.yaml").write_text("corpus: a\noutput: b\npasses: 3\n")
    assert PretrainingConfig.from_yaml(tmp_path / "c.yaml").length_groups == 3
    assert PretrainingConfig.from_yaml(tmp_path / "c.yaml", ["length_groups=2"]).length_groups == 2
