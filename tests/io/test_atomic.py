# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Atomic writes: complete or absent."""

import os
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError

from modeling_langcell import InputError
from modeling_langcell.io.atomic import (
    atomic_file,
    atomic_folder,
    atomic_write,
    temporary_folder,
)
from tests.support.commands import start_python


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

    def test_an_empty_folder_is_replaced(self, tmp_path):
        (tmp_path / "here").mkdir()
        with atomic_folder(tmp_path / "here") as folder:
            (folder / "file").touch()
        assert (tmp_path / "here" / "file").exists()


def test_a_copy_that_cannot_be_written_is_not_said_of_its_source(tmp_path):
    """shutil names both, and the source first."""

    def fill(folder_of, fault):
        with pytest.raises(fault), atomic_folder(tmp_path / "out") as folder:
            raise OSError(27, "File too large", str(tmp_path / "source"), None, folder_of(folder))

    fill(lambda folder: str(folder / "copy"), InputError)
    fill(lambda folder: str(tmp_path / "elsewhere"), OSError)
    assert not list(tmp_path.iterdir())


#: Begins to write and says so.
WRITER = """
import sys, time
from modeling_langcell.io import atomic
with getattr(atomic, sys.argv[1])(sys.argv[2]) as path:
    (path / "part" if path.is_dir() else path).write_text("half")
    print("half", flush=True)
    time.sleep(600)
"""


def half_written(kind, output, **environment):
    writer = start_python("-c", WRITER, kind, output, env={**os.environ, **environment})
    writer.stdout.readline()
    return writer


def write(kind, output):
    if kind == "atomic_file":
        atomic_write(output, b"whole")
    else:
        with atomic_folder(output) as folder:
            (folder / "file").touch()


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
class TestLeftovers:
    def test_what_a_killed_process_left_goes_with_the_next(self, kind, tmp_path):
        output = tmp_path / "new" / "output"
        killed = half_written(kind, output)
        killed.kill()
        killed.wait()
        assert len(list(output.parent.iterdir())) == 2, "the half and the lock"
        write(kind, output)
        assert list(output.parent.iterdir()) == [output]

    def test_what_a_living_process_writes_stays(self, kind, tmp_path):
        output = tmp_path / "output"
        living = half_written(kind, output)
        before = sorted(tmp_path.iterdir())
        write(kind, output)
        assert sorted(tmp_path.iterdir()) == sorted([*before, output])
        os.kill(living.pid, signal.SIGINT)
        assert living.wait() != 0
        assert list(tmp_path.iterdir()) == [output]

    def test_files_of_the_user_stay(self, kind, tmp_path):
        output, mine = tmp_path / "output", tmp_path / "mine"
        mine.write_text("mine")
        users = [f".output.{'0' * 31}", f".output.{'g' * 32}", f".output.{'A' * 32}", f".other.{'0' * 32}", ".output"]
        for name in users:
            (tmp_path / name).write_text("mine")
        (tmp_path / f".output.{'1' * 32}").symlink_to(mine)
        (tmp_path / f".output.{'2' * 32}").mkdir()
        (tmp_path / f".output.{'3' * 32}").write_text("mine")  # Without a lock, no writer has left it.
        before = sorted(tmp_path.iterdir())
        write(kind, output)
        assert sorted(tmp_path.iterdir()) == sorted([*before, output])
        assert mine.read_text() == "mine"


@pytest.mark.e2e
def test_temporary_folders_of_killed_processes_go_with_the_next(tmp_path, monkeypatch):
    code = """
import time
from modeling_langcell.io.atomic import temporary_folder
with temporary_folder() as folder:
    (folder / "copy").write_text("a")
    print("half", flush=True)
    time.sleep(600)
"""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started = [start_python("-c", code, env={**os.environ, "TMPDIR": str(tmp_path)}) for _ in range(2)]
    for one in started:
        one.stdout.readline()
    killed, living = started
    killed.kill()
    killed.wait()
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert len(list(tmp_path.glob(".*"))) == 4, "two folders and their locks"
    living.kill()
    living.wait()
    with temporary_folder():
        pass
    assert not list(tmp_path.glob(".*"))


def test_folders_that_were_made_for_a_file_go_after_an_error(tmp_path):
    with pytest.raises(KeyError), atomic_file(tmp_path / "new" / "deep" / "file"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(Path("there") / "file.txt")
    for content in (b"new", b"newer"):
        atomic_write(link, content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "file.txt").read_bytes() == content
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "link.txt", "file.txt"}
