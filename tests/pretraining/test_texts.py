# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Descriptions of cells, and of which cells they may be true."""

import numpy as np
import pandas as pd
import pytest

from modeling_langcell import ontology
from modeling_langcell.corpus.sources import ASPECTS
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.texts import DescriptionSampler, all_type_texts

B_CELL, LYMPHOCYTE, MONOCYTE, CLASSICAL = "CL:0000236", "CL:0000542", "CL:0000576", "CL:0000860"
BLOOD, MARROW, NORMAL = "UBERON:0000178", "UBERON:0002371", "PATO:0000461"


def cells(*known):
    """Returns the facts of cells, each a dict; missing aspects are unknown."""
    return pd.DataFrame([dict.fromkeys(ASPECTS, "unknown") | cell for cell in known])


def sampler(facts, fits=lambda _: True, **settings):
    config = PretrainingConfig(corpus="", output="", **{"ancestor_share": 0.0} | settings)
    return DescriptionSampler(facts, config, fits)


BLOOD_B = {"cell_type": B_CELL, "tissue": BLOOD, "disease": NORMAL, "suspension_type": "cell"}
FACTS = cells(BLOOD_B, {"cell_type": B_CELL, "tissue": MARROW}, {"cell_type": MONOCYTE}, {"cell_type": CLASSICAL})


def test_cells_of_a_type_share_one_description():
    described = sampler(FACTS, name_only_share=0.0)(np.array([0, 1, 2]), np.random.default_rng(0))
    assert described.text_index[0] == described.text_index[1] != described.text_index[2]
    assert described.texts[described.text_index[0]] == ontology.get_term(B_CELL).description
    assert not described.ignored_pairs.any()


def test_pairs_of_a_coarse_and_a_finer_type_are_ignored():
    described = sampler(FACTS)(np.array([0, 2, 3]), np.random.default_rng(0))
    b_cell, monocyte, classical = described.text_index
    assert described.ignored_pairs[1, classical]
    assert described.ignored_pairs[2, monocyte]
    assert not described.ignored_pairs[0].any()
    assert not described.ignored_pairs[:, b_cell].any()


def test_pairs_of_a_type_and_its_ancestors_are_ignored():
    describe = sampler(FACTS, ancestor_share=1.0, name_only_share=1.0)
    names = {f"cell type: {n}" for i in describe.ancestors[B_CELL] for n in _names(i)}
    rng = np.random.default_rng(0)
    for _ in range(20):
        described = describe(np.array([0, 1]), rng)
        assert {described.texts[i] for i in described.text_index} <= names
        if len(described.texts) == 2:
            assert described.ignored_pairs[[0, 1], [described.text_index[1], described.text_index[0]]].all()


def _names(term_id):
    term = ontology.get_term(term_id)
    return (term.name, *term.synonyms)


def test_other_aspects_come_in_any_order():
    describe = sampler(FACTS, aspect_share=1.0, name_only_share=1.0)
    rng = np.random.default_rng(0)
    said = {describe(np.array([0]), rng).texts[0] for _ in range(200)}
    parts = [text.split("; ") for text in said]
    spoken_of = {part.partition(":")[0] for text in parts for part in text}
    assert spoken_of == {"cell type", "tissue", "disease", "suspension type"}
    assert {len(text) for text in parts} == {1, 2, 3, 4}
    assert len({text[0].partition(":")[0] for text in parts}) == 4, "each comes first at times"
    assert "tissue: blood" in {part for text in parts for part in text}
    unknown = {describe(np.array([2]), rng).texts[0] for _ in range(50)}
    assert all(text.startswith("cell type:") and ";" not in text for text in unknown)


def test_a_tissue_may_be_true_where_it_is_unknown():
    describe = sampler(FACTS, aspect_share=0.0)
    in_blood = (("cell_type", B_CELL), ("tissue", BLOOD))
    everywhere = np.arange(4)
    assert describe._may_be_true(in_blood, everywhere).tolist() == [True, False, False, False]
    assert describe._may_be_true((("tissue", BLOOD),), everywhere).tolist() == [True, False, True, True]


def test_long_descriptions_have_names_only():
    longest = 60
    describe = sampler(FACTS, fits=lambda text: len(text) < longest, aspect_share=1.0, name_only_share=0.0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = describe(np.array([0]), rng).texts[0]
        if "; " in text:
            assert not any(ontology.get_term(term).definition[:20] in text for term in (B_CELL, BLOOD, NORMAL))


def test_siblings_come_last_and_are_wrong_for_some_cell():
    describe = sampler(FACTS, sibling_texts=3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        described = describe(np.array([0, 2]), rng)
        own = np.unique(described.text_index)
        assert own.tolist() == list(range(len(own)))
        assert 0 < len(described.texts) - len(own) <= 3
        assert not described.ignored_pairs[:, len(own) :].all(axis=0).any()


def test_all_type_texts_has_every_text_that_is_drawn():
    describe = sampler(FACTS, ancestor_share=0.5)
    rng = np.random.default_rng(0)
    said = {text for _ in range(50) for text in describe(np.arange(4), rng).texts}
    assert said <= set(all_type_texts([*FACTS["cell_type"], "unknown"]))
    assert all_type_texts(["unknown"]) == []


@pytest.mark.parametrize("aspect", ["tissue", "disease", "assay", "development_stage", "sex"])
def test_terms_of_every_ontology_have_names(aspect):
    term = {
        "tissue": "UBERON:0002107",
        "disease": "MONDO:0005011",
        "assay": "EFO:0009899",
        "development_stage": "HsapDv:0000258",
        "sex": "PATO:0000383",
    }[aspect]
    facts = cells({"cell_type": B_CELL, aspect: term})
    describe = sampler(facts, aspect_share=1.0, name_only_share=1.0)
    rng = np.random.default_rng(0)
    said = " ".join(describe(np.array([0]), rng).texts[0] for _ in range(30))
    assert any(f"{aspect.replace('_', ' ')}: {name}" in said for name in _names(term))


def test_a_term_without_definition_is_described_by_its_names():
    undefined = next(term for term in ontology.all_terms() if not term.definition and term.synonyms)
    describe = sampler(cells({"cell_type": undefined.id}), name_only_share=0.0)
    rng = np.random.default_rng(0)
    said = {describe(np.array([0]), rng).texts[0] for _ in range(50)}
    assert said == {f"cell type: {name}" for name in _names(undefined.id)}
