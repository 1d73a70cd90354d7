# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The names of the package's checkpoints, in transformers' own classes and in ours, from any folder."""

import os
import subprocess
import sys

import pytest
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer

import modeling_langcell
from modeling_langcell import InputError
from modeling_langcell.checkpoint.builtin import BASE, MINI, resolve_checkpoint
from tests.support.paths import REPOSITORY


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder that is no checkout, and no Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        (AutoModel, "LangCellModel"),
        (AutoConfig, "LangCellConfig"),
        (AutoProcessor, "LangCellProcessor"),
        (AutoFeatureExtractor, "LangCellFeatureExtractor"),
        (AutoTokenizer, "BertTokenizer"),
        (transformers.AutoModelForPreTraining, "LangCellForPreTraining"),
        (modeling_langcell.LangCellModel, "LangCellModel"),
        (modeling_langcell.LangCellCellModel, "LangCellCellModel"),
        (modeling_langcell.LangCellProcessor, "LangCellProcessor"),
        (modeling_langcell.LangCellFeatureExtractor, "LangCellFeatureExtractor"),
    ],
)
def test_langcell_mini_is_loaded_by_its_name(loaded, expected):
    assert type(loaded.from_pretrained(MINI)).__name__ == expected


#: Loads a class first of all, in a process that ends with 3 as soon as it asks for the address of a host.
LOAD = """
import os, sys
sys.addaudithook(lambda event, _: os._exit(3) if event == "socket.getaddrinfo" else None)
module, name = sys.argv[1:]
getattr(__import__(module), name).from_pretrained("langcell-mini")
"""
CLASSES = [
    ("modeling_langcell", "LangCellConfig"),
    ("modeling_langcell", "LangCellFeatureExtractor"),
    ("modeling_langcell", "LangCellProcessor"),
    ("modeling_langcell", "LangCellModel"),
    ("modeling_langcell", "LangCellForMaskedLM"),
    ("modeling_langcell", "LangCellAnnotator"),
    ("transformers", "AutoProcessor"),
    ("transformers", "AutoModel"),
]


@pytest.mark.long
@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_a_first_import_asks_no_network(module, name, tmp_path):
    """Somebody else might own the name on the Hub."""
    program = LOAD if module == "modeling_langcell" else "import modeling_langcell\n" + LOAD
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    command = [sys.executable, "-c", program, module, name]
    ran = subprocess.run(command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(REPOSITORY)}, check=False)
    assert ran.returncode == 0


def test_a_pipeline_is_made_by_its_name():
    assert transformers.pipeline("zero-shot-cell-annotation", model=MINI).task == "zero-shot-cell-annotation"


def test_a_folder_of_the_same_name_comes_first(tmp_path):
    AutoConfig.from_pretrained(BASE).save_pretrained(tmp_path / MINI)
    assert AutoConfig.from_pretrained(MINI).cell_config.hidden_size == 512


def test_langcell_base_is_a_configuration():
    assert AutoConfig.from_pretrained(BASE).cell_config.hidden_size == 512
    for loaded in (AutoModel, AutoProcessor, modeling_langcell.LangCellModel):
        with pytest.raises(InputError, match=f"{BASE} is only a configuration, .* take {MINI}"):
            loaded.from_pretrained(BASE)


@pytest.mark.parametrize("name", ["langcell-mimi", "LangCell-Mini", "langcell_mini", "langcellmini"])
def test_a_misspelt_name_gets_the_closest(name):
    for loaded in (AutoModel, AutoConfig):
        with pytest.raises(InputError, match=f"no checkpoint '{name}'. Did you mean 'langcell-mini'"):
            loaded.from_pretrained(name)


@pytest.mark.parametrize("name", ["bert-base-uncased", "someone/langcell-mini", "./langcell-mimi"])
def test_other_names_are_left_to_transformers(name):
    assert resolve_checkpoint(name) == name
