# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Answers from the ontology: sums of probabilities, and the most specific term that is probable enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.ontology import UNINFORMATIVE, all_terms, ancestors, get_term, id_of, kinds_below

T_CELLS = ["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "B cell", "monocyte"]


def names(backoff, answers):
    return [backoff.nodes[answer].name if answer >= 0 else None for answer in answers]


def answer(labels, probabilities, threshold):
    backoff = OntologyBackoff(labels)
    answers, confidence = backoff.answer(backoff.probabilities(np.array(probabilities)), threshold)
    return names(backoff, answers), confidence


def test_a_probable_label_is_the_answer():
    found, confidence = answer(T_CELLS, [[0.02, 0.9, 0.05, 0.03]], 0.8)
    assert found == ["CD8-positive, alpha-beta T cell"]
    np.testing.assert_allclose(confidence, [0.9])


def test_two_likely_labels_give_the_term_above_both():
    found, confidence = answer(T_CELLS, [[0.5, 0.45, 0.03, 0.02], [0.4, 0.3, 0.25, 0.05]], 0.8)
    assert found == ["mature alpha-beta T cell", "lymphocyte"]
    np.testing.assert_allclose(confidence, [0.95, 0.95])


def test_there_is_no_answer_where_no_term_is_probable_enough():
    found, confidence = answer(["B cell", "fibroblast"], [[0.5, 0.5]], 0.8)
    assert found == [None], "'cell' is not an answer"
    np.testing.assert_allclose(confidence, [0.5])


def test_labels_outside_the_ontology_stand_alone():
    found, _ = answer({"odd": "x", "B cell": "", "T cell": ""}, [[0.9, 0.05, 0.05], [0.1, 0.45, 0.45]], 0.8)
    assert found == ["odd", "lymphocyte"]


def test_two_names_of_a_term_are_one_node():
    backoff = OntologyBackoff(["NK cell", "CL:0000623", "B cell"])
    found, confidence = backoff.answer(backoff.probabilities(np.array([[0.4, 0.5, 0.1]])), 0.8)
    assert backoff.nodes[found[0]].id == "CL:0000623"
    np.testing.assert_allclose(confidence, [0.9])


def test_a_candidate_may_be_above_another():
    found, _ = answer(["T cell", *T_CELLS], [[0.5, 0.2, 0.2, 0.05, 0.05]], 0.8)
    assert found == ["T cell"]


def test_answers_are_compared_with_known_types():
    backoff = OntologyBackoff(T_CELLS)
    place = {node.name: number for number, node in enumerate(backoff.nodes)}
    said = ["CD4-positive, alpha-beta T cell", "T cell", "B cell", "lymphocyte"]
    answers = np.array([*(place[name] for name in said), -1])
    assert backoff.right(answers, [T_CELLS[0]] * 5).tolist() == [True, True, False, True, False]
    assert backoff.right(answers[:1], ["naive thymus-derived CD4-positive, alpha-beta T cell"]).tolist() == [True]
    assert backoff.right(answers[:1], ["T cell"]).tolist() == [False], "it is more specific than the truth"
    assert backoff.narrower(answers, ["T cell"] * 5).tolist() == [True, False, False, False, False]
    assert backoff.narrower(answers, ["my own words"] * 5).tolist() == [False] * 5
    assert backoff.holds(answers, np.array([0, 0, 0, 1, 1])).tolist() == [True, True, False, True, False]
    assert backoff.holds(answers[:1], np.array([-1])).tolist() == [False]


@given(st.data())
def test_the_answer_is_the_most_specific_probable_term(data):
    terms = data.draw(st.lists(st.sampled_from(all_terms()), min_size=1, max_size=12, unique=True))
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(terms), max_size=len(terms)))
    threshold = data.draw(st.floats(0.55, 0.95))
    probabilities = np.array(weights) / sum(weights)
    backoff = OntologyBackoff([term.name for term in terms])
    (found,), (confidence,) = backoff.answer(backoff.probabilities(probabilities[None]), threshold)

    summed = {}
    for term, probability in zip(terms, probabilities, strict=True):
        for above in {term.id} | (ancestors(term.id) - UNINFORMATIVE):
            summed[above] = summed.get(above, 0) + probability
    probable = {term for term, probability in summed.items() if probability >= threshold + 1e-6}
    if found < 0:
        assert not probable
        return
    said = backoff.nodes[found]
    assert said.name == get_term(said.id).name
    assert confidence == pytest.approx(min(1, summed[said.id]), abs=1e-5)
    assert not [term for term in probable if said.id in ancestors(term)], "no term below it is as probable"


def test_kinds_below():
    assert kinds_below("CL:0000236") == sum("CL:0000236" in ancestors(term.id) for term in all_terms())
    assert kinds_below(id_of("T cell")) > kinds_below(id_of("CD8-positive, alpha-beta T cell"))


def test_ids_of_labels():
    assert id_of("NK cells") == "CL:0000623"
    assert id_of("CL:0000623") == "CL:0000623"
    assert id_of("CL:9999999") is None
    assert id_of("my own") is None
