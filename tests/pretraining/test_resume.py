# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Runs that are killed or stopped resume as if they had never been interrupted."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from modeling_langcell import InputError
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.folder import RunFolder
from modeling_langcell.pretraining.run import pretrain
from tests.support.commands import start_python
from tests.support.paths import REPOSITORY

STEPS = 40
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", "hub_configs/accelerate/ddp.yaml"]
LAUNCH += ["--num_processes=2", "--main_process_port=0"]


class Training:
    """`train.py` on a configuration, in a group of processes of its own."""

    def __init__(self, settings, *launcher):
        self.output = Path(settings["output"])
        path = self.output.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(settings))
        self.errors = self.output.with_suffix(".err")
        # Two processes want a GPU each, which NCCL insists on, or none.
        environment = ENVIRONMENT | ({"CUDA_VISIBLE_DEVICES": ""} if launcher else {})
        with open(self.errors, "w") as errors:
            self.process = start_python(
                *launcher, "train.py", path,
                cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> int:
        return self.process.wait(timeout=240)

    def signal_at(self, step: int, number: int) -> None:
        """Signals all its processes once the step is logged, or soon after."""
        while steps_logged(self.output) < step:
            assert self.process.poll() is None, self.said()
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.03))
        os.killpg(self.process.pid, number)

    def said(self) -> str:
        return self.errors.read_text()


def steps_logged(output: Path) -> int:
    log = output / "losses.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def logged(output: Path, name="losses.jsonl"):
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


@pytest.fixture
def long_settings(settings, tiny_studies):
    """All objectives, dropout, an average and held-out cells: every kind of state."""
    return settings | {
        "steps": STEPS,
        "warmup_steps": 5,
        "averaging": 0.9,
        "accumulation": 2,
        "checkpoint_every": 3,
        "held_out": str(tiny_studies / "corpus"),
        "evaluate_every": 10,
        "train_text_tower": False,
    }


def run_unbroken(settings, folder, *launcher):
    training = Training(settings | {"output": str(folder / "unbroken")}, *launcher)
    assert training.wait() == 0, training.said()
    return training.output


def assert_same_run(output, unbroken):
    assert logged(output) == logged(unbroken)
    assert [entry["step"] for entry in logged(output)] == list(range(1, STEPS + 1))
    assert logged(output, "held_out.jsonl") == logged(unbroken, "held_out.jsonl")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (output, unbroken))
    assert all((ours[name] == tensor).all() for name, tensor in theirs.items())
    assert not (output / "checkpoints").exists()


