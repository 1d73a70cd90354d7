# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The catalogue of cell types: its entries are complete, supported, and agree with the ontology."""

import json
from collections import Counter

import anndata as ad
import pytest

from modeling_langcell import InputError
from modeling_langcell.ontology import (
    ancestors,
    candidates,
    cell_type,
    cell_types,
    find_term,
    get_term,
    id_of,
    usual_in,
)
from modeling_langcell.ontology.catalogue import EVERYWHERE
from modeling_langcell.ontology.terms import ids_by_name, of_other_species


def test_entries_are_human_terms_in_order():
    assert len(cell_types()) >= 350
    for term_id in cell_types():
        assert not of_other_species(get_term(term_id).name)


def test_short_names_fit_into_plots():
    names = [one.short_name for one in cell_types().values()]
    assert max(map(len, names)) <= 24
    assert [name for name, number in Counter(names).items() if number > 1] == []


def test_every_name_means_its_own_entry():
    wrong = {
        name: (one.id, id_of(name))
        for one in cell_types().values()
        for name in (one.short_name, *one.names)
        if id_of(name) != one.id
    }
    assert wrong == {}


def test_every_marker_is_supported_by_cells_or_two_lists():
    for one in cell_types().values():
        assert 3 <= len(one.markers) <= 10, one.short_name
        assert not {*one.markers} & {*one.absent}, one.short_name
        for marker, (studies, lists) in one.support.items():
            assert studies >= 1 or lists >= 2, (one.short_name, marker)


def test_tissues_are_those_of_uberon():
    for one in cell_types().values():
        assert {*one.tissues} - {EVERYWHERE} <= ids_by_name("UBERON").keys(), one.short_name


def test_all_types_of_the_training_cells_are_there(shared):
    missing = set()
    for path in sorted((shared / "data" / "train").glob("*.h5ad")) + sorted((shared / "data/more").glob("*/*.h5ad")):
        obs = ad.read_h5ad(path, backed="r").obs
        if "cell_type_ontology_term_id" in obs:
            missing |= {*obs["cell_type_ontology_term_id"].astype(str)} - cell_types().keys()
    assert missing <= {"unknown", "nan", ""}


class TestTissues:
    def test_a_tissue_has_its_own_types_and_those_found_everywhere(self):
        names = {one.short_name for one in usual_in(["lung"])}
        assert {"AT1", "AT2", "Alveolar mac", "CD4 T", "Fibroblast"} <= names
        assert not {"Hepatocyte", "Podocyte", "Astrocyte"} & names

    def test_names_and_ids_are_the_same(self):
        assert usual_in(["liver"]) == usual_in(["UBERON:0002107"]) == usual_in([" Liver"])

    def test_several_tissues_add_up(self):
        both = {*(one.id for one in usual_in(["lung", "liver"]))}
        assert both == {one.id for tissue in ("lung", "liver") for one in usual_in([tissue])}

    def test_parts_and_wholes(self):
        """The intestine has what its parts have, and the ileum has what the small intestine has."""
        assert find_term("Paneth cell").id in {one.id for one in usual_in(["intestine"])}
        assert find_term("Paneth cell").id in {one.id for one in usual_in(["ileum"])}

    def test_without_tissues_all_that_have_one(self):
        found = usual_in()
        assert 200 < len(found) < len(cell_types())
        assert all(one.tissues for one in found)
        assert find_term("leukocyte").id not in {one.id for one in found}, "too broad to be a candidate"

    @pytest.mark.parametrize(
        "umbrella", ["T cell", "memory T cell", "monocyte", "glial cell", "pancreatic endocrine cell"]
    )
    def test_no_type_whose_kinds_are_candidates(self, umbrella):
        usual = {one.id for one in usual_in()}
        assert find_term(umbrella).id not in usual
        assert any(find_term(umbrella).id in ancestors(one) for one in usual)

    def test_tumours_grow_in_organs(self):
        malignant = find_term("malignant cell").id
        assert malignant in {one.id for one in usual_in(["pancreas"])}
        assert malignant not in {one.id for one in usual_in(["blood"])}

    @pytest.mark.parametrize(("tissue", "fault"), [("lunge", "no tissue 'lunge'"), ("UBERON:99", "not a term")])
    def test_unknown_tissues_are_refused(self, tissue, fault):
        with pytest.raises(InputError, match=fault):
            usual_in([tissue])


class TestCandidates:
    def test_types_of_the_catalogue_bring_their_genes(self):
        (nk,) = candidates(["NK"])
        assert nk.markers == cell_type("CL:0000623").markers
        assert "CD3D" in nk.absent
        assert nk.markers_from == "the catalogue of cell types"

    def test_without_markers(self):
        (nk,) = candidates(["NK"], with_markers=False)
        assert (nk.markers, nk.absent) == ((), ())

    def test_your_own_genes_count_alone(self):
        (nk,) = candidates({"NK": {"markers": ["KLRB1"]}})
        assert (nk.markers, nk.absent) == (("KLRB1",), ())
        assert nk.texts[0].text.startswith("cell type: natural killer cell. ")

    def test_your_own_words_are_read_for_genes(self):
        (nk,) = candidates({"NK": "a cell with GNLY"})
        assert nk.markers is None
        assert nk.description.texts == ("a cell with GNLY",)

    @pytest.mark.parametrize(
        ("given", "fault"),
        [
            ({"genes": ["CD3E"]}, "has 'genes'"),
            ({"markers": "CD3E"}, "must be a list of genes"),
            ({"markers": [3]}, "must be a list of genes"),
            ({"description": 3}, "must be texts"),
        ],
    )
    def test_other_forms_are_refused(self, given, fault):
        with pytest.raises(InputError, match=fault):
            candidates({"NK": json.loads(json.dumps(given))})
