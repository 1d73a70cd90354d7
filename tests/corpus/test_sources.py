# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Sources of cells: how they are found, named and read."""

import os
import pickle
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError
from modeling_langcell.corpus.sources import CellsFile, ToldOfSource, cell_facts, find_sources
from tests.corpus.conftest import build, same_folders
from tests.support.census import write_census
from tests.support.paths import REPOSITORY


class TestFindSources:
    @pytest.mark.parametrize("name", [b"latin-\xe9", b"x" * 201])
    def test_names_that_no_study_can_have_are_refused(self, studies, name):
        odd = os.fsencode(studies) + b"/" + name + b".h5ad"
        os.rename(studies / "second.h5ad", odd)
        with pytest.raises(InputError, match="rename it"):
            find_sources([str(studies)])
        with pytest.raises(InputError, match="rename it"):
            find_sources([os.fsdecode(odd)])

    def test_the_current_folder_gets_its_own_name(self, tmp_path, monkeypatch):
        (tmp_path / "atlas" / "__group").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "atlas")
        assert [source.name for source in find_sources(["."])] == ["atlas"]

    def test_missing_sources(self, tmp_path):
        with pytest.raises(InputError, match=r"is no file of cells, such as \.h5ad, a folder of them"):
            find_sources([str(tmp_path)])
        with pytest.raises(InputError, match=r"is no file of cells, such as \.h5ad, a folder of them"):
            find_sources([str(tmp_path / "absent.h5ad")])

    def test_two_sources_of_the_same_name(self, studies, tmp_path):
        shutil.copytree(studies, tmp_path / "again")
        with pytest.raises(InputError, match="have the same name 'first'"):
            find_sources([str(studies), str(tmp_path / "again")])

    def test_the_study_of_sources(self, studies):
        first, second = find_sources([str(studies)], told={"second": ToldOfSource("the atlas")})
        assert (first.study, second.study) == ("first", "the atlas")
        assert pickle.loads(pickle.dumps(second)).study == "the atlas"
        with pytest.raises(InputError, match="The table tells of 'third', which is not among the sources"):
            find_sources([str(studies)], told={"third": ToldOfSource("the atlas")})


def test_other_containers_give_the_corpus_of_their_h5ad_files(studies, tmp_path, gene_info):
    build(studies, tmp_path / "expected", gene_info)
    others = tmp_path / "others"
    others.mkdir()
    ad.read_h5ad(studies / "first.h5ad").write_zarr(others / "first.zarr")
    with h5py.File(others / "second.h5mu", "w") as file:
        ad.io.write_elem(file.create_group("mod"), "rna", ad.read_h5ad(studies / "second.h5ad"))
    (others / "notes.txt").write_text("no cells")
    build(others, tmp_path / "found", gene_info)
    assert same_folders(tmp_path / "expected" / "shards", tmp_path / "found" / "shards")
    checksum = CellsFile(str(others / "first.zarr")).checksum()
    (others / "first.zarr" / "more").write_text("changed")
    assert CellsFile(str(others / "first.zarr")).checksum() != checksum


def test_h5ad_files_are_read_in_slices(studies):
    source = CellsFile(str(studies / "first.h5ad"))
    part = source.read(np.array([3, 4, 7]))
    assert part.obs_names.tolist() == ["first3", "first4", "first7"]
    assert (part.X != ad.read_h5ad(studies / "first.h5ad")[[3, 4, 7]].X).nnz == 0
    assert source.checksum() == CellsFile(str(studies / "first.h5ad")).checksum()
    assert source.checksum() != CellsFile(str(studies / "second.h5ad")).checksum()


@pytest.mark.long
def test_a_soma_experiment_gives_the_shards_of_its_file(shared, tmp_path):
    pytest.importorskip("tiledbsoma")
    adata = ad.read_h5ad(shared / "data" / "train" / "zheng_sorted_safe.h5ad")
    adata.obs["dataset_id"] = ["first", "second"] * (len(adata) // 2)
    experiment = str(write_census(adata, tmp_path / "homo_sapiens"))
    adata.write_h5ad(tmp_path / "homo_sapiens.h5ad")
    gene_info = str(shared / "data" / "genes" / "Homo_sapiens.gene_info.gz")
    options = {"vocabulary": str(REPOSITORY / "hub_configs" / "langcell-mini"), "chunk_cells": 128}
    corpus = build(experiment, tmp_path / "corpus", gene_info, **options)
    of_file = build(tmp_path / "homo_sapiens.h5ad", tmp_path / "file", gene_info, **options)
    assert same_folders(corpus.folder / "shards", of_file.folder / "shards")
    condition = "cell_type == 'B cell' and tissue == 'blood'"
    b_cells = build(experiment, tmp_path / "b", gene_info, where=condition, **options)
    assert len(b_cells) == (adata.obs["cell_type"] == "B cell").sum()
    one = build(experiment, tmp_path / "one", gene_info, where="dataset_id != 'second'", **options)
    assert [study for _, study in one.panels] == ["first"]
    with pytest.raises(InputError, match="cannot be evaluated"):
        build(experiment, tmp_path / "none", gene_info, where="no_such == 1", **options)


@pytest.mark.parametrize(
    "values",
    [
        np.array([True, False, False]),
        pd.array([True, False, None], dtype="boolean"),
        np.array(["True", "False", "False"]),
        pd.Categorical(["true", "false", None]),
        np.array([1, 0, 0]),
        np.array([1.0, 0.0, np.nan]),
        np.array(["Y", "N", "NA"]),
    ],
)
def test_primary_data_however_it_is_written(values):
    facts = cell_facts(pd.DataFrame({"is_primary_data": values}, index=["a", "b", "c"]), "study")
    assert facts["primary"].tolist() == [True, False, False]


def test_other_words_for_primary_data_are_refused():
    obs = pd.DataFrame({"is_primary_data": ["True", "Perhaps"]}, index=["a", "b"])
    with pytest.raises(InputError, match=r"obs\['is_primary_data'\] must hold true or false, not 'Perhaps'"):
        cell_facts(obs, "study")


def test_ids_as_owl_writes_them():
    forms = ["CL_0000236", "CL:0000236", "cl:0000236", "CL:0000236 ", "http://purl.obolibrary.org/obo/CL_0000236", None]
    columns = {"cell_type_ontology_term_id": forms, "dataset_id": ["GSE_12"] * 6}
    facts = cell_facts(pd.DataFrame(columns, index=list("abcdef")), "study")
    assert facts["cell_type"].tolist() == ["CL:0000236"] * 5 + ["unknown"]
    assert facts["study"].tolist() == ["GSE_12"] * 6
