# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The script that tries hostile inputs, and its committed table."""

import json
from dataclasses import replace

import pytest

from tests.robustness.attempts import all_attempts
from tests.robustness.run import try_out
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.e2e

TABLE = REPOSITORY / "eval" / "results" / "robustness.json"


@pytest.fixture(scope="module")
def attempts(shared):
    return all_attempts(shared / "data", shared / "reference")


ATTEMPTS = [(row["about"], row["what"]) for row in json.loads(TABLE.read_text())["rows"]]


@pytest.mark.parametrize(("about", "what"), ATTEMPTS, ids=lambda text: text[:60])
def test_an_attempt_ends_as_its_row_says(attempts, about, what):
    (attempt,) = [attempt for attempt in attempts if (attempt.about, attempt.what) == (about, what)]
    (expected,) = [row for row in json.loads(TABLE.read_text())["rows"] if (row["about"], row["what"]) == (about, what)]
    row = try_out(attempt)
    assert row["as_it_should"], json.dumps(row, indent=1)
    assert {name: row[name] for name in ("exit", "left")} == {name: expected[name] for name in ("exit", "left")}


def test_an_unexpected_end_is_reported(attempts):
    """A good file must not pass as hostile, nor a hostile one as good."""
    (good,) = [attempt for attempt in attempts if attempt.name == "counts have a single cell"]
    (bad,) = [attempt for attempt in attempts if attempt.name == "file is text"]
    assert not try_out(replace(good, valid=False))["as_it_should"]
    assert not try_out(replace(bad, valid=True))["as_it_should"]


def test_the_table_holds_these_attempts(attempts):
    table = json.loads(TABLE.read_text())
    assert table["command"] == "python -m tests.robustness.run --json eval/results/robustness.json"
    names = [(attempt.about, attempt.what, "work" if attempt.valid else "be refused") for attempt in attempts]
    assert len(set(names)) == len(names)
    assert [(row["about"], row["what"], row["should"]) for row in table["rows"]] == names
    assert table["inputs"] == len(names) >= 400
    assert table["wrong"] == 0
    assert all(row["as_it_should"] for row in table["rows"])


def test_the_messages_in_the_table_are_for_users():
    """They name no path of the machine that made the table, and use no programmer's words."""
    for row in json.loads(TABLE.read_text())["rows"]:
        said = row["message"]
        assert bool(said) == (row["exit"] == 2)
        for word in ("Traceback", "weights_only", "trust_remote_code", "object has no attribute", "/tmp/", "/root/"):
            assert word not in said, row
