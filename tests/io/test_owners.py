# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Locks of real processes, which die with them."""

import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from modeling_langcell.io import owners
from modeling_langcell.io.owners import Lock, Owner, find_owner, taking_over
from tests.support.paths import REPOSITORY

HOLD = """
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("owners", {module!r})
owners = importlib.util.module_from_spec(spec)
sys.modules["owners"] = owners
spec.loader.exec_module(owners)
lock = owners.Lock(Path(sys.argv[1]))
child = os.fork() if "fork" in sys.argv else 1
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that holds a lock until it is killed."""

    def __init__(self, path, *arguments):
        code = HOLD.format(module=str(REPOSITORY / "modeling_langcell/io/owners.py"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.child = int(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def test_a_lock_names_its_owner_and_dies_with_it(path):
    holder = Holder(path)
    owner = find_owner(path)
    assert owner.pid == holder.process.pid
    assert str(owner).startswith(f"process {holder.process.pid} on ")
    with pytest.raises(BlockingIOError):
        Lock(path)
    with taking_over(path) as is_dead:
        assert not is_dead
    holder.kill()
    assert path.exists()
    assert find_owner(path) is None
    with Lock(path) as lock:
        assert find_owner(path) == lock.owner
    assert not path.exists()


def test_a_forked_process_does_not_keep_the_lock_of_a_dead_one(path):
    holder = Holder(path, "fork")
    try:
        holder.kill()
        end = time.monotonic() + 30  # On a busy machine the child may not have run yet.
        while find_owner(path) is not None and time.monotonic() < end:
            time.sleep(0.05)
        assert find_owner(path) is None
        os.kill(holder.child, 0)  # It still runs.
    finally:
        os.kill(holder.child, 9)


def test_what_a_dead_process_left_is_deleted(path):
    Holder(path).kill()
    with taking_over(path) as is_dead:
        assert is_dead
        with pytest.raises(BlockingIOError):
            Lock(path)
    assert not path.exists()
    with taking_over(path) as is_dead:
        assert is_dead


def test_of_many_processes_one_gets_the_lock(path):
    code = HOLD.format(module=str(REPOSITORY / "modeling_langcell/io/owners.py"))
    for _ in range(3):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for _ in range(6)
        ]
        got = [process for process in started if process.stdout.readline()]
        assert len(got) == 1
        assert find_owner(path).pid == got[0].pid
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"pid": "x"}', b'{"pid": 1}'])
def test_a_lock_without_an_owners_description(path, content):
    path.write_bytes(content)
    assert find_owner(path) is None
    assert str(Owner.parse(content)) == "another process"


def test_an_owners_command_cannot_change_the_terminal():
    owner = Owner("", "here\x1b[2J", 7, "langcell \x1b[31m\n" + "x" * 999)
    assert str(owner).isprintable()
    assert len(str(owner)) < 300


@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder", "pipe"])
def test_what_is_no_lock_is_neither_opened_nor_deleted(path, tmp_path, kind):
    (tmp_path / "mine").write_text("mine")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / {"link": "mine"}.get(kind, "nowhere"))
    with pytest.raises(FileExistsError, match="is not a regular file, and its lock belongs there"):
        Lock(path)
    assert find_owner(path) is None
    with taking_over(path):
        pass
    assert os.path.lexists(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["lock", "mine"]
    assert (tmp_path / "mine").read_text() == "mine"


def test_on_a_disk_without_locks_the_number_of_the_process_counts(path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    dead = Holder(path)
    dead.kill()
    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert find_owner(path) is None
    lock = Lock(path)
    assert find_owner(path) == lock.owner
    with pytest.raises(BlockingIOError):
        Lock(path)
    lock.release()
    path.write_bytes(b'{"id": "", "host": "elsewhere", "pid": 1, "command": ""}')
    assert find_owner(path).host == "elsewhere"
    assert owners.Owner.this_process().is_gone is False
