# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The tissue of cells, judged by markers: it is the right one, and decides the candidates of a run without labels."""

import anndata as ad
import numpy as np
import pytest

from modeling_langcell import LangCellAnnotator, annotate_file
from modeling_langcell.annotation.tissues import choose_tissues, find_tissues
from modeling_langcell.io import read_annotation
from modeling_langcell.ontology import get_term, tissue_masks, usual_in

TYPES = usual_in()


@pytest.fixture(scope="module")
def annotator():
    return LangCellAnnotator.from_pretrained("langcell-mini")


@pytest.fixture(scope="module")
def study(shared):
    """Reads a study, shuffled, so that parts of it are like the whole."""

    def read(name):
        (path,) = (shared / "data").glob(f"*/{name}.h5ad")
        adata = ad.read_h5ad(path)
        return adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()

    return read


def cells_of(**counts):
    """Returns probabilities of cells that are surely of types, given by the names on plots, in these numbers."""
    rows = [one.short_name for one in TYPES]
    probabilities = np.full((sum(counts.values()), len(rows)), 1e-9)
    cell = 0
    for name, number in counts.items():
        probabilities[cell : cell + number, rows.index(name.replace("_", " "))] = 1
        cell += number
    return probabilities


class TestChoosing:
    @pytest.mark.parametrize(
        ("cells", "tissues"),
        [
            ({"CD4_T": 100}, ["blood"]),
            ({"Platelet": 50, "Naive_B": 50}, ["blood"]),
            ({"CD4_T": 95, "Hepatocyte": 5}, ["blood", "liver"]),
            ({"AT2": 40, "Fibroblast": 60}, ["blood", "lung"]),
            ({"Astrocyte": 60, "OPC": 40}, ["blood", "brain"]),  # They are usual in the spinal cord too.
            ({"Podocyte": 50, "Hepatocyte": 50, "CD4_T": 200}, ["blood", "kidney", "liver"]),
        ],
    )
    def test_of_sure_types(self, cells, tissues):
        blood, *others = choose_tissues(cells_of(**cells), TYPES)
        assert [blood, *sorted(others)] == tissues

    def test_a_single_stray_cell_adds_no_further_tissue(self):
        assert choose_tissues(cells_of(CD4_T=20, Hepatocyte=20, Podocyte=1), TYPES) == ["blood", "liver"]

    def test_cells_that_could_be_anything_are_taken_for_blood(self):
        assert choose_tissues(np.full((50, len(TYPES)), 1 / len(TYPES)), TYPES) == ["blood"]

    def test_smaller_parts_of_the_body_are_left_to_larger_ones(self):
        masks = tissue_masks(TYPES)
        assert {"brain", "intestine", "blood"} <= masks.keys()
        assert not {"spinal cord", "large intestine", "gallbladder"} & masks.keys()
        ids = {one.id for one, usual in zip(TYPES, masks["lung"], strict=True) if usual}
        assert ids == {one.id for one in usual_in(["lung"])}


class TestFinding:
    @pytest.mark.long
    @pytest.mark.parametrize(
        ("name", "tissues"),
        [
            ("pbmc_kang_ctrl", ["blood"]),
            ("zheng68k_subset_pbmc", ["blood"]),
            ("pdac_moncada_card", ["blood", "pancreas"]),
            ("liver_he2020_ahca", ["blood", "liver"]),
            ("scp1884_gut_crohn", ["blood", "intestine"]),
            ("fetal_telencephalon_braun_hvg2000", ["blood", "brain"]),
        ],
    )
    def test_in_real_studies(self, annotator, study, name, tissues):
        assert find_tissues(annotator.processor, annotator.chunks(study(name), empty_cells="mark")) == tissues

    def test_the_tissues_of_joined_studies(self, annotator, study):
        joined = ad.concat([study("scp1884_gut_crohn")[:300], study("liver_he2020_ahca")[:300]], join="inner")
        found = find_tissues(annotator.processor, annotator.chunks(joined, empty_cells="mark"))
        assert sorted(found) == ["blood", "intestine", "liver"]

    def test_by_a_sample_of_many_cells(self, annotator, study):
        tumour = study("pdac_moncada_card")
        many = ad.concat([tumour] * 3)
        many.var = tumour.var
        assert find_tissues(annotator.processor, annotator.chunks(many, empty_cells="mark")) == ["blood", "pancreas"]

    def test_cells_without_known_genes_tell_nothing(self, annotator, study):
        blood = study("pbmc_kang_ctrl")[:10].copy()
        blood.X = blood.X * 0
        assert find_tissues(annotator.processor, annotator.chunks(blood, empty_cells="mark")) == ["blood"]


@pytest.fixture(scope="module")
def tumour(study):
    return study("pdac_moncada_card")[::4].copy()


@pytest.fixture(scope="module")
def annotated(annotator, tumour):
    return annotator.annotate(tumour.copy(), empty_cells="mark")


class TestAnnotating:
    @pytest.mark.long
    def test_the_candidates_are_those_of_the_tissue(self, annotated):
        run = annotated.uns["langcell"]
        assert run["tissues"].tolist() == ["blood", "pancreas"]
        assert run["tissues_found"]
        assert run["labels"].tolist() == [get_term(one.id).name for one in usual_in(["blood", "pancreas"])]

    @pytest.mark.long
    def test_naming_the_tissues_that_were_found_gives_the_same(self, annotator, tumour, annotated):
        named = annotator.annotate(tumour.copy(), tissue=["blood", "pancreas"], empty_cells="mark")
        np.testing.assert_array_equal(named.obsm["langcell_probabilities"], annotated.obsm["langcell_probabilities"])
        assert not named.uns["langcell"]["tissues_found"]

    @pytest.mark.long
    def test_a_file_gets_the_same_candidates_as_memory(self, annotator, tumour, annotated, tmp_path):
        tumour.write_h5ad(tmp_path / "tumour.h5ad")
        annotate_file(annotator, tmp_path / "tumour.h5ad", tmp_path / "annotated.h5ad", empty_cells="mark")
        found = read_annotation(tmp_path / "annotated.h5ad")
        assert found.uns["langcell"]["tissues"].tolist() == ["blood", "pancreas"]
        assert found.obs["langcell_cell_type"].astype(str).tolist() == (
            annotated.obs["langcell_cell_type"].astype(str).tolist()
        )

    @pytest.mark.long
    def test_without_markers_all_types_are_candidates(self, annotator, tumour):
        run = annotator.annotate(tumour[:20].copy(), with_markers=False, alpha=1, empty_cells="mark").uns["langcell"]
        assert len(run["labels"]) == len(TYPES)
        assert "tissues" not in run

    def test_named_labels_come_from_no_catalogue(self, annotator, tumour):
        run = annotator.annotate(tumour[:20].copy(), ["B cell", "T cell"], empty_cells="mark").uns["langcell"]
        assert not {"from_catalogue", "tissues"} & run.keys()
