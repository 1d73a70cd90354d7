# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The ontology: terms by name or id, their relations, and the texts that describe them."""

import itertools
import re
from pathlib import Path

import anndata as ad
import pytest
from cellxgene_ontology_guide.ontology_parser import OntologyParser

from modeling_langcell import InputError
from modeling_langcell.model.prompts import Text
from modeling_langcell.ontology import (
    UNINFORMATIVE,
    agreement,
    all_terms,
    ancestors,
    candidates,
    descendants,
    describe,
    find_term,
    get_term,
    id_of,
    related,
    release,
    siblings,
    texts_of,
)

OTHER_SPECIES = re.compile(r"Mmus|Mus musculus|mouse|sensu (?!Vertebrata)")


def test_all_current_terms_are_there():
    terms = all_terms()
    assert len(terms) > 3000
    assert all(term.id.startswith("CL:") and term.name for term in terms)
    assert len({term.id for term in terms}) == len(terms)


@pytest.mark.parametrize(
    ("label", "term_id"),
    [
        ("natural killer cell", "CL:0000623"),
        ("NK cell", "CL:0000623"),
        ("CL:0000623", "CL:0000623"),
        ("b cells", "CL:0000236"),
        ("CD14+ monocytes", "CL:0001054"),
        ("cd8-positive alpha-beta t cell", "CL:0000625"),
    ],
)
def test_names_synonyms_and_ids_find_their_term(label, term_id):
    assert find_term(label).id == term_id


@pytest.mark.parametrize(
    ("label", "term_id"),
    [
        ("alpha cell", "CL:0000171"),
        ("Beta cells", "CL:0000169"),
        ("gamma cell", "CL:0002275"),
        ("delta-cell", "CL:0000173"),
        ("epsilon cell", "CL:0005019"),
    ],
)
def test_bare_greek_letters_are_cells_of_pancreatic_islets(label, term_id):
    assert find_term(label).id == term_id
    assert id_of(label) == term_id
    assert "CL:0008024" in ancestors(term_id), "it is a pancreatic endocrine cell"


def test_terms_of_other_species_need_their_species():
    """No synonym of such a term finds it unless it names the species; its name and id do."""
    of_others = [term for term in all_terms() if OTHER_SPECIES.search(term.name)]
    assert len(of_others) > 200
    answering = []
    for term in of_others:
        assert find_term(term.id) == find_term(term.name) == term
        assert not term.name.endswith("(Homo sapiens)")
        answering += [synonym for synonym in term.synonyms if id_of(synonym) == term.id]
    assert "VLMC (Mus musculus)" in answering
    assert all(OTHER_SPECIES.search(synonym) for synonym in answering)


@pytest.mark.parametrize(
    "label",
    [
        "retinal ganglion cell A",
        "neuroglioblast",
        "NK1.1-positive NK cell",
        "DB1 cone bipolar cell",
        "334 Microglia NN",
    ],
)
def test_bare_names_of_other_species_are_refused(label):
    with pytest.raises(InputError, match="does not know"):
        find_term(label)


@pytest.mark.parametrize(
    ("label", "term_id"),
    [
        ("neuroblast", "CL:0000031"),
        ("ILC2, human", "CL:0001081"),
        ("non-classical monocyte, human", "CL:0002396"),
        ("Chandelier PV (Homo sapiens)", "CL:4072046"),
        ("murine MDP", "CL:0002011"),
        ("club cell (zebrafish)", "CL:0007021"),
    ],
)
def test_names_for_humans_and_vertebrates_are_found(label, term_id):
    assert find_term(label).id == term_id


def test_an_exact_name_wins_over_another_term_s_synonym():
    assert all(find_term(term.name).name.casefold() == term.name.casefold() for term in all_terms()[::97])


@pytest.mark.parametrize(
    ("label", "closest"),
    [("natural kiler cel", "natural killer cell"), ("CD8 Tcellz", "CD8-positive, alpha-beta T cell")],
)
def test_an_unknown_name_is_refused_with_the_closest_terms(label, closest):
    with pytest.raises(InputError) as error:
        find_term(label)
    assert repr(label) in str(error.value)
    assert closest in str(error.value)


@pytest.mark.parametrize("term_id", ["CL:9999999", "CL:1", "CL:abcdefg"])
def test_an_unknown_id_is_refused(term_id):
    with pytest.raises(InputError, match=term_id):
        get_term(term_id)


