# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The types that a visitor picks, types and describes, and what the package says in the words of the page."""

import sys

import pytest

from modeling_langcell import InputError
from modeling_langcell.model.errors import Remedy
from tests.support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "space"))
from candidates import read_types, type_choices, types_of
from words import in_words


@pytest.fixture(scope="module")
def choices():
    return type_choices()


def typed(choices, text: str) -> list[str]:
    """Returns the names that the page offers for what is typed, in order."""
    return [name for shown, name in choices if text.casefold() in shown.casefold()]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NK", "natural killer cell"),
        ("Treg", "CD4-positive, CD25-positive, alpha-beta regulatory T cell"),
        ("hepatocyte", "hepatocyte"),
        ("AT2", "pulmonary alveolar type 2 cell"),
    ],
)
def test_what_people_type_is_offered_first(choices, text, name):
    assert name in typed(choices, text)[:3]


def test_types_of_other_species_are_not_offered_and_none_twice(choices):
    names = [name for _, name in choices]
    assert len(names) == len({*names})
    assert not [name for name in names if "(Mmus)" in name]
    assert len(names) > 2000


def test_a_tissue_has_its_types():
    assert "natural killer cell" in types_of("blood")
    assert "hepatocyte" in types_of("liver")
    with pytest.raises(InputError):
        types_of("nowhere")


def test_candidates_come_from_three_fields():
    found = read_types(["B cell", "platelet"], "odd: a cell that is odd\n\n", "B cell: MS4A1, CD79A\nnew: A1BG\n")
    assert found == {
        "B cell": {"description": "", "markers": ["MS4A1", "CD79A"]},
        "platelet": "",
        "odd": "a cell that is odd",
        "new": {"description": "", "markers": ["A1BG"]},
    }
    assert read_types([], "", None) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([], "no description", ""), "write 'label: description'"),
        (([], "", "plasmablast"), "write 'label: GENE, GENE'"),
        ((["B cell"], "B cell: mine", ""), "'B cell' was given twice"),
        (([], "", "a: A1BG\na: CD19"), "'a' has markers twice"),
        (([str(number) for number in range(101)], "", ""), "101 candidates are more"),
    ],
)
def test_lines_that_are_none_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        read_types(*given)


@pytest.mark.parametrize(
    ("remedy", "said"),
    [
        (Remedy("Pass {option}.", "counts", "log1p"), "Choose 'log-transformed counts' under 'Values in this array'."),
        (Remedy("pass {option}.", "layer", "counts"), "choose 'layer counts' under 'Array with the counts'."),
        (
            Remedy("{option}: then pass {option}.", "use_raw", True, (("counts", "raw"),)),
            "'raw.X' under 'Array with the counts' and 'raw counts' under 'Values in this array': then choose 'raw.X' "
            "under 'Array with the counts' and 'raw counts' under 'Values in this array'.",
        ),
        (Remedy("Set {option} to the right one.", "tissue"), "Set 'Tissue' to the right one."),
        (Remedy("pass {option}.", "empty_cells", "mark"), ""),
        (Remedy("Put the counts there."), "Put the counts there."),
    ],
)
def test_advice_names_the_fields_of_the_page(remedy, said):
    assert in_words(InputError("No.", remedy)) == f"No. {said}".strip()
