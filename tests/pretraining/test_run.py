# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training from files to a checkpoint that annotates, on three tiny studies and a tiny sentence encoder."""

import json
import math
import os
from pathlib import Path
from shutil import which

import anndata as ad
import numpy as np
import pytest
import torch
import yaml
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.swa_utils import AveragedModel

from modeling_langcell import InputError, LangCellAnnotator, LangCellModel
from modeling_langcell.checkpoint.folder import CheckpointFolder
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.run import pretrain
from modeling_langcell.publishing.checks import check
from tests.support.commands import run_python
from tests.support.paths import REPOSITORY
from tests.support.tiny import TYPES


@pytest.mark.long
def test_a_run_of_no_steps_saves_the_initialized_model(settings, tmp_path):
    settings |= {"steps": 3, "train_text_projection": False}
    begun = pretrain(PretrainingConfig(**settings | {"steps": 0, "output": str(tmp_path / "start")}))
    losses = []
    for start in (None, str(begun)):
        output = pretrain(
            PretrainingConfig(**settings | {"start": start, "output": str(tmp_path / f"from-{start is None}")})
        )
        losses.append((output / "losses.jsonl").read_text())
    assert losses[0] == losses[1] != ""


@pytest.mark.parametrize(
    ("read", "output", "said"),
    [
        ("corpus", "{corpus}", "is the same file as corpus"),
        ("corpus", "{corpus}/run", "lies in corpus"),
        ("corpus", "{folder}", "holds corpus"),
        ("text_tower", "{text_tower}/run", "lies in text_tower"),
    ],
)
def test_the_output_is_apart_from_what_is_read(settings, tiny_studies, read, output, said):
    before = {path: path.stat().st_mtime_ns for path in tiny_studies.rglob("*")}
    with pytest.raises(InputError, match=f"^output .* {said}"):
        pretrain(PretrainingConfig(**settings | {"output": output.format(folder=tiny_studies, **settings)}))
    assert {path: path.stat().st_mtime_ns for path in tiny_studies.rglob("*")} == before


def test_the_average_is_saved(settings, monkeypatch):
    seen = []
    update = AveragedModel.update_parameters

    def remember(averaged, model):
        update(averaged, model)
        seen.append(model.cell_projection.weight.detach().cpu().clone())

    monkeypatch.setattr(AveragedModel, "update_parameters", remember)
    output = pretrain(PretrainingConfig(**settings | {"steps": 3, "averaging": 0.75}))
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.75 * expected + 0.25 * weight
    assert not torch.allclose(expected, seen[-1])
    torch.testing.assert_close(LangCellModel.from_pretrained(output).cell_projection.weight.data, expected)


def test_a_frozen_text_projection_is_not_trained(settings, tmp_path):
    settings |= {"train_text_projection": False, "train_text_tower": False, "steps": 2}
    first = LangCellModel.from_pretrained(pretrain(PretrainingConfig(**settings)))
    more = settings | {"learning_rate": 0.1, "output": str(tmp_path / "more")}
    second = LangCellModel.from_pretrained(pretrain(PretrainingConfig(**more)))
    assert torch.equal(first.text_projection.weight, second.text_projection.weight)
    assert not torch.equal(first.cell_projection.weight, second.cell_projection.weight)