@pytest.mark.e2e
def test_three_kills_change_nothing(long_settings, tmp_path):
    unbroken = run_unbroken(long_settings, tmp_path)
    long_settings["workers"] = 1  # Batches do not depend on the process that prepares them.
    rng = random.Random()
    for step in sorted(rng.sample(range(1, STEPS), 3)):
        training = Training(long_settings)
        training.signal_at(step, signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL
    training = Training(long_settings)
    assert training.wait() == 0, training.said()
    assert_same_run(training.output, unbroken)


@pytest.mark.e2e
@pytest.mark.heavy
def test_two_stopped_processes_resume(long_settings, tmp_path):
    unbroken = run_unbroken(long_settings, tmp_path, *LAUNCH)
    settings = long_settings | {"checkpoint_every": 0}
    training = Training(settings, *LAUNCH)
    training.signal_at(STEPS // 2, signal.SIGTERM)
    assert training.wait() != 0
    assert "the same command resumes" in training.said()
    (state,) = (training.output / "checkpoints").iterdir()
    assert state.name == f"step-{steps_logged(training.output):08}"
    training = Training(settings, *LAUNCH)
    assert training.wait() == 0, training.said()
    assert_same_run(training.output, unbroken)


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_ends_with_the_status_of_the_signal(long_settings, number):
    training = Training(long_settings)
    training.signal_at(2, number)
    assert training.wait() == 128 + number
    assert "the same command resumes" in training.said()
    assert "Traceback" not in training.said()


@pytest.mark.e2e
def test_a_second_run_is_refused_while_the_first_lives(long_settings):
    training = Training(long_settings | {"steps": 4000})
    training.signal_at(2, 0)
    second = Training(long_settings)
    assert second.wait() == 2
    assert f"is being written by process {training.process.pid} on" in second.said()
    training.signal_at(2, signal.SIGKILL)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_a_launch_left_in_the_environment_is_not_waited_for(settings, monkeypatch, rank):
    monkeypatch.setattr("modeling_langcell.io.launch.JOIN_SECONDS", 0.2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(InputError, match=r"has not begun within .* unset RANK WORLD_SIZE"):
        pretrain(PretrainingConfig(**settings))
    assert not Path(settings["output"]).exists()


class TestFolders:
    def test_an_incomplete_checkpoint_is_deleted(self, settings, caplog):
        output = Path(settings["output"])
        RunFolder(PretrainingConfig(**settings)).claim()
        half = output / "checkpoints" / ".step-00000002"
        half.mkdir(parents=True)
        (half / "model.safetensors").write_bytes(b"half")
        pretrain(PretrainingConfig(**settings))
        assert f"The checkpoint {half} is incomplete: deleting it." in caplog.text
        assert [entry["step"] for entry in logged(output)] == [1, 2, 3, 4]

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["progress.json", "model.safetensors", "optimizer.bin", "average.safetensors"])
    def test_a_damaged_checkpoint_is_said(self, settings, monkeypatch, name):
        config = PretrainingConfig(**settings | {"checkpoint_every": 2, "averaging": 0.9})
        with monkeypatch.context() as context:
            context.setattr("modeling_langcell.pretraining.folder.RunFolder.save_model", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                pretrain(config)
        checkpoint = Path(settings["output"], "checkpoints", "step-00000004")
        os.truncate(checkpoint / name, (checkpoint / name).stat().st_size // 2)
        with pytest.raises(InputError, match=r"checkpoint .*step-00000004 is damaged: .*Remove it"):
            pretrain(config)
        shutil.rmtree(checkpoint)
        pretrain(config)
        assert [entry["step"] for entry in logged(Path(settings["output"]))] == [1, 2, 3, 4]

    def test_a_finished_run_is_left_alone(self, settings):
        pretrain(PretrainingConfig(**settings))
        with pytest.raises(InputError, match="finished run"):
            pretrain(PretrainingConfig(**settings))

    @pytest.mark.long
    @pytest.mark.parametrize("change", ["another corpus", "a copy"])
    def test_inputs_are_known_by_their_content(self, settings, tiny_studies, tmp_path, monkeypatch, change):
        def die(*_):
            raise KeyboardInterrupt

        corpus = tmp_path / "corpus"
        shutil.copytree(settings["corpus"], corpus)
        settings["corpus"] = str(corpus)
        with monkeypatch.context() as context:
            context.setattr("modeling_langcell.pretraining.folder.RunFolder.save_model", die)
            with pytest.raises(KeyboardInterrupt):
                pretrain(PretrainingConfig(**settings))
        if change == "a copy":
            settings["corpus"] = str(corpus.rename(tmp_path / "elsewhere"))
            pretrain(PretrainingConfig(**settings))
        else:
            manifest = corpus / "manifest.json"
            times = manifest.stat()
            text = manifest.read_text()
            checksum = json.loads(text)["shards"][0]["sha256"]
            manifest.write_text(text.replace(checksum, checksum[::-1]))
            os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))
            with pytest.raises(InputError, match=r"different settings \(corpus\)"):
                pretrain(PretrainingConfig(**settings))

    @pytest.mark.long
    def test_other_settings_are_refused(self, settings, monkeypatch):
        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr("modeling_langcell.pretraining.folder.RunFolder.save_model", die)
            with pytest.raises(KeyboardInterrupt):
                pretrain(PretrainingConfig(**settings))
        with pytest.raises(InputError, match=r"different settings.*learning_rate, steps"):
            pretrain(PretrainingConfig(**settings | {"steps": 9, "learning_rate": 1.0}))
        pretrain(PretrainingConfig(**settings | {"checkpoint_every": 1}))
