# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Work in processes with limits, with real processes."""

import os
import sys
import textwrap
import threading
import time

import psutil
import pytest

from modeling_langcell import InputError
from tests.support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "space"))
from jobs import JobFailed, Jobs, Turns, VisitorLeft, lacks_memory
from limits import Limits
from visits import Visit

LIMITS = Limits(seconds=60, memory=2**28, file=2**16)
WORK = """
import os, signal, time
from modeling_langcell import InputError

LOADED_BY = os.getpid()

def loaded_by(said):
    return LOADED_BY

def double(number, said):
    said(0.5, "half of it")
    return 2 * number

def refuse(said):
    raise InputError("cells.h5ad has no cells.")

def fail(said):
    raise KeyError("a fault of ours")

def allocate(said):
    b"x" * 2**30

def grow(said):
    kept = []
    while True:
        kept.append(bytearray(2**20))

def crash(said):
    os.kill(os.getpid(), signal.SIGSEGV)

def sleep(said):
    said(0, str(os.getpid()))
    time.sleep(600)

def write(path, said):
    with open(path, "wb") as file:
        file.write(b"x" * 2**20)

def talk(said):
    said(0, "x" * 2**23)
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "some_work.py").write_text(textwrap.dedent(WORK))
    sys.path.insert(0, str(folder))
    yield Jobs("some_work", "some_work")
    sys.path.remove(str(folder))


@pytest.fixture
def visit(tmp_path):
    return Visit(tmp_path, time.time())


def test_work_starts_with_everything_loaded(jobs, visit):
    """Otherwise every visitor waits for torch, transformers and the checkpoint to be loaded."""
    loaded = {jobs.run(visit, "loaded_by", limits=LIMITS) for _ in range(2)}
    assert len(loaded) == 1
    assert os.getpid() not in loaded


def test_work_says_how_far_it_is_and_what_it_found(jobs, visit):
    heard = []
    assert jobs.run(visit, "double", 21, limits=LIMITS, said=lambda *said: heard.append(said)) == 42
    assert heard == [(0.5, "half of it")]
    assert visit.job is None


def test_work_that_does_not_succeed(jobs, visit):
    with pytest.raises(InputError, match="has no cells"):
        jobs.run(visit, "refuse", limits=LIMITS)
    with pytest.raises(JobFailed, match="KeyError"):
        jobs.run(visit, "fail", limits=LIMITS)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize("work", ["allocate", "grow", "crash"])
def test_a_process_that_needs_too_much_or_crashes(jobs, visit, work):
    with pytest.raises(InputError, match=r"damaged, or needs more than the 0\.25 GB"):
        jobs.run(visit, work, limits=LIMITS)


def test_files_have_a_limit(jobs, visit):
    with pytest.raises(JobFailed, match="OSError"):
        jobs.run(visit, "write", str(visit.folder / "large"), limits=LIMITS)
    assert (visit.folder / "large").stat().st_size <= LIMITS.file


def test_what_is_said_has_a_limit(jobs, visit):
    with pytest.raises(InputError, match="damaged"):
        jobs.run(visit, "talk", limits=LIMITS)


def test_time_has_a_limit(jobs, visit):
    heard = []
    with pytest.raises(InputError, match="takes longer than"):
        jobs.run(visit, "sleep", limits=Limits(1, 2**28, 0), said=lambda *said: heard.append(said))
    assert not psutil.pid_exists(int(heard[0][1]))


def test_work_ends_when_its_visitor_leaves(jobs, visit):
    heard = []

    def leave(share, pid):
        heard.append(int(pid))
        visit.left = True
        visit.job.stop()

    with pytest.raises(VisitorLeft):
        jobs.run(visit, "sleep", limits=LIMITS, said=leave)
    assert not psutil.pid_exists(heard[0])
    with pytest.raises(VisitorLeft):
        jobs.run(visit, "sleep", limits=LIMITS)


@pytest.mark.e2e
def test_work_ends_with_the_server(tmp_path):
    """A server that is killed cannot end the work itself."""
    (tmp_path / "some_work.py").write_text(textwrap.dedent(WORK))
    script = f"""
import sys, pathlib
sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY / "space")!r}]
from jobs import Jobs
from limits import Limits
from visits import Visit
visit = Visit(pathlib.Path({str(tmp_path)!r}), 0)
limits = Limits(60, 2**28, 0)
Jobs("some_work", "some_work").run(visit, "sleep", limits=limits, said=lambda at, pid: print(pid, flush=True))
"""
    server = psutil.Popen([sys.executable, "-c", script], stdout=-1, text=True, env={**os.environ})
    pid = int(server.stdout.readline())
    server.kill()
    server.wait()
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)


def test_a_lack_of_memory_is_found_among_the_causes():
    def caused(cause):
        try:
            raise InputError("cells.h5ad cannot be read as .h5ad.") from cause
        except InputError as error:
            return error

    assert lacks_memory(caused(MemoryError()))
    assert lacks_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert lacks_memory(OSError("Can't read data (memory allocation failed for raw data chunk)"))
    assert not lacks_memory(caused(ValueError("truncated file")))


# ---------------------------------------------------------------------- turns


def test_visitors_work_in_the_order_in_which_they_came(tmp_path):
    turns, order, heard = Turns(1, 10), [], {}
    visits = [Visit(tmp_path, 0) for _ in range(4)]
    begun = threading.Event()

    def work(number):
        with turns.turn(visits[number], heard.setdefault(number, []).append):
            order.append(number)
            begun.wait()

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        while len(turns._queue) <= number:
            time.sleep(0.01)
    while [len(heard[number]) for number in range(4)] != [0, 1, 1, 1]:
        time.sleep(0.01)
    begun.set()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]
    assert heard[1] == ["Another visitor's cells are annotated before yours"]
    assert heard[3][0] == "The cells of 3 other visitors are annotated before yours"


def test_the_time_to_wait_is_estimated_from_the_last_visitors(tmp_path):
    turns = Turns(1, 10)
    turns._seconds.extend([110, 130])
    assert turns._describe(1) == "Another visitor's cells are annotated before yours: about 2 min"


def test_a_visitor_who_leaves_or_comes_too_late_does_not_wait(tmp_path):
    turns, first, second = Turns(1, 1), Visit(tmp_path, 0), Visit(tmp_path, 0)
    left = []

    def wait():
        try:
            with turns.turn(second):
                pass
        except VisitorLeft:
            left.append(second)

    with turns.turn(first):
        thread = threading.Thread(target=wait)
        thread.start()
        while len(turns._queue) < 2:
            time.sleep(0.01)
        with pytest.raises(InputError, match="1 visitors are waiting already"), turns.turn(Visit(tmp_path, 0)):
            pass
        second.left = True
        thread.join()
        assert left == [second]
    with turns.turn(first):
        pass
