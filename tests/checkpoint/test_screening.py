# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A checkpoint and an adapter of others are checked before transformers and PEFT read them."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.numpy import load_file, save_file
from torch import nn

from modeling_langcell import InputError
from modeling_langcell.checkpoint.adapters import CELL_MODULES, TEXT_MODULES, require_own_adapter
from modeling_langcell.checkpoint.loading import load_checkpoint
from modeling_langcell.checkpoint.screening import require_harmless
from modeling_langcell.checkpoint.weights import require_weights_for


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "mine")


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(folder, says):
    with pytest.raises(InputError, match=says):
        load_checkpoint(folder)


def test_an_adapter_beside_the_weights_is_not_applied(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(folder, r"holds an adapter \(adapter_config.json\) beside the model")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"num_labels": 10**9}, "num_labels is above"),
        ({"cell_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is above 256"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config is not for a LangCell"),
        ({"text_config": {"transformers_weights": "a.safetensors"}}, "transformers_weights is not for a LangCell"),
    ],
)
def test_entries_of_a_config(folder, entries, says):
    edit(folder / "config.json", **entries)
    refused(folder, says)


def test_links(folder, tmp_path):
    """Only the Hub's cache has links, to its own blobs."""
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    require_harmless(snapshot, snapshot)
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    refused(folder, r"config\.json is a link to a file outside the folder")


def test_tokenizers(folder):
    edit(folder / "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""})
    refused(folder, r"tokenizer\.json is not the tokenizer of a BERT: its normalizer is of the type 'Replace'")


def test_padding_to_a_length_that_a_text_may_have(folder):
    padding = {"strategy": {"Fixed": 128}, "pad_to_multiple_of": None}
    edit(folder / "tokenizer.json", padding=padding)
    require_harmless(folder, folder)
    edit(folder / "tokenizer.json", padding=padding | {"strategy": {"Fixed": 10**10}})
    refused(folder, "pads texts to more than")


def test_weights_that_are_far_too_few(tmp_path):
    save_file({"a": np.zeros((10, 10), np.float32)}, tmp_path / "model.safetensors")
    require_weights_for(lambda: nn.Linear(10, 10), tmp_path, "mine")
    with pytest.raises(InputError, match=r"mine: config.json asks for 10,000,000,000 weights, and there are 100"):
        require_weights_for(lambda: nn.Linear(100_000, 100_000, bias=False), tmp_path, "mine")


def test_weights_of_another_type(folder):
    weights = {name: value.astype(bool) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    refused(folder, r"model\.safetensors holds numbers of the type BOOL")


class TestAdapters:
    @pytest.fixture
    def adapter(self, tmp_path):
        lora = LoraConfig(r=2, target_modules=f"{CELL_MODULES}|{TEXT_MODULES}", modules_to_save=["cell_projection"])
        lora.save_pretrained(tmp_path)
        weights = {"base_model.model.cell_model.encoder.layer.0.output.dense.lora_A.weight": np.zeros((2, 4))}
        save_file(weights, tmp_path / "adapter_model.safetensors")
        return tmp_path

    def test_one_of_the_package(self, adapter):
        require_own_adapter(adapter, "mine")

    @pytest.mark.parametrize(
        ("entries", "says"),
        [
            ({"target_modules": "((a+)+)+$"}, "target_modules"),
            ({"target_modules": ["query"]}, "target_modules"),
            ({"exclude_modules": "((a+)+)+$"}, "exclude_modules"),
            ({"rank_pattern": {"((a+)+)+$": 1}}, "rank_pattern"),
            ({"modules_to_save": [["cell_model"]]}, "modules_to_save"),
            ({"r": 10**9}, "not from 1 to 1024"),
            ({"r": 3}, "names the rank 3"),
            ({"peft_type": "VERA"}, "not LORA"),
        ],
    )
    def test_one_of_others(self, adapter, entries, says):
        edit(adapter / "adapter_config.json", **entries)
        with pytest.raises(InputError, match=rf"adapter_config\.json of mine .*{says}"):
            require_own_adapter(adapter, "mine")


def test_a_meta_model_takes_no_memory(tmp_path):
    save_file({"a": np.zeros(10, np.float32)}, tmp_path / "model.safetensors")
    built = []

    def build():
        built.append(nn.Linear(10, 10))
        return built[0]

    require_weights_for(build, tmp_path, "mine")
    assert built[0].weight.device == torch.device("meta")
