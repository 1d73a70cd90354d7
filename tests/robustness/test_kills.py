# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The script that kills commands, and its committed table."""

import json
from collections import Counter

import pytest

from tests.robustness.kills import Killer
from tests.robustness.small_runs import SmallRuns
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


def test_the_table():
    text = TABLE.read_text()
    table = json.loads(text)
    assert table["command"] == "python -m tests.robustness.kills --json eval/results/kills.json"
    assert table["seed"] == 0
    assert table["kills"] == len(table["rows"]) >= 60
    assert table["wrong"] == 0
    assert all(row["as_it_should"] and row["same_result"] and not row["left"] for row in table["rows"])
    assert Counter(row["command"] for row in table["rows"]).keys() == {*COMMANDS}
    assert sum(row["ended_by"] == "SIGKILL" for row in table["rows"]) >= 50
    assert not any(place in text for place in ("/tmp/", "/root/", "/home/", "/work/"))


def test_every_command_that_keeps_a_state_is_killed(tmp_path):
    assert tuple(run.name for run in SmallRuns(tmp_path, tmp_path / "home", "http://127.0.0.1:9")) == COMMANDS
