# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The training of an adaptation: the steps of a plain loop, in one process or two, with callbacks and loggers."""

import json
import os
import random
import shutil
import signal
import socket

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, get_scheduler
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellForSequenceClassification, LangCellModel
from modeling_langcell.adaptation.adapt import adapt
from modeling_langcell.adaptation.batches import CellBatches
from modeling_langcell.adaptation.config import AdaptationConfig
from modeling_langcell.adaptation.losses import ClassLoss, DescriptionLoss
from modeling_langcell.adaptation.trainer import fit
from modeling_langcell.cli.main import app
from modeling_langcell.io.example import CELL_OPTIONS, LABEL_COLUMN, load_example
from modeling_langcell.io.labels import rank_cells, read_labels
from tests.support.commands import run_python, start_python
from tests.support.paths import REPOSITORY
from tests.support.tiny import GENES, TYPES, tiny_config

MINI = REPOSITORY / "hub_configs" / "langcell-mini"


@pytest.fixture(scope="module")
def labelled() -> ad.AnnData:
    """Thirty cells of three types, eight of the first; each type expresses ten genes of its own tenfold."""
    rng = np.random.default_rng(0)
    numbers = np.repeat([0, 1, 2], [8, 11, 11])
    rates = np.full((30, len(GENES)), 0.5)
    for row, number in enumerate(numbers):
        rates[row, 10 * number : 10 * number + 10] *= 10
    obs = pd.DataFrame({"type": np.array(list(TYPES.values()))[numbers]}, index=[f"cell{row}" for row in range(30)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))


# ---------------------------------------------------------------------- the steps


def plain_loop(loss_of, training, held_out, config):
    """Trains as `fit` does, by plain PyTorch: an oracle."""
    trained = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.peak_learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * len(training)
    schedule = get_scheduler("cosine", optimizer, min(10, steps // 10), steps)
    rng = np.random.default_rng(config.seed)
    losses, best = [], None
    for _ in range(config.epochs):
        total = 0.0
        loss_of.train()
        for batch in training.shuffled(rng, config.gene_dropout):
            loss = loss_of(**batch)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(batch["truth"])
        losses.append(total / len(training.ranked))
        if held_out is not None:
            loss_of.eval()
            with torch.no_grad():
                found = [loss_of(**batch).item() * len(batch["truth"]) for batch in held_out.in_order()]
            losses[-1] = sum(found) / len(held_out.ranked)
            if losses[-1] == min(losses):
                best = [parameter.detach().clone() for parameter in trained]
            if len(losses) - 1 - int(np.argmin(losses)) >= config.patience:
                break
    if best is not None:
        for parameter, value in zip(trained, best, strict=True):
            parameter.data.copy_(value)
    return tuple(losses)


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("descriptions", {"epochs": 3, "weight_decay": 0.1}),
        ("classes", {"epochs": 3, "balanced": True}),
        ("classes", {"epochs": 40, "held_out": 0.4, "patience": 2, "learning_rate": 0.3, "gene_dropout": 0.0}),
    ],
)
def test_the_steps_are_those_of_a_plain_loop(labelled, tiny_processor, head, settings):
    config = AdaptationConfig(**{"method": "full", "head": head, "learning_rate": 1e-2, "batch_cells": 8, **settings})
    labels = read_labels(labelled, "type")
    parts = labels.held_out(config.held_out, 0) if config.held_out else (labels,)
    found = []
    for train in (plain_loop, fit):
        batches = [
            CellBatches(rank_cells(labelled, part.rows, tiny_processor.feature_extractor), part.truth, 8)
            for part in parts
        ]
        torch.manual_seed(1)
        if head == "classes":
            model = LangCellForSequenceClassification(tiny_config().cell_config)
            model.config.num_labels, model.classifier = 3, nn.Linear(16, 3)
            loss_of = ClassLoss(model, parts[0].truth, config.balanced)
        else:
            model = LangCellModel(tiny_config())
            texts = tiny_processor(text=["b cell", "monocyte", "natural killer cell"], return_tensors="pt")
            loss_of = DescriptionLoss(model, texts, temperature=0.4, matching=False, adapt_texts=True)
        losses = train(loss_of, batches[0], batches[1] if len(parts) > 1 else None, config)
        found.append((losses, model.state_dict()))
    (losses, weights), (fitted, fitted_weights) = found
    assert len(losses) > 2
    if config.held_out:
        assert len(losses) < config.epochs, "it stops early"
    assert fitted == pytest.approx(losses, abs=1e-6)
    for name, expected in weights.items():
        torch.testing.assert_close(fitted_weights[name], expected, atol=1e-6, rtol=1e-5, msg=name)


