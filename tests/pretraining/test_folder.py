# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The folder of a run: what is deleted at the end."""

from types import SimpleNamespace

from modeling_langcell.pretraining.folder import RunFolder


def test_only_own_files_are_removed_at_the_end(tmp_path):
    incomplete = tmp_path / f".losses.jsonl.{'0' * 32}"
    checkpoint = tmp_path / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for path in (incomplete, tmp_path / ".gitattributes", tmp_path / ".env"):
        path.touch()
    RunFolder.remove_working_files(SimpleNamespace(path=tmp_path, checkpoints=tmp_path / "checkpoints"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env", ".git", ".gitattributes"]