def test_a_replaced_id_names_its_replacement():
    deprecated = "CL:0000003"  # "native cell"
    with pytest.raises(InputError, match="deprecated"):
        get_term(deprecated)


def test_descriptions_keep_labels_and_order():
    described = describe(["T cell", "CL:0000236", "cell type: something new. It expresses insulin."])
    assert list(described) == ["T cell", "CL:0000236", "cell type: something new. It expresses insulin."]
    assert described["T cell"].startswith("cell type: T cell. A type of lymphocyte")
    assert described["CL:0000236"].startswith("cell type: B cell.")
    assert described["cell type: something new. It expresses insulin."].endswith("It expresses insulin.")


def test_own_descriptions_are_used_unchanged():
    described = describe({"mine": "a cell of mine", "NK cell": ""})
    assert described["mine"] == "a cell of mine"
    assert described["NK cell"].startswith("cell type: natural killer cell.")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([], "No candidate"),
        ("T cell", "several labels"),
        (["T cell", "T cell"], "twice"),
        ([3], "must be texts"),
        ({"T cell": 3}, "must be texts"),
        (7, "must be labels, or a mapping"),
        (Path("types.txt"), "must be labels, or a mapping"),
        ({"T cell": "CL:0000236"}, "is the id of a type"),
        ({"T cell": {"description": "CL_0000236"}}, "is the id of a type"),
        ({"T cell": ["CD3D", "CD3E"]}, r"look like genes\. Give genes as {'T cell': {'markers': \['CD3D', \.\.\.\]}}"),
        ({"T cell": ["Cd3d", "Cd3e"]}, "look like genes"),
        (["no such thing at all"], "does not know"),
    ],
)
def test_unusable_labels_are_refused(labels, says):
    with pytest.raises(InputError, match=says):
        describe(labels)


def test_ancestors_and_descendants():
    lymphocyte, nk, t_cell = "CL:0000542", "CL:0000623", "CL:0000084"
    assert lymphocyte in ancestors(nk)
    assert nk not in ancestors(nk)
    below = descendants("lymphocyte")
    assert below[0].id == lymphocyte
    assert {nk, t_cell} <= {term.id for term in below}
    assert "CL:0000235" not in {term.id for term in below}, "a macrophage is no lymphocyte"


def test_every_type_of_the_real_cells_is_found_by_its_name(shared):
    for path in sorted((shared / "data").glob("*/*.h5ad")):
        obs = ad.read_h5ad(path, backed="r").obs[["cell_type", "cell_type_ontology_term_id"]].drop_duplicates()
        for name, term_id in obs.astype(str).itertuples(index=False):
            if term_id.startswith("CL:"):
                assert find_term(name).id == term_id, (path.name, name)


def test_siblings_share_a_parent_and_are_not_related():
    classical, other, t_cell = (find_term(n).id for n in ("classical monocyte", "non-classical monocyte", "T cell"))
    assert other in siblings(classical)
    assert classical in siblings(other)
    assert t_cell not in siblings(classical)
    for term in all_terms()[::53]:
        for sibling in siblings(term.id):
            assert not related(term.id, sibling)
            assert (ancestors(term.id) & ancestors(sibling)) - UNINFORMATIVE


def test_related_is_either_above_or_below():
    b_cell, lymphocyte, monocyte = "CL:0000236", "CL:0000542", "CL:0000576"
    assert related(b_cell, lymphocyte)
    assert related(lymphocyte, b_cell)
    assert related(b_cell, b_cell)
    assert not related(b_cell, monocyte)


def test_terms_of_other_ontologies():
    liver = get_term("UBERON:0002107")
    assert liver.name == "liver"
    assert liver.definition
    assert "UBERON:0000062" in ancestors(liver.id), "it is an organ"
    assert all(term_id.startswith("UBERON:") for term_id in ancestors(liver.id))
    assert related("UBERON:0000062", liver.id)
    assert ancestors("unknown") == frozenset()


