# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""transformers' plain `Trainer` trains, evaluates and resumes the heads, in one process and in two."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from modeling_langcell import DataCollatorForMaskedGenes, LangCellConfig
from modeling_langcell.model.objectives import IGNORED
from tests.support.paths import REPOSITORY
from tests.support.plain_trainer import GENES, NAMES, Setting, joint_losses, train_and_resume

#: Shapes of what `Trainer.predict` returns for the ten held-out cells in `n` batches, by length and vocabulary.
PREDICTIONS = {
    "classification": lambda n, *_: [[10, 3]],
    "masked genes": lambda n, genes, vocabulary: [[10, genes, vocabulary]],
    "pre-training": lambda n, *_: [[n]] * 4 + [[10, 4]],
}


@pytest.fixture
def one_process():
    """Forgets the processes that `Trainer` has set up, which are the same for all of Python's process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def in_two_processes(*arguments) -> None:
    script = REPOSITORY / "tests" / "support" / "plain_trainer.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def mini_in_two_processes(tmp_path_factory):
    """Returns the folder with what two processes found that trained langcell-mini on real cells."""
    out = tmp_path_factory.mktemp("two")
    in_two_processes("langcell-mini", out)
    return out


def assert_trained(name: str, found: dict, processes: int, genes: int, vocabulary: int, out) -> None:
    assert found["processes"] == processes
    assert len(found["losses"]) == 2
    assert np.isfinite(found["losses"]).all()
    best = int(np.argmin(found["losses"]))
    assert found["best"].endswith(f"checkpoint-{2 * (best + 1)}")
    # The best model is loaded, and evaluation draws nothing anew.
    assert found["again"] == pytest.approx([found["losses"][best]] * 2, abs=1e-6)
    assert "test_loss" in found["metrics"]
    batches = {1: 3, 2: 4}[processes]  # Losses are of batches: two rounds of a batch for each process, or three.
    assert found["predictions"] == PREDICTIONS[name](batches, genes, vocabulary)
    assert found["resumed"] == found["losses"]
    weights = [load_file(out / name / run / "checkpoint-4" / "model.safetensors") for run in ("whole", "resumed")]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_in_one_process(name, tiny_checkpoint, tmp_path, one_process):
    assert_trained(name, train_and_resume(Setting(name, tiny_checkpoint, tmp_path)), 1, 21, 43, tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("name", NAMES)
def test_langcell_mini_in_two_processes(name, mini_in_two_processes):
    found = json.loads((mini_in_two_processes / f"{name}.json").read_text())
    vocabulary = LangCellConfig.from_pretrained("langcell-mini").cell_config.vocab_size
    assert_trained(name, found, 2, GENES, vocabulary, mini_in_two_processes)


@pytest.mark.e2e
def test_two_processes_with_their_own_texts_have_the_losses_of_one(tiny_checkpoint, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    joint_losses(tiny_checkpoint, folders[0])
    in_two_processes(tiny_checkpoint, folders[1], "losses")
    for given in ("one text a cell", "own texts"):
        one, two = (load_file(folder / f"{given}.safetensors") for folder in folders)
        assert one.keys() == two.keys()
        for name, expected in one.items():
            assert (two[name] - expected).abs().max() <= 5e-5, (given, name)


def test_an_epoch_masks_other_genes(tiny_processor):
    """The same cells in another order are masked differently; in the same order alike, whatever was drawn before."""
    collator = DataCollatorForMaskedGenes(tiny_processor.feature_extractor)
    cells = [{"input_ids": [42, *np.random.default_rng(seed).permutation(40)[: 20 + seed] + 2]} for seed in range(8)]
    first, again, shuffled = collator(cells), collator(cells), collator(cells[::-1])
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["labels"], shuffled["labels"].flip(0))
    assert first["input_ids"].shape == (8, 28)
    assert first["attention_mask"].sum(dim=1).tolist() == [21 + seed for seed in range(8)]
    assert (first["labels"][first["attention_mask"] == 0] == IGNORED).all()
    assert 0.05 < (first["labels"] != IGNORED).float().mean() < 0.3
