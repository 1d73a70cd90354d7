# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Names in one line of a terminal, and in the cells of tables."""

import csv
import io
import json
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_langcell.cli.labels import read_labels
from modeling_langcell.io.printable import markdown_cell, one_line, plain_text, text_cell
from modeling_langcell.io.tables import write_table

HOSTILE = [
    "\x1b[31mred",
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",
    "\x9b2J",
    "a\rb",
    "a\b\bb",
    "a\nError: b",
    "\x00",
    "\x7f",
]
HOSTILE += [
    "\u202egnp.exe",
    "\u2066x\u2069",
    "a\u2028b",
    "\x85",
    "\udc80",
    "\U000e0041",
    "\u200b",
    "\ufeffx",
    "\x0b\x0c",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_character_is_shown(text):
    shown = one_line(text)
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) == 1


@given(st.text())
def test_a_line_is_one_line_and_says_the_same_twice(text):
    assert len(one_line(f"a{text}").splitlines()) == 1
    assert one_line(one_line(text)) == one_line(text)


def test_what_is_printable_stays():
    for text in (
        "κύτταρο 🧬",
        "T/細胞",
        "[red]x[/red] [link=http://x]",
        "'=\\n'",
        "tiếng Việt",
        "a\N{NO-BREAK SPACE}b",
    ):
        assert one_line(text) == text


def test_json_stays_json():
    names = {"a\x7fb": "c\x7f", "\x1b": "\n"}
    assert json.loads(one_line(json.dumps(names))) == names


RUN = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1",
    '"=1',
    "a,=1",
    "a;=1",
    "a\t=1",
    'a","=1',
    "a\n=1",
    "\uff1d1",
    "a|@b",
]


@pytest.mark.parametrize("text", RUN)
def test_a_spreadsheet_runs_no_name(text, tmp_path):
    """Whatever separates the cells in the eyes of a spreadsheet, and whether it knows quotes or not."""
    path = write_table(pd.DataFrame({"name": [text], "score": [-1.5]}, index=[text]), tmp_path / "t.tsv", index=True)
    written = path.read_text()
    for separator in "\t,;|":
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
            rows = csv.reader(io.StringIO(written), delimiter=separator, quoting=quoting)
            cells = [cell.strip(' "') for row in rows for cell in row]
            assert not [cell for cell in cells if cell[:1] in "=+@-\uff1d" and cell and cell != "-1.5"]


@given(st.text(st.sampled_from("=+-@'\"ab ,;|") | st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_a_marked_name_is_read_as_it_was(text):
    assert plain_text(text_cell(text)) == text


def test_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame(
        {
            "gene": pd.Categorical(["-A", "B"]),
            "score": np.float32([-0.5, 2]),
            "rank": [-1, 2],
            "known": [True, False],
            "place": [np.nan, -0.25],
        }
    )
    read = pd.read_csv(write_table(table, tmp_path / "t.tsv"), sep="\t")
    assert read["gene"].tolist() == ["'-A", "B"]
    pd.testing.assert_frame_equal(read.drop(columns="gene"), table.drop(columns="gene"), check_dtype=False)


def test_a_table_of_labels_is_read_back(tmp_path):
    labels = ["=B cell", "-", "CD8-positive, alpha-beta T cell", "'=x", 'the "T" cell', "a,-b"]
    rows = [{"label": label, "description": f"@{label}", "markers": "CD3E"} for label in labels]
    read = read_labels(write_table(rows, tmp_path / "types.tsv"))
    assert {label: given["description"] for label, given in read.items()} == {one: f"@{one}" for one in labels}


def test_a_cell_of_markdown():
    assert markdown_cell("a | b\n| c |\x1b[0m") == "a / b / c /\\u001b[0m"