def test_agreement_equals_the_formula():
    parser = OntologyParser()

    def steps_up(term_id):
        reached = {term_id}
        steps: dict[str, int] = {}
        while reached:
            steps |= dict.fromkeys(reached, max(steps.values(), default=-1) + 1)
            reached = {above for below in reached for above in parser.get_term_parents(below)} - steps.keys()
        return steps

    drawn = [term.id for term in (*descendants("leukocyte")[::25], *all_terms()[::300])]
    ways_up = {term_id: steps_up(term_id) for term_id in [find_term("memory B cell").id, *drawn]}
    values = set()
    for (one, up), (other, other_up) in itertools.combinations(ways_up.items(), 2):
        best = 0.0
        for common in (up.keys() & other_up.keys()) - UNINFORMATIVE:
            depth = min(step for above, step in steps_up(common).items() if above in UNINFORMATIVE)
            best = max(best, 2 * depth / (2 * depth + up[common] + other_up[common]))
        assert agreement(one, other) == agreement(other, one) == pytest.approx(best)
        values.add(best)
    assert len(values) > 20


def test_agreement_falls_from_parent_to_sibling_to_stranger():
    compared = 0
    for term in all_terms()[::29]:
        beside = siblings(term.id)
        if not beside:
            continue
        compared += 1
        parents = set(OntologyParser().get_term_parents(term.id)) - UNINFORMATIVE
        best_sibling = max(agreement(term.id, sibling) for sibling in beside)
        assert 1 > max(agreement(term.id, parent) for parent in parents) > best_sibling
        assert min(agreement(term.id, sibling) for sibling in beside) > 0
    assert compared > 50
    assert agreement("CL:0000084", "CL:0000540") == 0, "a T cell and a neuron are both cells, and no more"
    assert agreement("CL:0000000", "CL:0000084") == 0, "that it is a cell says nothing of a T cell"
    assert agreement("CL:0000000", "CL:0000000") == 1


@pytest.mark.parametrize("term_id", ["unknown", "CL:9999999", "CL:0000003", "UBERON:0002107"])
def test_agreement_needs_cell_types(term_id):
    with pytest.raises(InputError, match=term_id):
        agreement("CL:0000084", term_id)
    with pytest.raises(InputError, match=term_id):
        agreement(term_id, term_id)


class TestCandidates:
    def test_term_and_origin_of_the_texts(self):
        by_name, own, itself = candidates({"NK cells": "", "mine": "cell type: odd.", "cell type: other.": ""})
        assert by_name.term == find_term("natural killer cell")
        assert [text.text for text in by_name.texts] == [by_name.term.description]
        assert by_name.texts[0].origin == f"name and definition in the Cell Ontology, {release()}"
        assert by_name.texts[0].template == "cell type: {name}. {definition}"
        assert (own.term, own.texts) == (None, (Text("cell type: odd.", "your own words"),))
        assert itself.texts == (Text("cell type: other.", "your own words"),)

    def test_own_words_for_a_known_type(self):
        (found,) = candidates({"B cell": "cell type: what I call so."}, ["{name}"])
        assert found.term == find_term("B cell")
        assert found.texts == (Text("cell type: what I call so.", "your own words"),)

    def test_several_own_texts(self):
        (found,) = candidates({"mine": ["one", "another", "one"]})
        assert [text.text for text in found.texts] == ["one", "another"]
        assert describe({"mine": ["one", "another"]}) == {"mine": "one"}

    def test_unknown_labels_are_refused(self):
        with pytest.raises(InputError, match="does not know 'odd'"):
            candidates(["odd"])

    def test_an_ensemble_of_prompt_templates_in_order(self):
        prompt_templates = ["cell type: {name}. {definition}", "{name}", "{synonym}, a kind of {name}", "{name}"]
        (found,) = candidates(["T cells"], prompt_templates)
        term = find_term("T cell")
        assert len(term.synonyms) > 1
        synonyms = [f"{synonym}, a kind of T cell" for synonym in term.synonyms]
        assert [text.text for text in found.texts] == [term.description, "T cell", *synonyms]
        assert found.texts[2].origin == f"synonym {term.synonyms[0]!r} and name in the Cell Ontology, {release()}"
        assert [text.template for text in found.texts[:2]] == prompt_templates[:2]
        assert texts_of(["T cells"], prompt_templates) == {"T cells": tuple(text.text for text in found.texts)}

    def test_every_term_is_one_text_by_default(self):
        """The text is the name, with the definition if there is one, as in all checkpoints so far."""
        described = describe([term.name for term in all_terms()])
        for term in all_terms():
            assert described[term.name] == f"cell type: {term.name}. {term.definition}".strip()
            assert [text.text for text in term.texts()] == [term.description]
