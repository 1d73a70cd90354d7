# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The script that tries hostile inputs out, and the table of what it found."""

import json
from importlib import import_module

import pytest

from tests.support.paths import REPOSITORY

TABLE = REPOSITORY / "eval" / "results" / "robustness.json"


@pytest.fixture(scope="module")
def attempts(shared):
    hostile_inputs = import_module("tests.robustness.hostile_inputs")
    return hostile_inputs.Bench(shared / "data", shared / "reference").attempts()


@pytest.mark.parametrize(
    ("name", "exit_code", "message"),
    [
        ("file names a gene below 0", 2, "X of cells.h5ad cannot be read: its indices are not all from 0 to 9014."),
        ("published parts have a dictionary that runs a command", 2, "Nothing in it was run."),
        ("search no cells at all", 2, "Invalid value for '--top'"),
        ("counts are of a single cell", 0, ""),
    ],
)
def test_an_attempt_is_tried_out(attempts, name, exit_code, message):
    (attempt,) = [attempt for attempt in attempts if f"{attempt.about} {attempt.what}" == name]
    row = import_module("tests.robustness.run").try_out(attempt)
    assert row["as_it_should"], row
    assert row["exit"] == exit_code
    assert message in row["message"]
    assert row["left"] == (["out.h5ad"] if attempt.works else [])


def test_what_ends_wrong_is_found_out(attempts):
    """A good file that is said to be hostile, and a hostile one that is said to be good."""
    from dataclasses import replace

    (good,) = [attempt for attempt in attempts if attempt.what == "are of a single cell"]
    (bad,) = [attempt for attempt in attempts if attempt.what == "is text"]
    try_out = import_module("tests.robustness.run").try_out
    assert not try_out(replace(good, works=False))["as_it_should"]
    assert not try_out(replace(bad, works=True))["as_it_should"]


def test_the_table_is_of_these_attempts(attempts):
    table = json.loads(TABLE.read_text())
    assert table["command"] == "python -m tests.robustness.run --json eval/results/robustness.json"
    names = [(attempt.about, attempt.what, "work" if attempt.works else "be refused") for attempt in attempts]
    assert len(set(names)) == len(names)
    assert [(row["about"], row["what"], row["should"]) for row in table["rows"]] == names
    assert table["inputs"] == len(names) >= 60
    assert table["wrong"] == 0
    assert all(row["as_it_should"] for row in table["rows"])


def test_what_the_table_says_is_for_users():
    """No path of the machine that made it, and no advice or word that is a programmer's."""
    for row in json.loads(TABLE.read_text())["rows"]:
        said = row["message"]
        assert bool(said) == (row["exit"] == 2)
        for word in ("Traceback", "weights_only", "trust_remote_code", "object has no attribute", "/tmp/", "/root/"):
            assert word not in said, row
