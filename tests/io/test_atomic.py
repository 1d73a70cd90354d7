# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Files and folders: that nothing is written over what is read."""

import os

import pytest

from modeling_langcell import InputError
from modeling_langcell.io.atomic import require_apart


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A file in a folder of its own, which is the working directory's neighbour."""
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "data" / "cells.h5ad"
    path.touch()
    return path


@pytest.mark.parametrize(
    "kind", ["the same name", "a relative name", "a symbolic link", "a folder's link", "a hard link"]
)
def test_an_output_is_no_input_whatever_its_name(cells, tmp_path, kind):
    other = tmp_path / "other"
    if kind == "the same name":
        other = cells
    elif kind == "a relative name":
        other = type(cells)(os.path.relpath(cells))
    elif kind == "a symbolic link":
        other.symlink_to(cells)
    elif kind == "a folder's link":
        other.symlink_to(cells.parent)
        other /= cells.name
    else:
        os.link(cells, other)
    with pytest.raises(InputError, match=r"^--out .* is the same file as INPUT.h5ad .*: choose another path for --out"):
        require_apart([("--out", other)], [("INPUT.h5ad", cells)])


def test_outputs_that_are_not_there_yet_are_apart_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new.html")
    with pytest.raises(InputError, match=r"--figure .* is the same file as --report"):
        require_apart([("--report", tmp_path / "new.html"), ("--figure", tmp_path / "link")], [])
    require_apart([("--report", tmp_path / "new.html"), ("--figure", tmp_path / "newer.html")], [])


def test_only_what_is_asked_for_and_not_allowed_counts(cells):
    require_apart([("--out", None), ("--report", None)], [("INPUT.h5ad", cells), ("--labels", None)])
    inputs, allowed = [("INPUT.h5ad", cells)], [("--out", "INPUT.h5ad")]
    require_apart([("--out", cells)], inputs, allowed=allowed)
    with pytest.raises(InputError, match=r"--report .* is the same file as INPUT.h5ad"):
        require_apart([("--out", cells), ("--report", cells)], inputs, allowed=allowed)
