# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Every command that writes, on a disk that is really full: before it begins, and when half of the output is there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from modeling_langcell.io.atomic import complete_name
from tests.robustness.full_disk import FullDisk
from tests.robustness.small_runs import SmallRuns, contents, listing
from tests.support.commands import link_cache

pytestmark = pytest.mark.e2e

WRITERS = ("annotate", "embed", "adapt", "corpus", "train", "evaluate")
OTHER_WRITERS = (
    "report",
    "figure",
    "example",
    "search",
    "explain",
    "labels",
    "calibrate",
    "prototypes",
    "export",
    "card",
)
#: Where commands that are resumed keep what they have finished, and the file that would say that all is done. The table
#: of a task is kept if only the page cannot be written.
RESUMED = {
    "annotate": ("out/.out.h5ad.unfinished", None),
    "embed": ("out/.out.h5ad.unfinished", None),
    "corpus": ("out/out", "manifest.json"),
    "train": ("out/out", "training.json"),
    "evaluate": ("out/out", None),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, hub_server):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "inputs").mkdir()
    found = SmallRuns(folder / "inputs", link_cache(folder / "home"), hub_server.url)
    return {run.name: run for run in [*found, *found.other_writers()]}


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "disk").mkdir()
    try:
        with FullDisk(tmp_path / "disk") as disk:
            yield disk
    except OSError as error:
        pytest.skip(str(error))


def finish(run, out: Path, temporary: Path, cwd: Path) -> tuple[int, str]:
    process = run.start(out, temporary, cwd)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def test_these_are_all_writers(runs):
    assert [*WRITERS, "publish", *OTHER_WRITERS] == [*runs]


@pytest.mark.parametrize("name", [*WRITERS, *OTHER_WRITERS])
def test_a_full_disk(runs, disk, tmp_path, name):
    run = replace(runs[name], program=disk.on_it(runs[name].program))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    places = disk.place / "out", temporary, tmp_path
    (disk.seen / "out").mkdir()
    run.prepare(disk.seen / "out")
    empty = disk.used()
    code, errors = finish(run, *places)
    assert code == 0, errors
    whole, size = contents(disk.seen), disk.used() - empty
    if (disk.seen / "out" / "out").is_dir():  # A folder is made anew, and a file is replaced.
        shutil.rmtree(disk.seen / "out")
        (disk.seen / "out").mkdir()
        run.prepare(disk.seen / "out")
    before, listed = contents(disk.seen), listing(disk.seen)
    for room in (0, size // 2):
        disk.fill(room)
        code, errors = finish(run, *places)
        disk.free()
        assert code == 2, errors
        (said,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
        assert "No space left on device" in said
        assert any(str(disk.place / "out" / output) in said for output in run.outputs), said
        assert "Traceback" not in errors
        assert not listing(temporary)
        require_only_finished_parts(name, disk.seen, listed)
        now = contents(disk.seen)
        assert {path: now.get(path) for path in before} == before
    code, errors = finish(run, *places)
    assert code == 0, errors
    assert contents(disk.seen) == whole
    assert not listing(temporary)


def require_only_finished_parts(name: str, folder: Path, before: set[str]) -> None:
    """Checks that nothing is left, or only whole files that the same command continues with."""
    left = listing(folder) - before
    kept, done = RESUMED.get(name, (None, None))
    for path in left:
        assert kept is not None, left
        assert path == kept or path.startswith(f"{kept}/"), left
        assert complete_name(Path(path)) is None, left
        assert not Path(path).name.startswith(".step-"), left
        assert Path(path).name != done, left


@pytest.mark.parametrize("room", [0, 2**16])
def test_a_full_disk_of_temporary_files(runs, disk, tmp_path, room):
    """If there is no room at all, Python takes another folder of the machine."""
    run = replace(runs["publish"], program=disk.on_it(runs["publish"].program))
    (disk.seen / "tmp").mkdir()
    disk.fill(room)
    code, errors = finish(run, tmp_path / "out", disk.place / "tmp", tmp_path)
    assert code == (2 if room else 0), errors
    if room:
        (said,) = [line for line in errors.splitlines() if line.startswith("Error: ")]
        assert "The folder for temporary files, " in said
        assert "No space left on device" in said
    assert "Traceback" not in errors
    assert not listing(disk.seen / "tmp")