def test_the_record_names_no_folder(settings, tiny_studies, tmp_path, monkeypatch):
    """Wherever the inputs lie, on this machine or beside the project, only their names travel with the checkpoint."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    relative = {"corpus": os.path.relpath(settings["corpus"]), "text_tower": os.path.relpath(settings["text_tower"])}
    output = pretrain(PretrainingConfig(**settings | relative | {"steps": 1}))
    (run,) = json.loads((output / "training.json").read_text())["runs"]
    assert (run["config"]["corpus"], run["config"]["text_tower"]) == ("corpus", "encoder")


@pytest.mark.long
def test_a_run_learns_and_its_checkpoint_annotates(settings, tiny_studies):
    settings |= {"steps": 300, "train_text_tower": False, "gene_dropout": 0.1, "ancestor_share": 0.0}
    settings["saved_dtype"] = "float16"
    settings["model"] |= {"masked_gene_weight": 0, "cell_cell_weight": 0, "matching_weight": 0}
    output = pretrain(PretrainingConfig(**settings))
    losses = [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in losses] == list(range(1, 301))
    text_loss = [entry["cell_text_loss"] for entry in losses]
    assert np.mean(text_loss[-10:]) < 0.5 * np.mean(text_loss[:5])
    (run,) = json.loads((output / "training.json").read_text())["runs"]
    assert run["config"]["steps"] == 300
    assert run["config"]["corpus"] == "corpus"  # And not where on this machine.
    assert run["corpus"]["cells"] == 120
    assert [source["kept"] for source in run["corpus"]["sources"]] == [40, 40, 40]
    assert run["compute"]["seconds"] > 0
    check(CheckpointFolder(output))  # It could be published.

    annotator = LangCellAnnotator.from_pretrained(output)
    assert type(annotator.model) is LangCellModel
    held_out = ad.read_h5ad(tiny_studies / "train" / "study0.h5ad")
    held_out = held_out[held_out.obs["cell_type_ontology_term_id"].isin(list(TYPES)).to_numpy()].copy()
    annotator.annotate(held_out, list(TYPES.values()), alpha=1.0)
    truth = held_out.obs["cell_type_ontology_term_id"].map(TYPES).astype(str)
    assert (held_out.obs["langcell_cell_type"].astype(str) == truth).mean() > 0.7
    # The checkpoint knows the descriptions that it learnt from others.
    annotator.model.config.relatives_weight = 1.0
    assert annotator.model.config.n_known_types == len(TYPES)
    assert annotator.scorer(list(TYPES.values())).relatives is None
    assert annotator.scorer(["hepatocyte"]).relatives is not None


@pytest.mark.parametrize("trained", [True, False])
def test_cells_alone_leave_no_types_where_the_tower_changes(settings, tmp_path, trained):
    first = pretrain(PretrainingConfig(**settings | {"steps": 1}))
    more = settings | {"start": str(first), "output": str(tmp_path / "more"), "steps": 1, "train_text_tower": False}
    more |= {"train_cell_tower": trained, "model": {"cell_text_weight": 0, "matching_weight": 0, "cell_cell_weight": 0}}
    before = LangCellModel.from_pretrained(first)
    after = LangCellModel.from_pretrained(pretrain(PretrainingConfig(**more)))
    assert before.config.n_known_types > 0
    assert after.config.n_known_types == (0 if trained else before.config.n_known_types)
    assert (after.known_cells is None) == trained


def test_a_second_run_continues_the_first(settings, tmp_path):
    first = pretrain(PretrainingConfig(**settings))
    more = settings | {"start": str(first), "output": str(tmp_path / "more"), "train_text_tower": False}
    more |= {"train_cell_tower": False, "model": {"matching_weight": 0.5}}
    second = pretrain(PretrainingConfig(**more))
    before, after = LangCellModel.from_pretrained(first), LangCellModel.from_pretrained(second)
    assert after.config.matching_weight == 0.5
    runs = json.loads((second / "training.json").read_text())["runs"]
    assert [run["config"]["start"] for run in runs] == [None, first.name]
    changed = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    assert changed, "something is trained"
    assert not [name for name in changed if name.startswith("cell_model.")]
    assert not [name for name in changed if name.startswith("text_model.") and ".crossattention." not in name]


def test_a_missing_corpus_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no corpus"):
        pretrain(PretrainingConfig(corpus=str(tmp_path / "absent"), output=str(tmp_path / "run")))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {f"{name}_weight": 0 for name in ("masked_gene", "cell_cell", "cell_text", "matching")}},
        {"model": {"cell_text_weight": 0, "masked_gene_weight": 0, "matching_weight": 0}, "train_cell_tower": False},
    ],
)
def test_runs_that_would_train_nothing_are_refused(settings, changes):
    settings["model"] |= changes.pop("model")
    with pytest.raises(InputError, match="Nothing would be trained"):
        pretrain(PretrainingConfig(**settings | changes))
    assert not (Path(settings["output"]) / "run.json").exists()


def test_an_output_that_cannot_be_written(settings, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        pretrain(PretrainingConfig(**settings | {"output": str(tmp_path / "file" / "run")}))
    assert (tmp_path / "file").read_text() == "mine"


def test_train_py_as_a_process(settings, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    script = REPOSITORY / "train.py"
    run = run_python(script, tmp_path / "c.yaml", "steps=2")
    assert run.returncode == 0, run.stderr
    assert f"Checkpoint: {settings['output']}" in run.stdout
    run = run_python(script, tmp_path / "no.yaml")
    assert run.returncode == 2
    assert "No configuration" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("mini", ["stage1", "stage2", "matching", "genes"]),
        ("small", ["stage1", "stage2"]),
        ("base", ["stage1", "stage2"]),
    ],
)
def test_shipped_configurations_run(settings, tiny_studies, tmp_path, model, stages):
    """One step of each stage on the tiny studies, from random towers instead of the real checkpoints."""
    small = {"corpus": settings["corpus"], "held_out": settings["corpus"], "text_tower": settings["text_tower"]}
    small |= {"steps": 1, "batch_tokens": 400, "workers": 0, "precision": "no", "cell_tower": None, "max_tokens": 64}
    if model == "mini":
        small["gene_names_from"] = settings["gene_names_from"]
    start = None
    for stage in stages:
        own = {"output": str(tmp_path / stage)} | ({"start": start, "text_tower": None} if start else {})
        overrides = [f"{name}={yaml.safe_dump(value).split()[0]}" for name, value in (small | own).items()]
        path = REPOSITORY / "hub_configs" / "pretraining" / f"{model}-{stage}.yaml"
        start = str(pretrain(PretrainingConfig.from_yaml(path, overrides)))
    trained = LangCellModel.from_pretrained(start)
    assert trained.config.cell_config.num_hidden_layers == {"mini": 1, "small": 6, "base": 12}[model]
    runs = json.loads((tmp_path / stages[-1] / "training.json").read_text())["runs"]
    assert len(runs) == len(stages)


def test_a_finished_checkpoint_is_pushed(hub, run, settings, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    code, _, errors = run(REPOSITORY / "train.py", tmp_path / "c.yaml", "push_to=tester/tiny")
    assert code == 0, errors
    pushed = hub.repositories["tester/tiny"]
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "training.json",
        "README.md",
    } <= pushed.keys()
    assert not [name for name in pushed if name.endswith(".jsonl") or name.startswith(("checkpoints", "tensor"))]
    check = "from modeling_langcell import LangCellAnnotator as A; print(A.from_pretrained('tester/tiny').model)"
    code, printed, errors = run("-c", check)
    assert code == 0, errors
    assert "LangCellModel" in printed


def test_a_run_killed_before_its_push_still_pushes(hub, run, settings, tmp_path):
    """It pushes nothing but the checkpoint, whatever a killed process left beside it."""
    output = Path(settings["output"])
    kill = "import os, sys, modeling_langcell.pretraining.run as p; p._finish = lambda _: os.kill(os.getpid(), 9)"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings | {"push_to": "tester/tiny", "checkpoint_every": 1}))
    train = f"import train; sys.exit(train.main([{str(tmp_path / 'c.yaml')!r}]))"
    code, _, errors = run("-c", f"{kill}; {train}")
    assert code == -9, errors
    assert (output / "training.json").exists()
    assert hub.repositories["tester/tiny"].keys() == {".gitattributes"}
    (output / ".losses.jsonl.half").write_text("half")
    weights = (output / "model.safetensors").stat().st_mtime_ns
    code, _, errors = run("-c", f"import sys; {train}")
    assert code == 0, errors
    assert (output / "model.safetensors").stat().st_mtime_ns == weights
    pushed = hub.repositories["tester/tiny"]
    assert {"model.safetensors", "processor_config.json", "training.json"} <= pushed.keys()
    assert not [name for name in pushed if "jsonl" in name or name.startswith(("run", "checkpoints"))]
    assert not (output / "checkpoints").exists()
    assert not (output / "run.json").exists()


def test_a_repository_of_others_is_refused_before_training(hub, run, settings, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    hub.of_others.add("somebody/tiny")
    code, _, errors = run(REPOSITORY / "train.py", tmp_path / "c.yaml", "push_to=somebody/tiny")
    assert code == 2, errors
    assert "push_to: somebody/tiny cannot be pushed to" in errors
    assert not (tmp_path / "run" / "losses.jsonl").exists()


@pytest.mark.parametrize("name", ["tester/tiny", "not a name"])
def test_an_unusable_repository_is_refused_before_training(run, settings, tmp_path, name):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    code, _, errors = run(REPOSITORY / "train.py", tmp_path / "c.yaml", f"push_to={name}", environment=unreachable)
    assert code == 2, errors
    assert f"push_to: {name} cannot be pushed to" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "losses.jsonl").exists()


def test_a_loss_that_is_not_finite_ends_the_run(settings):
    with pytest.raises(InputError, match="lower learning_rate"):
        pretrain(PretrainingConfig(**settings | {"learning_rate": 1e30, "max_gradient_norm": 1e30, "steps": 20}))


def losses(settings, tmp_path, **changes):
    """Returns the loss of each step of a run with some settings changed."""
    AcceleratorState._reset_state()  # A process keeps its first precision.
    output = pretrain(PretrainingConfig(**settings | {"output": str(tmp_path / "-".join(["run", *changes]))} | changes))
    return [json.loads(line)["loss"] for line in (output / "losses.jsonl").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-5),
        ({"length_groups": 1}, 1e-4),
        ({"workers": 1}, 0),
        ({"precision": "bf16"}, 0.1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_the_way_of_computing_changes_losses_little(settings, tmp_path, changes, tolerance):
    for tower in ("cell_config", "text_config"):  # Dropout depends on how the cells are grouped.
        settings["model"][tower] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    expected = losses(settings, tmp_path)
    assert losses(settings, tmp_path, **changes) == pytest.approx(expected, rel=tolerance)
    AcceleratorState._reset_state()


@pytest.mark.skipif(not which("g++"), reason="torch.compile needs a compiler")
@pytest.mark.e2e
def test_compiled_towers_compute_the_same(settings, tmp_path):
    settings |= {"steps": 2, "length_groups": 1}
    settings["model"] |= {"cell_text_weight": 0, "matching_weight": 0}
    settings["model"]["cell_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    expected = losses(settings, tmp_path)
    assert losses(settings, tmp_path, compile=True) == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_batches_are_accumulated(settings, tmp_path):
    """A step of two batches has the mean of their losses, and moves on along the mean of their gradients."""
    settings |= {"steps": 2, "learning_rate": 0.0}
    settings["model"]["cell_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings["model"]["text_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    one, two = losses(settings, tmp_path)
    both, _ = losses(settings, tmp_path, accumulation=2)
    assert both == pytest.approx((one + two) / 2, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_warms_up_and_decays(settings, monkeypatch, schedule):
    rates = []
    step = AcceleratedOptimizer.step
    monkeypatch.setattr(
        AcceleratedOptimizer, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self)
    )
    pretrain(
        PretrainingConfig(**settings | {"steps": 6, "warmup_steps": 2, "learning_rate": 0.1, "schedule": schedule})
    )
    assert rates[:3] == pytest.approx([0.0, 0.05, 0.1])
    shares = {"linear": [1, 0.75, 0.5, 0.25], "cosine": [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]}
    assert rates[2:] == pytest.approx([0.1 * share for share in shares[schedule]])


@pytest.mark.long
def test_losses_are_written_to_tensorboard(settings):
    output = pretrain(PretrainingConfig(**settings | {"held_out": settings["corpus"], "evaluate_every": 2}))
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    (loss,) = [tag for tag in events.Tags()["scalars"] if tag == "losses/loss"]
    written = [json.loads(line)["loss"] for line in (output / "losses.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars(loss)] == pytest.approx(written)
    assert [event.step for event in events.Scalars("held_out/cell_to_text_r1")] == [2, 4]
