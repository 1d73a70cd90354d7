# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Texts of people: what cannot be shown, stored or told apart is refused, wherever it comes from."""

import json
import unicodedata

import pytest

from modeling_langcell import InputError
from modeling_langcell.cli.labels import read_candidates
from modeling_langcell.model.prompts import check_labels, check_templates, require_text
from modeling_langcell.ontology import candidates, find_term, usual_in, without_repeats

ONE_NAME = [
    ("B cell", "b cell"),
    ("B cell", "B  cell"),
    ("B cell", " B cell"),
    ("B cell", "B\tcell"),
    ("B cell", "B\N{NO-BREAK SPACE}cell"),
    ("B cell", "B\N{ZERO WIDTH SPACE} cell"),
    ("B cell", "\N{RIGHT-TO-LEFT OVERRIDE}B cell"),
    ("B cell", "\N{ZERO WIDTH NO-BREAK SPACE}B cell"),
    ("a/b", "a|b"),
    ("a/b", "a\N{FULLWIDTH SOLIDUS}b"),
    ("CD8+", "CD8\N{SUPERSCRIPT PLUS SIGN}"),
    *[tuple(unicodedata.normalize(form, "Zellen für") for form in ("NFC", "NFD"))],
    ("STRASSE", "Straße"),
]
NO_TEXT = [
    "",
    " ",
    "\t\n",
    "\N{ZERO WIDTH SPACE}",
    "\N{LEFT-TO-RIGHT OVERRIDE}\N{POP DIRECTIONAL FORMATTING}",
    "\x1b\x07",
]
NO_TEXT += ["B\0", "B\ud800", "\udfff", "B" * 30_000, "\N{COMBINING ACUTE ACCENT}", None, 1, b"B"]


@pytest.mark.parametrize("text", NO_TEXT)
def test_what_is_no_text_is_refused_wherever_it_is_given(text):
    for give in (
        lambda: require_text(text, "The text"),
        lambda: check_labels(["T cell", text]),
        lambda: candidates({text: "cell type: mine.", "T cell": ""}),
        lambda: without_repeats(["T cell", text]),
        lambda: candidates({"T cell": {"description": "cell type: mine.", "markers": [text]}}),
        lambda: candidates({"mine": ["cell type: mine.", text]}),
        lambda: check_templates(["{name}", text]),
        lambda: find_term(text),
        lambda: usual_in([text]),
    ):
        with pytest.raises(InputError):
            give()


@pytest.mark.parametrize("labels", ONE_NAME)
def test_labels_that_would_be_one_column_are_refused(labels, tmp_path):
    said = set()
    (tmp_path / "types.json").write_text(json.dumps(dict.fromkeys(labels, "cell type: mine.")))
    for give in (
        lambda: check_labels(labels),
        lambda: candidates(labels),
        lambda: without_repeats(labels),
        lambda: candidates(dict.fromkeys(labels, "cell type: mine.")),
        lambda: read_candidates(str(tmp_path / "types.json"), None),
    ):
        with pytest.raises(InputError, match="they differ only in case, blanks, slashes") as refused:
            give()
        said.add(str(refused.value))
    assert len(said) == 1


def test_the_same_message_from_every_kind_of_file(tmp_path):
    files = {
        "a.json": '["B cell", "b cell"]',
        "b.json": '{"B cell": "", "b cell": {"markers": ["CD19"]}}',
        "a.tsv": "label\tdescription\nB cell\t\nb cell\tcell type: b.\n",
        "a.csv": "B cell\nb cell\n",
        "a.txt": "B cell\nb cell\n",
        "a.gmt": "B cell\t\tCD19\nb cell\t\tMS4A1\n",
    }
    said = set()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError) as refused:
            read_candidates(str(tmp_path / name), None)
        said.add(str(refused.value))
    with pytest.raises(InputError) as refused:
        read_candidates("B cell;b cell", None)
    assert said == {str(refused.value)}


@pytest.mark.parametrize("label", [".", "_index"])
def test_names_that_tables_cannot_have(label):
    with pytest.raises(InputError, match="A table cannot have a column"):
        candidates({label: "cell type: mine.", "B cell": ""})


def test_texts_of_other_scripts_and_long_ones_are_texts():
    check_labels(
        ["κύτταρο 🧬", "T/細胞", "γδ T", "a" * 1_000, "خلية\N{ZERO WIDTH NON-JOINER}تائية", "B cell", "T cell"]
    )
    require_text("cell type: " + "long " * 1_000, "The description")
