# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""langcell-mini as other libraries place, hook and quantize it: every way of computing gives the same."""

import copy
import os
import subprocess
import sys

import anndata as ad
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from transformers import AutoModel, AutoProcessor

from modeling_langcell import LangCellAnnotator
from modeling_langcell.model.packed_langcell import PackedSequences
from tests.support.paths import REPOSITORY

LABELS = ["B cell", "T cell", "monocyte"]
TEXTS = ["cell type: B cell.", "cell type: CD14-positive monocyte."]


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained("langcell-mini", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained("langcell-mini")


@pytest.fixture(scope="module")
def blood(shared):
    return ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[:24].copy()


@pytest.fixture(scope="module")
def batch(processor, blood):
    return processor(cells=blood[:4], text=TEXTS, max_length=48, return_tensors="pt")


@torch.no_grad()
def all_calls(model, batch):
    """Computes with a model in all the ways in which the package and users do."""
    ids, mask = batch["cell_input_ids"], batch["cell_attention_mask"]
    texts = batch["input_ids"], batch["attention_mask"]
    cells = PackedSequences(mask.sum(dim=1).tolist())
    out = model(**batch, return_matching=True)
    packed = model.cell_model(ids[mask == 1][None], **cells.arguments)
    packed_texts = PackedSequences(texts[1].sum(dim=1).tolist())
    words = texts[0][texts[1] == 1][None]
    chosen = [[0, 1]] * len(ids)
    return {
        "matching": out.matching_logits,
        "similarity": out.logits_per_cell,
        "cells": model.cell_model(ids, mask, pooled_only=True).pooler_output,
        "texts": model.text_model(*texts, pooled_only=True).pooler_output,
        "cells end to end": packed.pooler_output,
        "texts end to end": model.text_model(words, pooled_only=True, **packed_texts.arguments).pooler_output,
        "pairs end to end": model.match_packed(packed.last_hidden_state, cells, words, packed_texts, chosen),
    }


@pytest.fixture(scope="module")
def expected(model, batch):
    return all_calls(model, batch)


def assert_same(found, expected, atol=2e-5):
    for call, value in expected.items():
        torch.testing.assert_close(
            found[call], value, atol=atol, rtol=1e-5, msg=lambda said, call=call: f"{call}: {said}"
        )


def offload(how: str, model, folder):
    """Returns a model of which accelerate keeps weights elsewhere until they are needed."""
    if how == "device map":
        places = {name: "cpu" for name, _ in model.named_children()} | {"cell_model": "disk", "matching_head": "disk"}
        places |= {name: "cpu" for name, _ in model.named_buffers(recurse=False)}
        return AutoModel.from_pretrained(
            "langcell-mini", device_map=places, offload_folder=folder, dtype=torch.float32
        ).eval()
    model = copy.deepcopy(model)
    return cpu_offload(model, "cpu") if how == "cpu" else disk_offload(model, str(folder), "cpu")


@pytest.mark.long
@pytest.mark.parametrize("how", ["cpu", "disk", "device map"])
def test_offloaded_weights(how, model, processor, blood, batch, expected, tmp_path):
    offloaded = offload(how, model, tmp_path)
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    assert_same(all_calls(offloaded, batch), expected)
    answers = LangCellAnnotator(offloaded, processor).annotate(blood.copy(), LABELS).obs["langcell_cell_type"]
    usual = LangCellAnnotator(model, processor).annotate(blood.copy(), LABELS).obs["langcell_cell_type"]
    assert answers.astype(str).tolist() == usual.astype(str).tolist()


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_every_layer_run(hook, model, batch, expected):
    hooked, seen = copy.deepcopy(model), set()
    for name, layer in hooked.named_modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            getattr(layer, hook)(lambda *_, name=name: seen.add(name))
    assert_same(all_calls(hooked, batch), expected)
    assert seen == {name for name, layer in hooked.named_modules() if isinstance(layer, (nn.Linear, nn.Embedding))}


def test_replaced_forwards_run(model, batch, expected):
    changed = copy.deepcopy(model)
    layer = changed.cell_model.encoder.layer[-1].attention.self.value
    layer.forward = lambda states: nn.Linear.forward(layer, states) + 1
    found = all_calls(changed, batch)
    assert (found["cells"] - expected["cells"]).abs().max() > 1e-2
    torch.testing.assert_close(found["cells end to end"], found["cells"], atol=2e-5, rtol=1e-5)


#: Quantizes langcell-mini, in a process of its own, and prints the smallest cosines with the usual embeddings.
QUANTIZE = """
import copy, sys
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from modeling_langcell import LangCellModel

inputs = torch.load(sys.argv[1])
model = LangCellModel.from_pretrained("langcell-mini", dtype=torch.float32).eval()
for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
    quantized = copy.deepcopy(model)
    quantize_(quantized, config)
    assert type(quantized.cell_model.encoder.layer[0].output.dense.weight) is not torch.nn.Parameter
    with torch.no_grad():
        outputs = [one(**inputs, return_matching=True) for one in (model, quantized)]
    for name in ("cell_embeds", "text_embeds"):
        print(torch.cosine_similarity(*(output[name] for output in outputs)).min().item())
    print(1 - (outputs[0].matching_logits.softmax(-1) - outputs[1].matching_logits.softmax(-1)).abs().max().item())
"""


@pytest.mark.e2e
def test_int8_weights_of_torchao(batch, tmp_path):
    """torchao is installed for this test alone: wherever it is installed, transformers imports it, which it tells."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "ao"), "torchao"]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        if os.environ.get("LANGCELL_REQUIRE_INDEX"):
            pytest.fail(installed.stderr)
        pytest.skip("no package index to install torchao from")
    torch.save(dict(batch), tmp_path / "batch.pt")
    path = os.pathsep.join([str(tmp_path / "ao"), str(REPOSITORY)])
    command = [sys.executable, "-c", QUANTIZE, str(tmp_path / "batch.pt")]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = [float(line) for line in ran.stdout.split()]
    assert len(found) == 6
    assert min(found[0], found[1], found[3], found[4]) > 0.99, found
    assert min(found[2], found[5]) > 0.8, found
