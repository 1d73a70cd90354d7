# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The script that kills commands, and its committed table."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from modeling_langcell.io.atomic import complete_name
from tests.robustness.kills import Killer
from tests.robustness.small_runs import SmallRuns, listing
from tests.support.hub_stand_in import HubStandIn
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.e2e

TABLE = REPOSITORY / "eval" / "results" / "kills.json"
COMMANDS = ("annotate", "embed", "adapt", "corpus", "train", "evaluate", "publish")


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched, HubStandIn() as hub:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield Killer(tmp_path_factory.mktemp("kills"), hub, seed=1)


@pytest.mark.parametrize("name", ["embed", "corpus"])
def test_a_kill_changes_nothing_and_leaves_nothing(killer, name):
    row = killer.kill(name, 0)
    assert row["as_it_should"], row


@pytest.mark.parametrize(
    ("name", "number"), [("adapt", signal.SIGINT), ("corpus", signal.SIGTERM), ("evaluate", signal.SIGHUP)]
)
def test_a_signal_leaves_no_half_written_file(killer, tmp_path, name, number):
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    out.mkdir()
    temporary.mkdir()
    process = killer.runs[name].start(out, temporary, tmp_path)
    while not listing(out):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Stopped by " in errors
    assert "Traceback" not in errors
    left = {Path(path) for path in listing(out) | listing(temporary)}
    assert not [path for path in left if complete_name(path) is not None or ".process-" in path.name]


def test_the_table():
    text = TABLE.read_text()
    table = json.loads(text)
    assert table["command"] == "python -m tests.robustness.kills --kills 10 --json eval/results/kills.json"
    assert table["seed"] == 0
    assert table["kills"] == len(table["rows"]) >= 60
    assert table["wrong"] == 0
    assert all(row["as_it_should"] and row["same_result"] and not row["left"] for row in table["rows"])
    assert Counter(row["command"] for row in table["rows"]).keys() == {*COMMANDS}
    assert sum(row["ended_by"] == "SIGKILL" for row in table["rows"]) >= 50
    assert not any(place in text for place in ("/tmp/", "/root/", "/home/", "/work/"))


def test_every_command_that_keeps_a_state_is_killed(tmp_path):
    assert tuple(run.name for run in SmallRuns(tmp_path, tmp_path / "home", "http://127.0.0.1:9")) == COMMANDS
