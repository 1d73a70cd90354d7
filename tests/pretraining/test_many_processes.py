# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Processes that train together over gloo have the losses and gradients of one process with the whole batch."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.e2e

OBJECTIVES = ("masked_gene", "cell_cell", "cell_text", "matching")


def launch(processes, *arguments):
    """Runs a script under `accelerate launch`, with one thread per process."""
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={processes}"]
    command += ["--config_file", REPOSITORY / "hub_configs" / "accelerate" / "ddp.yaml", "--main_process_port=0"]
    # On CPUs: NCCL refuses more processes than GPUs.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*map(str, command), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_studies):
    """Returns losses and gradients of each case, from one process and from two."""
    folder = tmp_path_factory.mktemp("joint")
    geometry = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    without_dropout = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    base = {
        "corpus": str(tiny_studies / "corpus"),
        "text_tower": str(tiny_studies / "encoder"),
        "output": str(folder / "unused"),
        "max_genes": 32,
        "batch_tokens": 400,
        "length_groups": 3,
        "aspect_share": 0.5,
        "sibling_texts": 2,
    }

    def case(objectives, **settings):
        weights = {f"{name}_weight": float(name in objectives) for name in OBJECTIVES}
        towers = {"cell_config": geometry | without_dropout, "text_config": without_dropout, "projection_dim": 8}
        return base | {"model": towers | weights} | settings

    cases = {
        "all": case(OBJECTIVES),
        "cells alone": case(("masked_gene", "cell_cell")),
        "frozen texts": case(OBJECTIVES, train_text_tower=False),
        "similarity": case(("cell_text",), train_text_projection=False),
        "matching": case(("matching",), train_cell_tower=False, train_text_tower=False),
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    results = {}
    for how, processes in (("alone", 1), ("ddp", 2), ("fsdp", 2)):
        out = folder / how
        out.mkdir()
        run = launch(processes, REPOSITORY / "tests" / "support" / "joint_batch.py", folder / "cases.json", out, how)
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"all: {processes} processes" in run.stdout
        results[how] = {name: load_file(out / f"{name}.safetensors") for name in cases}
    return results


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", ["all", "cells alone", "frozen texts", "similarity", "matching"])
def test_two_processes_give_the_losses_and_gradients_of_one(found, case, how):
    one, two = found["alone"][case], found[how][case]
    assert one.keys() == two.keys()
    assert "loss" in one
    for name, expected in one.items():
        assert (two[name] - expected).abs().max() <= 1e-5, name
    gradients = [value.abs().max() for name, value in one.items() if not name.endswith("loss")]
    assert sum(gradient > 1e-4 for gradient in gradients) > len(gradients) / 2, "they are not all next to nothing"
