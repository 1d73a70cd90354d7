# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Paths of outputs: apart from inputs and from each other, and writable."""

import os
import unicodedata
from pathlib import Path

import pytest

from modeling_langcell import InputError
from modeling_langcell.io.outputs import (
    require_apart,
    require_new_folder,
    require_place,
    require_writable_file,
    writing_into,
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
        other = Path(os.path.relpath(cells))
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


@pytest.mark.parametrize("link", [False, True])
def test_an_output_may_not_lie_in_an_input_nor_hold_it(cells, tmp_path, link):
    folder = tmp_path / "link" if link else cells.parent
    if link:
        folder.symlink_to(cells.parent)
    with pytest.raises(InputError, match=r"--report .* lies in --model"):
        require_apart([("--report", folder / "new" / "page.html")], [("--model", cells.parent)])
    with pytest.raises(InputError, match="lies in INPUT"):
        require_apart([("--out", folder / "a")], [("INPUT", cells.parent)], allowed=[("--out", "INPUT")])
    with pytest.raises(InputError, match=r"--out .* holds INPUT"):
        require_apart([("--out", folder)], [("INPUT", cells)], shared={"--out"})
    require_apart([("--out", tmp_path / "data2")], [("--model", cells.parent), ("INPUT", cells)])


def test_outputs_that_do_not_exist_yet_must_differ(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new.html")
    with pytest.raises(InputError, match=r"--figure .* is the same file as --report"):
        require_apart([("--report", tmp_path / "new.html"), ("--figure", tmp_path / "link")], [])
    require_apart([("--report", tmp_path / "new.html"), ("--figure", tmp_path / "newer.html")], [])


@pytest.mark.parametrize(
    "names", [("Zellen.tsv", "zellen.TSV"), [unicodedata.normalize(f, "é") for f in ("NFC", "NFD")]]
)
def test_outputs_that_only_some_file_systems_tell_apart(tmp_path, names):
    with pytest.raises(InputError, match="is the same file as"):
        require_apart([(name, tmp_path / name) for name in names], [])


def test_an_output_in_another_one(tmp_path):
    pair = [("--out", tmp_path / "a"), ("--report", tmp_path / "a" / "page.html")]
    for outputs in (pair, pair[::-1]):
        with pytest.raises(InputError, match=r"(lies in|holds)"):
            require_apart(outputs, [])
        require_apart(outputs, [], shared={"--out"})
    with pytest.raises(InputError, match="is the same file as --out"):
        require_apart([("--out", tmp_path), ("--report", tmp_path)], [], shared={"--out"})


def test_an_input_that_an_output_may_replace(cells):
    inputs, allowed = [("INPUT.h5ad", cells)], [("--out", "INPUT.h5ad")]
    require_apart([("--out", cells)], inputs, allowed=allowed)
    with pytest.raises(InputError, match=r"--report .* is the same file as INPUT.h5ad"):
        require_apart([("--out", cells), ("--report", cells)], inputs, allowed=allowed)


def test_only_regular_files_are_replaced(cells):
    for place, error in (
        (cells.parent, IsADirectoryError),
        (cells / "below", NotADirectoryError),
        ("/dev/null", FileExistsError),
        ("/dev/stdout", FileExistsError),
        ("/proc/self/fd/1", FileExistsError),
    ):
        with pytest.raises(error):
            require_writable_file(place)
    link = cells.with_name("link")
    link.symlink_to("/dev/stdout")
    with pytest.raises(FileExistsError):
        require_writable_file(link)


def test_a_name_that_leaves_no_room_for_what_is_written_beside_it(cells):
    require_writable_file(cells.with_name("a" * 216))
    with pytest.raises(OSError, match="its name has more than 216 bytes"):
        require_writable_file(cells.with_name("ä" * 109))


def test_a_place_is_tried_without_a_trace(cells):
    require_place(cells.parent / "new" / "folder" / "file")
    assert list(cells.parent.iterdir()) == [cells]
    for place in (cells.parent, cells / "below", "/proc/file", "a" * 300):
        with pytest.raises(InputError, match=r"--out .* cannot be written: "):
            require_place(place, "--out")


def test_a_new_folder(cells, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (cells, cells.parent, tmp_path / "link"):
        with pytest.raises(InputError, match="already exists: choose a new folder"):
            require_new_folder(taken)
    with pytest.raises(InputError, match="is not a folder with write access"):
        require_new_folder(cells / "below")
    assert require_new_folder(tmp_path / "here") == tmp_path / "here"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "{folder} cannot be written: No space left on device. Free some."),
        (7, "{folder} cannot be written: No space left on device. Free some."),
        ("{folder}/deep/part", "{folder} cannot be written: No space left on device. Free some."),
        ("/elsewhere/cells", "/elsewhere/cells cannot be read or written: No space left on device."),
    ],
)
def test_an_error_about_a_folder_names_it(tmp_path, name, message):
    name = name.format(folder=tmp_path) if isinstance(name, str) else name
    with pytest.raises(InputError) as failed, writing_into(tmp_path, "Free some."):
        raise OSError(28, "No space left on device", name)
    assert str(failed.value) == message.format(folder=tmp_path)