def test_random_numbers_of_the_process_are_not_seeded(labelled, tiny_checkpoint):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    adapt(tiny_checkpoint, labelled, "type", config=AdaptationConfig(epochs=1))
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected


# ---------------------------------------------------------------------- precision


@pytest.mark.long
def test_bf16_gives_most_cells_the_same_labels():
    cells = load_example()
    kinds = ("B cell", "natural killer cell", "CD14-positive monocyte")
    cells = cells[cells.obs[LABEL_COLUMN].isin(kinds)][:60].copy()
    names = {}
    for precision in ("no", "bf16"):
        config = AdaptationConfig(epochs=4, learning_rate=2e-3, precision=precision)
        adapted = adapt(MINI, cells, LABEL_COLUMN, shots=5, config=config, **CELL_OPTIONS)
        assert all(parameter.dtype == torch.float32 for parameter in adapted.model.parameters())
        assert adapted.adaptation.settings["precision"] == precision
        annotated = adapted.annotator().annotate(cells.copy(), **CELL_OPTIONS)
        names[precision] = annotated.obs["langcell_cell_type"].astype(str)
    assert (names["no"] == names["bf16"]).mean() > 0.9


def test_bf16_computes_in_bf16(labelled, tiny_checkpoint):
    losses = [
        adapt(tiny_checkpoint, labelled, "type", config=AdaptationConfig(epochs=1, precision=precision)).losses[0]
        for precision in ("no", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# ---------------------------------------------------------------------- callbacks and loggers


class Counting(TrainerCallback):
    def __init__(self, last=99):
        self.last, self.steps, self.evaluated = last, 0, []

    def on_step_end(self, args, state, control, **_):
        self.steps += 1

    def on_evaluate(self, args, state, control, metrics, **_):
        self.evaluated.append(metrics["eval_loss"])

    def on_epoch_end(self, args, state, control, **_):
        control.should_training_stop = state.epoch >= self.last


def test_callbacks_are_called_and_may_stop_the_training(labelled, tiny_checkpoint, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    callback = Counting(last=2)
    config = AdaptationConfig(epochs=5, held_out=0.2, batch_cells=8)
    adapted = adapt(tiny_checkpoint, labelled, "type", config=config, callbacks=[callback])
    assert callback.steps == 2 * 3
    assert tuple(callback.evaluated) == adapted.losses
    assert len(adapted.losses) == 2
    assert not list(tmp_path.iterdir()), "nothing is written into the working directory"
    said, errors = capfd.readouterr()
    assert not said
    assert not [line for line in errors.splitlines() if line.strip() and "Loading weights" not in line]


def test_tensorboard_gets_the_losses(labelled, tiny_checkpoint, tmp_path, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    labelled.write_h5ad(tmp_path / "cells.h5ad")
    command = ["adapt", tmp_path / "cells.h5ad", "--label-key", "type", "--model", tiny_checkpoint, "--epochs", 2]
    command += ["--held-out", 0.2, "--report-to", "tensorboard", "--log-dir", tmp_path / "logs"]
    result = CliRunner().invoke(app, list(map(str, [*command, "--out", tmp_path / "adapter"])))
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "logs").rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file)).Reload()
    assert len(events.Scalars("train/loss")) == len(events.Scalars("eval/loss")) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"here", "cells.h5ad", "logs", "adapter"}
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({}, {"report_to": "paper", "log_dir": "logs"}, "'paper' is not one of 'none', 'tensorboard', 'wandb'"),
        ({}, {"report_to": "tensorboard"}, "belong together"),
        ({}, {"log_dir": "logs"}, "belong together"),
        ({}, {"report_to": "tensorboard", "log_dir": "file/logs"}, "log_dir .* cannot be written"),
        ({"head": "prototypes"}, {"report_to": "tensorboard", "log_dir": "logs"}, "report_to needs a trained head"),
        ({"head": "prototypes"}, {"callbacks": [Counting()]}, "callbacks needs a trained head"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(labelled, tmp_path, monkeypatch, settings, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=said):
        adapt("no-checkpoint", labelled, "type", config=AdaptationConfig(**settings), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("report_to", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named(labelled, tmp_path, monkeypatch, report_to):
    monkeypatch.setattr(f"transformers.integrations.integration_utils.is_{report_to}_available", lambda: False)
    with pytest.raises(InputError, match=f"needs the package {report_to}: pip install {report_to}"):
        adapt("no-checkpoint", labelled, "type", report_to=report_to, log_dir=tmp_path / "logs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"precision": "fp8"}, {"precision": "bf16", "head": "prototypes"}])
def test_a_precision_that_does_not_fit_is_refused(settings):
    with pytest.raises(InputError, match="precision"):
        AdaptationConfig(**settings)


# ---------------------------------------------------------------------- several processes

#: Adapts twice, and saves the weights of each process.
SCRIPT = """
import json, os, sys
from pathlib import Path
import anndata as ad
import torch
from safetensors.torch import save_file
from modeling_langcell import AdaptationConfig, adapt

torch.set_num_threads(1)
checkpoint, cells, out = sys.argv[1:]
rank = os.environ.get("RANK", "0")
for name, settings in json.loads((Path(out).parent / "cases.json").read_text()).items():
    config = AdaptationConfig(epochs=3, learning_rate=1e-2, batch_cells=7, **settings)
    adapted = adapt(checkpoint, ad.read_h5ad(cells), "type", config=config, device="cpu")
    weights = {name: parameter.detach().clone() for name, parameter in adapted.model.named_parameters()}
    save_file(weights, f"{out}-{name}-{rank}.safetensors", {"losses": json.dumps(adapted.losses)})
"""
CASES = {
    "descriptions": {},
    "classes": {"head": "classes", "balanced": True, "held_out": 0.2, "patience": 1},
    "full": {"method": "full", "matching": True},
}
#: Who saves weights: a single process, and each of two.
PROCESSES = (("one", 0), ("two", 0), ("two", 1))


@pytest.fixture(scope="module")
def without_dropout(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint without dropout, which would differ between processes."""
    folder = tmp_path_factory.mktemp("without-dropout") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    for part in ("cell_config", "text_config"):
        config[part] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.e2e
def test_two_processes_get_the_model_of_one(labelled, without_dropout, tmp_path):
    labelled.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "cases.json").write_text(json.dumps(CASES))
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [tmp_path / "script.py", without_dropout, tmp_path / "cells.h5ad"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for launcher, out in ([], "one"), (torchrun, "two"):
        done = run_python(*launcher, *arguments, tmp_path / out, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == 0, done.stderr
    for name in CASES:
        files = [tmp_path / f"{out}-{name}-{rank}.safetensors" for out, rank in PROCESSES]
        one, first, second = map(load_file, files)
        assert all(torch.equal(first[parameter], second[parameter]) for parameter in one)
        losses = [json.loads(safe_open(file, "pt").metadata()["losses"]) for file in files]
        assert losses[1] == losses[2] == pytest.approx(losses[0], abs=1e-5)
        # Adam makes a step of the sum's rounding where a gradient is next to nothing.
        near = [(first[parameter] - weights).abs().flatten() < 1e-4 for parameter, weights in one.items()]
        assert torch.cat(near).float().mean() > 0.99


#: The command, with a training step that takes time.
SLOW = """
import time
from modeling_langcell.adaptation.trainer import CellTrainer
from modeling_langcell.cli.main import main

step = CellTrainer.training_step

def slow_step(*arguments, **options):
    print("step", flush=True)
    time.sleep(0.2)
    return step(*arguments, **options)

CellTrainer.training_step = slow_step
main()
"""


@pytest.fixture
def launched(labelled, without_dropout, tmp_path):
    """Starts two processes of the command, without a launcher, which would end one when the other dies."""
    labelled.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "slow.py").write_text(SLOW)
    command = ["adapt", tmp_path / "cells.h5ad", "--label-key", "type", "--model", without_dropout, "--device", "cpu"]

    def start(*options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        return [
            start_python(
                *(tmp_path / "slow.py", *command, *options, "--out", tmp_path / "adapter"),
                env=os.environ
                | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", **address},
            )
            for rank in "01"
        ]

    return start


@pytest.mark.e2e
def test_the_first_process_alone_writes_and_prints(launched, tmp_path):
    found = []
    for process in launched("--epochs", "1"):
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        found.append([line for line in said.splitlines() if line != "step"])
    assert found[0][-1] == f"Adapted: {tmp_path / 'adapter'}"
    assert not found[1]
    assert {path.name for path in tmp_path.iterdir()} == {"cells.h5ad", "slow.py", "adapter"}


@pytest.mark.e2e
@pytest.mark.parametrize("dies", [0, 1])
def test_the_death_of_a_process_is_said_by_the_other(launched, tmp_path, dies):
    pair = launched("--epochs", "1000")
    for process in pair:
        assert process.stdout.readline() == "step\n"
    killed, other = pair[dies], pair[1 - dies]
    killed.send_signal(signal.SIGKILL)
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 2, errors
    assert f"Process {dies} of 2" in errors
    assert "Run the same command again: it begins again." in errors
    assert not (tmp_path / "adapter").exists()
