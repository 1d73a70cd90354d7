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


@pytest.mark.parametrize(
    ("label", "term_id"),
    [
        *(
            (form, "CL:0000236")
            for form in ("CL_0000236", "cl:0000236", "CL0000236", "CL: 0000236", "B cell (CL:0000236)")
        ),
        *((form, "CL:0000236") for form in ("http://purl.obolibrary.org/obo/CL_0000236", "CL:0000236 B cell")),
        ("CL:0000236 or CL:0000084", None),
    ],
)
def test_ids_are_read_in_every_spelling(label, term_id):
    assert id_of(label) == term_id


@pytest.mark.parametrize("minus", ["-", "–", "—", "−", "⁻"])
def test_no_dash_turns_a_marker_that_is_absent_into_one_that_is_there(minus):
    assert id_of(f"CD14+CD16{minus} monocyte") in (id_of("CD14-positive, CD16-negative monocyte"), None)
    for name in ("CD16{} NK", "CD8{} T cell"):
        found = id_of(name.format(minus))
        assert found is None or "positive" not in get_term(found).name


@pytest.mark.parametrize("sign", ["−", "-"])
def test_a_marker_beside_a_word_is_not_guessed(sign):
    assert id_of(f"CD16{sign}NK") != id_of("CD16+ NK")
    assert id_of(f"CD16 {sign} NK") != id_of("CD16+ NK")
    assert id_of("CD8-T cell") == id_of("CD8 T cell") == "CL:0000625"


@pytest.mark.parametrize(
    "label",
    ["B_cell_1", "B cell 2", "1. B cell", "B cell (1)", "B cell #1", "B cells, 1", "Bcell_1", "2: B cells", "B_2"],
)
def test_the_number_of_a_cluster_is_no_subtype(label):
    assert id_of(label) is None


def test_numbers_that_belong_to_a_name():
    assert id_of("B-1 B cell") == id_of("B1 B cell") == "CL:0000819"
    assert id_of("pneumocyte type 2") == id_of("type II pneumocyte") == id_of("type 2 pneumocyte")
    assert id_of("T helper 17") == id_of("Th17")


@pytest.mark.parametrize(
    "label",
    [
        *("T_NK_cells", "T.NK.cells", "T:NK", "T, NK", "NK+T", "T cells, NK cells", "T cells NK cells", "T_+_NK"),
        *("B, plasma cells", "Mast:basophil", "T+B"),
        *("T/NK", "T_NK", "T cell/NK cell", "NK/T cells", "T & NK cells", "B/Plasma", "B | plasma"),
    ],
)
def test_names_of_two_types_mean_neither(label):
    assert id_of(label) is None


@pytest.mark.parametrize(
    ("label", "term_id"),
    [
        *(("T cell, CD8", "CL:0000625"), ("B cell, naive", "CL:0000788"), ("monocyte, CD14+", "CL:0001054")),
        *(("CD8-positive, alpha-beta T cells", "CL:0000625"), ("CD4+T", "CL:0000624"), ("NK.T.cells", "CL:0000814")),
    ],
)
def test_a_type_and_what_is_said_of_it_are_one_type(label, term_id):
    assert id_of(label) == term_id
