# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Predictions as specific as is sure enough: sums up the ontology, against its graph followed one step at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.ontology import UNINFORMATIVE, all_terms, ancestors, get_term, id_of, kinds_below

T_CELLS = ["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "B cell", "monocyte"]


def names(hierarchy, answers):
    return [hierarchy.nodes[answer].name if answer >= 0 else None for answer in answers]


def answer(labels, probabilities, threshold):
    hierarchy = OntologyBackoff(labels)
    answers, confidence = hierarchy.answer(hierarchy.probabilities(np.array(probabilities)), threshold)
    return names(hierarchy, answers), confidence


def test_a_sure_label_is_the_answer():
    found, confidence = answer(T_CELLS, [[0.02, 0.9, 0.05, 0.03]], 0.8)
    assert found == ["CD8-positive, alpha-beta T cell"]
    np.testing.assert_allclose(confidence, [0.9])


def test_where_the_subset_cannot_be_told_it_is_what_both_are():
    found, confidence = answer(T_CELLS, [[0.5, 0.45, 0.03, 0.02], [0.4, 0.3, 0.25, 0.05]], 0.8)
    assert found == ["mature alpha-beta T cell", "lymphocyte"]
    np.testing.assert_allclose(confidence, [0.95, 0.95])


def test_nothing_is_answered_where_nothing_is_sure():
    found, confidence = answer(["B cell", "fibroblast"], [[0.5, 0.5]], 0.8)
    assert found == [None], "that it is a cell is no answer"
    np.testing.assert_allclose(confidence, [0.5])


def test_labels_of_ones_own_stand_alone():
    found, _ = answer({"odd": "x", "B cell": "", "T cell": ""}, [[0.9, 0.05, 0.05], [0.1, 0.45, 0.45]], 0.8)
    assert found == ["odd", "lymphocyte"]


def test_two_names_of_one_term_are_one_rung():
    hierarchy = OntologyBackoff(["NK cell", "CL:0000623", "B cell"])
    found, confidence = hierarchy.answer(hierarchy.probabilities(np.array([[0.4, 0.5, 0.1]])), 0.8)
    assert hierarchy.nodes[found[0]].id == "CL:0000623"
    np.testing.assert_allclose(confidence, [0.9])


def test_candidates_may_be_above_one_another():
    found, _ = answer(["T cell", *T_CELLS], [[0.5, 0.2, 0.2, 0.05, 0.05]], 0.8)
    assert found == ["T cell"]


def test_what_is_true_of_a_cell():
    hierarchy = OntologyBackoff(T_CELLS)
    place = {node.name: number for number, node in enumerate(hierarchy.nodes)}
    said = ["CD4-positive, alpha-beta T cell", "T cell", "B cell", "lymphocyte"]
    answers = np.array([*(place[name] for name in said), -1])
    assert hierarchy.right(answers, [T_CELLS[0]] * 5).tolist() == [True, True, False, True, False]
    assert hierarchy.right(answers[:1], ["naive thymus-derived CD4-positive, alpha-beta T cell"]).tolist() == [True]
    assert hierarchy.right(answers[:1], ["T cell"]).tolist() == [False], "more than is true"
    assert hierarchy.holds(answers, np.array([0, 0, 0, 1, 1])).tolist() == [True, True, False, True, False]
    assert hierarchy.holds(answers[:1], np.array([-1])).tolist() == [False]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_answer_is_the_most_specific_that_is_probable_enough(data):
    terms = data.draw(st.lists(st.sampled_from(all_terms()), min_size=1, max_size=12, unique=True))
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(terms), max_size=len(terms)))
    threshold = data.draw(st.floats(0.55, 0.95))
    probabilities = np.array(weights) / sum(weights)
    hierarchy = OntologyBackoff([term.name for term in terms])
    (found,), (confidence,) = hierarchy.answer(hierarchy.probabilities(probabilities[None]), threshold)

    by_hand = {}
    for term, probability in zip(terms, probabilities, strict=True):
        for above in {term.id} | (ancestors(term.id) - UNINFORMATIVE):
            by_hand[above] = by_hand.get(above, 0) + probability
    probable = {term for term, probability in by_hand.items() if probability >= threshold + 1e-6}
    if found < 0:
        assert not probable
        return
    said = hierarchy.nodes[found]
    assert said.name == get_term(said.id).name
    assert confidence == pytest.approx(min(1, by_hand[said.id]), abs=1e-5)
    assert not [term for term in probable if said.id in ancestors(term)], "something below it is as sure"


def test_kinds_below():
    assert kinds_below("CL:0000236") == sum("CL:0000236" in ancestors(term.id) for term in all_terms())
    assert kinds_below(id_of("T cell")) > kinds_below(id_of("CD8-positive, alpha-beta T cell"))


def test_ids_of_labels():
    assert id_of("NK cells") == "CL:0000623"
    assert id_of("CL:0000623") == "CL:0000623"
    assert id_of("CL:9999999") is None
    assert id_of("my own") is None
