# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The names of cell types: what people write finds the term that they mean, and nothing else."""

import csv
from pathlib import Path

import pytest

from modeling_langcell import InputError
from modeling_langcell.ontology import all_terms, candidates, descendants, find_term, get_term, id_of
from modeling_langcell.ontology.names import normalized
from modeling_langcell.ontology.terms import of_other_species

#: Names as CellTypist, Azimuth, CELLxGENE and textbooks write them, with the terms that they mean.
EVERYDAY = Path(__file__).with_name("everyday_names.tsv")


def read_everyday() -> dict[str, str]:
    with EVERYDAY.open(newline="") as lines:
        return {row["name"]: row["id"] for row in csv.DictReader(lines, delimiter="\t")}


def test_everyday_names_find_their_terms():
    names = read_everyday()
    assert len(names) > 500
    wrong = {name: id_of(name) for name, term_id in names.items() if id_of(name) not in (term_id, None)}
    refused = [name for name in names if id_of(name) is None]
    assert not wrong
    assert len(refused) <= 0.02 * len(names), refused


def test_every_term_is_found_by_its_name():
    assert [term.name for term in all_terms() if id_of(term.name) != term.id] == []


@pytest.mark.parametrize("end", ["cell", "cells", "Cells", "CELL"])
def test_plural_and_case_make_no_difference(end):
    assert {id_of(f"{name} {end}") for name in ("mast", "Mast", "MAST")} == {"CL:0000097"}


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("γδ T-cells", "gamma delta t cell"),
        ("CD14+CD16- monocytes", "cd14 positive cd16 negative monocyte"),
        ("CD56bright_NK", "cd56 bright nk"),
        ("Tumour cell", "tumor cell"),
        ("Müller glia", "muller glia"),
        ("Tcells", "t cell"),
        ("Bm2'", "bm2 prime"),
    ],
)
def test_spelling(name, normal):
    assert normalized(name) == normal


def test_a_minus_is_not_a_plus():
    assert id_of("CD14+CD16- monocyte") != id_of("CD14+CD16+ monocyte")


@pytest.mark.parametrize("name", ["M", "X", "", "   ", "cell type", "negative", "DC3"])
def test_what_means_nothing_is_refused(name):
    assert id_of(name) is None


def test_no_term_of_another_species_is_found_or_suggested():
    for name in read_everyday():
        assert not of_other_species(find_term(name).name)
    for name in ("alpha retinal", "Tregg", "purkinje cel", "group 2 innate", "tanycyt", "NK1.1 NK"):
        with pytest.raises(InputError) as error:
            find_term(name)
        assert "Mmus" not in str(error.value)
        assert "mouse" not in str(error.value)


def test_terms_below_a_human_one_are_human():
    assert not any(of_other_species(term.name) for term in descendants("astrocyte"))
    assert any(of_other_species(term.name) for term in descendants("tanycyte (Mmus)"))


def test_all_unknown_names_are_told_at_once():
    with pytest.raises(InputError) as error:
        candidates(["B cell", "Tregg", "hepatocyt", "NK"])
    told = str(error.value)
    assert "'Tregg' (closest: 'regulatory T cell' CL:0000815" in told
    assert "'hepatocyt' (closest: 'hepatocyte' CL:0000182" in told
    assert "'B cell'" not in told


def test_unknown_names_can_be_texts(caplog):
    with caplog.at_level("WARNING", logger="modeling_langcell"):
        known, unknown = candidates(["B cell", "glowing cell"], accept_text=True)
    assert known.term == get_term("CL:0000236")
    assert unknown.term is None
    assert [text.text for text in unknown.texts] == ["cell type: glowing cell."]
    assert "'glowing cell'" in caplog.text


def test_a_wrong_id_is_never_a_text():
    with pytest.raises(InputError, match="CL:9999999"):
        candidates(["CL:9999999"], accept_text=True)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NK Proliferating", "cycling natural killer cell"),
        ("Cycling AT2", "cycling pulmonary alveolar type 2 cell"),
        ("dividing T cells", "cycling T cell"),
        ("proliferating podocytes", "podocyte"),
    ],
)
def test_dividing_cells_are_cells_of_their_type(name, found):
    assert find_term(name).name == found


def test_a_state_alone_is_no_type():
    assert id_of("proliferating") is None
    assert id_of("cycling nothing") is None
