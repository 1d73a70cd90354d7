# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How long the files of visitors are kept, and what a server that was killed leaves."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from modeling_langcell import InputError
from tests.support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "space"))
from visits import Visits


class Clock:
    """A clock whose time a test sets."""

    def __init__(self):
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Job:
    """Work that a test can see end."""

    ended = False

    def stop(self) -> None:
        self.ended = True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The folder of all temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def visits(clock):
    visits = Visits(600, most=3, most_bytes=1000, clock=clock)
    yield visits
    visits.close()


def test_unused_files_are_deleted(visits, clock):
    visit = visits.of("page")
    (visit.folder / "report.html").touch()
    half = visits.temporary / "of a library" / "half"
    half.parent.mkdir()
    half.touch()
    clock.now += 400
    visits.sweep()
    assert visits.find(visit.token, "report.html"), "finding a file counts as a use"
    assert half.is_file()
    clock.now += 400
    visits.sweep()
    assert visit.folder.is_dir()
    assert not half.parent.exists()
    clock.now += 400
    visits.sweep()
    assert not visit.folder.exists()
    assert visits.find(visit.token, "report.html") is None
    assert visits.of("page").token != visit.token


def test_a_busy_visit_is_not_deleted_before_its_end(visits, clock):
    with visits.working("page") as visit:
        clock.now += 10_000
        visits.sweep()
        assert visit.folder.is_dir(), "a busy visit stays, however long it takes"
    visits.sweep()
    assert visit.folder.is_dir(), "the end of the work counts as a use"
    with visits.working("page") as visit:
        visit.job = job = Job()
        visits.end("page")
        assert job.ended
        assert visit.left
        assert visit.folder.is_dir(), "its process may still write there"
        assert visits.of("page") is not visit
    assert not visit.folder.exists()


def test_a_page_does_one_thing_at_a_time(visits):
    with visits.working("page"):
        for again in (lambda: visits.working("page"), lambda: visits.working("page", new=True)):
            with pytest.raises(InputError, match="wait for that"), again():
                pass
        with pytest.raises(InputError, match="wait for that"):
            visits.renew("page")
        with visits.working("another page"):
            pass


def test_a_new_visit_has_nothing_of_the_former(visits):
    former = visits.of("page")
    (former.folder / "cells.h5ad").touch()
    with visits.working("page", new=True) as visit:
        assert not list(visit.folder.iterdir())
    assert not former.folder.exists()
    assert visits.find(former.token, "cells.h5ad") is None


def test_a_visit_is_found_only_by_its_token(visits, tmp_path):
    visit = visits.of("page")
    (visit.folder / "report.html").touch()
    (visit.folder / "link").symlink_to(__file__)
    assert visits.of("page") is visit
    assert visits.of("another page").folder != visit.folder
    visit.sample = "blood"
    assert visits.find(visit.token, "report.html") == (visit.folder / "report.html", "blood")
    assert visits.find(visit.token, "../report.html") == (visit.folder / "report.html", "blood")
    for token, name in (
        *(("page", "report.html"), ("\xe9", "report.html"), ("", "report.html")),
        *((visit.token, "other"), (visit.token, "link")),
    ):
        assert visits.find(token, name) is None
    assert visits.without_paths(f"{visit.folder}/cells.h5ad is damaged.") == "cells.h5ad is damaged."
    visits.end("page")
    assert not visit.folder.exists()


def test_there_is_room_for_some_visitors_and_files(visits):
    used = visits.size()
    with visits.arriving(1000 - used - 100):
        with pytest.raises(InputError, match="as much space as there is"), visits.arriving(101):
            pass
        with visits.arriving(50):
            pass
    (visits.of("page").folder / "cells.h5ad").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="as much space as there is"), visits.arriving(1):
        pass
    visits.of("second"), visits.of("third")
    with pytest.raises(InputError, match="as many visitors as it takes"):
        visits.of("fourth")
    visits.end("second")
    visits.of("fourth")


def test_the_files_of_a_server_that_was_killed_are_deleted_by_the_next(place):
    folder = str(REPOSITORY / "space")
    script = f"""
import sys, time
sys.path.insert(0, {folder!r})
from visits import Visits
visits = Visits(600)
(visits.of("page").folder / "cells.h5ad").write_text("of a visitor")
print(visits.root, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "TMPDIR": str(place)}
    killed, living = (
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    left, kept = (Path(process.stdout.readline().strip()) for process in (killed, living))
    killed.kill()
    killed.wait()
    assert list(left.rglob("cells.h5ad"))
    of_another = place / "langcell-app-link"
    of_another.symlink_to(REPOSITORY)
    (place / "langcell-app-link.lock").touch()
    with_files = place / "langcell-app-mine"
    with_files.mkdir()
    visits = Visits(600)
    try:
        assert not left.exists()
        assert list(kept.rglob("cells.h5ad")), "its server lives"
        assert of_another.is_symlink()
        assert (REPOSITORY / "README.md").is_file()
        assert with_files.is_dir()
        assert oct(visits.root.stat().st_mode & 0o777) == "0o700"
    finally:
        living.kill()
        living.wait()
        visits.close()


def test_servers_that_start_at_the_same_time_do_not_share_a_folder(place):
    made: list[Visits] = []
    threads = [threading.Thread(target=lambda: made.append(Visits(600))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({visits.root for visits in made}) == 8
    assert all(visits.root.is_dir() for visits in made)
    for visits in made:
        visits.close()
