# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The folder of a run: what it may hold before, what is deleted at the end, and what is said of damage."""

import json
from pathlib import Path

import pytest

from modeling_langcell import InputError
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.folder import RunFolder
from modeling_langcell.pretraining.resume import complete_checkpoints
from modeling_langcell.pretraining.run import pretrain

#: What a run has written into its folder, some of it before it was killed.
OWN = (
    "checkpoints/step-00000003/model.safetensors",
    "checkpoints/step-123456789/model.safetensors",
    "checkpoints/.step-00000006/optimizer.bin",
    f".losses.jsonl.{'0' * 32}",
    f".losses.jsonl.{'0' * 32}.lock",
    f".run.json.{'0' * 32}",
    f".run.json.{'0' * 32}.lock",
)
#: What nobody but its owner may delete.
FOREIGN = (
    ".env",
    ".git/config",
    f".notes.txt.{'0' * 32}",
    f".notes.txt.{'0' * 32}.lock",
    f".losses.jsonl.{'1' * 32}",
    "checkpoints/notes.txt",
    "checkpoints/step-3/mine",
    "checkpoints/step-final/mine",
    "checkpoints/.step-mine/mine",
    "checkpoints/step-00000009",
)


@pytest.fixture
def folder(settings):
    return RunFolder(PretrainingConfig(**settings))


def write(folder: Path, *names: str, content: str = "mine") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_own_names_are_removed_at_the_end(folder):
    write(folder.path, *OWN, *FOREIGN)
    (folder.checkpoints / "step-00000012").symlink_to(folder.path / ".git")
    folder.remove_working_files()
    assert files(folder.path) == {*FOREIGN}
    assert (folder.checkpoints / "step-00000012").is_symlink()


def test_the_folder_of_checkpoints_goes_with_the_last_of_them(folder):
    write(folder.path, *OWN)
    folder.remove_working_files()
    assert list(folder.path.iterdir()) == []


def test_checkpoints_are_ordered_by_their_steps(folder):
    write(folder.path, *OWN, *FOREIGN)
    assert [path.name for path in complete_checkpoints(folder.checkpoints)] == ["step-00000003", "step-123456789"]


@pytest.mark.parametrize("name", ["config.json", "losses.jsonl", "checkpoints/step-00000002/progress.json", "notes"])
def test_a_new_run_replaces_nothing(settings, name):
    write(Path(settings["output"]), name, ".env")
    with pytest.raises(InputError, match="is not empty, and holds no unfinished run: choose a new folder"):
        pretrain(PretrainingConfig(**settings))
    assert files(Path(settings["output"])) == {name, ".env"}


def test_hidden_files_may_be_there_before_and_stay(settings):
    write(Path(settings["output"]), ".env", ".git/config")
    pretrain(PretrainingConfig(**settings))
    assert {".env", ".git/config", "model.safetensors"} <= files(Path(settings["output"]))


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, "\udcff"])
def test_a_damaged_record_of_the_run(folder, content):
    folder.claim()
    (folder.path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"run\.json"):
        folder.is_trained()


def test_damaged_lines_are_left_out_of_the_logs(folder):
    folder.path.mkdir()
    lines = [b'{"step": 1}\n', b"[1]}\n", b'{"step": "x"}\n', b'\xff{"step": 1}\n', b'{"step": 2}\n', b'{"step": 9}\n']
    (folder.path / "losses.jsonl").write_bytes(b"".join(lines) + b'{"ste')
    folder.truncate_logs(2)
    assert [json.loads(line)["step"] for line in (folder.path / "losses.jsonl").open()] == [1, 2]


@pytest.mark.parametrize("content", ["", "[1]", '{"runs": 1}', "{"])
def test_a_damaged_record_of_the_start_is_found_before_the_training(settings, tmp_path, content):
    start = pretrain(PretrainingConfig(**settings | {"steps": 0, "output": str(tmp_path / "start")}))
    (start / "training.json").write_text(content)
    later = {name: settings[name] for name in ("corpus", "output", "max_genes", "batch_tokens")}
    with pytest.raises(InputError, match=r"training\.json"):
        pretrain(PretrainingConfig(**later, steps=1, start=str(start)))
    assert not Path(settings["output"]).exists()


def test_an_input_that_cannot_be_read_is_not_said_of_the_output(folder):
    with (
        pytest.raises(InputError, match=r"^/elsewhere cannot be read or written: Permission denied\.$"),
        folder.writing(),
    ):
        raise PermissionError(13, "Permission denied", "/elsewhere")
    with pytest.raises(InputError, match=r"/run cannot be written: No space"), folder.writing():
        raise OSError(28, "No space left on device")
