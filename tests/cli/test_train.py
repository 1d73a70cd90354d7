# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The commands that train: what they need besides the package itself. Their work is tested in the rooms."""

import sys


def test_adapt_names_the_extra_that_is_missing(run, cells_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # Importing it fails.
    monkeypatch.delitem(sys.modules, "modeling_langcell.adaptation.adapt", raising=False)
    result = run("adapt", cells_file, "--label-key", "known", "--out", tmp_path / "adapter")
    assert result.exit_code == 2, result.output
    assert result.stderr == 'Error: No package peft: pip install "modeling-langcell[adapt]".\n'
    assert not (tmp_path / "adapter").exists()
