# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Atomic writes: complete or absent, never over an input."""

import os

import pytest
from safetensors import SafetensorError

from modeling_langcell import InputError
from modeling_langcell.io.atomic import (
    atomic_folder,
    atomic_write,
    require_apart,
    require_new_folder,
    require_writable_file,
)


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """A file in a folder beside the working directory."""
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "data" / "cells.h5ad"
    path.touch()
    return path


@pytest.mark.parametrize(
    "kind", ["the same name", "a relative name", "a symbolic link", "a folder's link", "a hard link"]
)
def test_an_output_may_not_be_an_input_under_any_name(cells, tmp_path, kind):
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
    with pytest.raises(
        InputError, match=r"^--out .* is the same file as INPUT.h5ad .*: choose another path for one of them"
    ):
        require_apart([("--out", other)], [("INPUT.h5ad", cells)])


def test_outputs_that_do_not_exist_yet_must_differ(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new.html")
    with pytest.raises(InputError, match=r"--figure .* is the same file as --report"):
        require_apart([("--report", tmp_path / "new.html"), ("--figure", tmp_path / "link")], [])
    require_apart([("--report", tmp_path / "new.html"), ("--figure", tmp_path / "newer.html")], [])


def test_allowed_pairs_and_missing_paths_are_ignored(cells):
    require_apart([("--out", None), ("--report", None)], [("INPUT.h5ad", cells), ("--labels", None)])
    inputs, allowed = [("INPUT.h5ad", cells)], [("--out", "INPUT.h5ad")]
    require_apart([("--out", cells)], inputs, allowed=allowed)
    with pytest.raises(InputError, match=r"--report .* is the same file as INPUT.h5ad"):
        require_apart([("--out", cells), ("--report", cells)], inputs, allowed=allowed)


class TestAtomicWrite:
    def test_writes_and_replaces(self, tmp_path):
        path = tmp_path / "new" / "file.txt"
        for content in (b"one", b"another"):
            atomic_write(path, content)
            assert path.read_bytes() == content
        assert [other.name for other in path.parent.iterdir()] == ["file.txt"]

    def test_the_old_file_stays_after_an_error(self, tmp_path, monkeypatch):
        path = tmp_path / "file.txt"
        atomic_write(path, b"one")

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            atomic_write(path, b"another")
        assert path.read_bytes() == b"one"
        assert list(tmp_path.iterdir()) == [path]

    def test_only_regular_files_are_replaced(self, cells):
        for place, error in (
            (cells.parent, IsADirectoryError),
            (cells / "below", NotADirectoryError),
            ("/dev/null", FileExistsError),
        ):
            with pytest.raises(error):
                require_writable_file(place)


class TestAtomicFolder:
    def test_appears_when_it_is_complete(self, tmp_path):
        output = tmp_path / "new" / "folder"
        with atomic_folder(output) as folder:
            (folder / "file").touch()
            assert not output.exists()
        assert [path.name for path in output.iterdir()] == ["file"]
        assert [path.name for path in tmp_path.iterdir()] == ["new"]

    def test_nothing_is_left_after_an_error(self, tmp_path):
        def fill_and_fail():
            with atomic_folder(tmp_path / "folder") as folder:
                (folder / "file").touch()
                raise KeyError

        with pytest.raises(KeyError):
            fill_and_fail()
        assert not list(tmp_path.iterdir())

    def test_errors_name_the_folder_only_where_it_cannot_be_written(self, tmp_path):
        def fill(error):
            with atomic_folder(tmp_path / "folder") as folder:
                (folder / "file").touch()
                raise error

        with pytest.raises(FileNotFoundError):
            fill(FileNotFoundError(2, "No such file or directory", str(tmp_path / "input")))
        for error in (OSError(28, "No space left on device"), SafetensorError("I/O error: File too large")):
            with pytest.raises(InputError, match=r"folder cannot be written: .*(No space left|File too large)"):
                fill(error)
        assert not list(tmp_path.iterdir())

    def test_an_empty_folder_is_replaced_and_a_full_one_refused(self, cells, tmp_path):
        with atomic_folder(tmp_path / "here") as folder:
            (folder / "file").touch()
        assert (tmp_path / "here" / "file").exists()
        for taken in (cells, cells.parent):
            with pytest.raises(InputError, match="already exists: choose a new folder"):
                require_new_folder(taken)
        with pytest.raises(InputError, match="is not a folder with write access"):
            require_new_folder(cells / "below")
