# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Neighbours of cells: the same graph in chunks and at once, clusters in it, and scores smoothed over it."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from modeling_langcell import InputError, LangCellAnnotator, annotate_file
from modeling_langcell.annotation import neighbours
from modeling_langcell.io import read_annotation

LABELS = ["B cell", "natural killer cell", "CD14-positive monocyte", "CD4-positive, alpha-beta T cell"]


@pytest.fixture(scope="module")
def mini():
    return LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")


@pytest.fixture(scope="module")
def blood(shared):
    """600 blood cells, with known types."""
    return ad.read_h5ad(shared / "data/validation/pbmc_kang_ctrl.h5ad")[:600].copy()


def chunked(annotator, adata, size):
    return annotator.processor.feature_extractor.chunks(adata, chunk_size=size)


@pytest.mark.long
def test_the_graph_does_not_depend_on_the_chunks(mini, blood):
    whole = neighbours.neighbour_graph(chunked(mini, blood, 4096))
    parts = neighbours.neighbour_graph(chunked(mini, blood, 100))
    assert abs(whole - parts).max() < 1e-2
    assert (whole != whole.T).nnz == 0
    clusters = neighbours.cluster(whole)
    np.testing.assert_array_equal(clusters, neighbours.cluster(whole))
    _, sizes = np.unique(clusters.astype(int), return_counts=True)
    assert (np.diff(sizes) <= 0).all(), "the largest is the first"


def test_the_components_are_those_of_scanpy(mini, blood):
    found = neighbours.principal_components(chunked(mini, blood, 256))
    known = mini.chunks(blood).match.token_ids >= 0
    usual = blood[:, known].copy()
    sc.pp.normalize_total(usual, target_sum=1e4)
    sc.pp.log1p(usual)
    sc.pp.highly_variable_genes(usual, n_top_genes=2000)
    sc.pp.pca(usual, 20, mask_var="highly_variable", svd_solver="full")
    np.testing.assert_allclose(np.abs(found), np.abs(usual.obsm["X_pca"]), atol=1e-2)


def test_smoothed_scores_solve_the_system():
    rng = np.random.default_rng(0)
    weights = np.triu(rng.random((30, 30)) * (rng.random((30, 30)) < 0.2), 1)
    graph = sp.csr_matrix(weights + weights.T)
    scores = rng.dirichlet(np.ones(4), 30).astype(np.float32).T
    smoothed = np.empty_like(scores)
    neighbours.smooth(lambda labels: scores[labels], graph, 2.0, smoothed)
    laplacian = np.eye(30) - graph.toarray() / graph.toarray().sum(axis=1, keepdims=True)
    logs = np.linalg.solve(np.eye(30) + 2 * laplacian, np.log(scores).T)
    expected = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(smoothed, expected.T, atol=1e-4)


def test_cells_without_scores_or_neighbours_are_left_as_they_are():
    scores = np.array([[0.9, np.nan, 0.2, 0.0], [0.1, np.nan, 0.8, 1.0]], dtype=np.float32)
    graph = sp.csr_matrix(np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=float))
    smoothed = np.empty_like(scores)
    neighbours.smooth(lambda labels: scores[labels], graph, 1.0, smoothed)
    np.testing.assert_allclose(smoothed, scores, atol=1e-6)


@pytest.mark.long
def test_files_get_the_clusters_and_smoothed_scores_of_cells_in_memory(mini, blood, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_langcell.annotation.predictor.CHUNK_SIZE", 256)
    blood.write_h5ad(tmp_path / "cells.h5ad")
    annotate_file(mini, tmp_path / "cells.h5ad", tmp_path / "out.h5ad", LABELS, cluster=True, smooth=True)
    found = read_annotation(tmp_path / "out.h5ad")
    expected = mini.annotate(blood.copy(), LABELS, cluster=True, smooth=True)
    columns = [name for name in expected.obs if name.startswith("langcell_")]
    assert "langcell_cluster_label" in columns
    for name in columns:
        if expected.obs[name].dtype.kind == "f":
            np.testing.assert_allclose(found.obs[name], expected.obs[name], atol=1e-5)
        else:
            assert found.obs[name].astype(str).tolist() == expected.obs[name].astype(str).tolist()
    scores = ad.read_h5ad(tmp_path / "out.h5ad").obsm["langcell_probabilities"]
    np.testing.assert_allclose(scores, expected.obsm["langcell_probabilities"], atol=1e-5)
    assert not (tmp_path / ".out.h5ad.unfinished").exists()
    plain = mini.annotate(blood.copy(), LABELS)
    assert np.abs(plain.obsm["langcell_probabilities"] - scores).to_numpy().max() > 0.1


def test_few_cells_are_not_smoothed(mini, blood, caplog):
    few, alone = mini.annotate(blood[:100].copy(), LABELS, smooth=True), mini.annotate(blood[:100].copy(), LABELS)
    np.testing.assert_array_equal(few.obsm["langcell_probabilities"], alone.obsm["langcell_probabilities"])
    assert "with only 100 cells" in caplog.text
    assert "smoothing" not in few.uns["langcell"]


def test_two_cells_have_no_clusters(mini, blood):
    with pytest.raises(InputError, match="clusters need at least 3"):
        mini.annotate(blood[:2].copy(), LABELS, cluster=True)


def test_three_cells_are_clustered(mini, blood):
    assert mini.annotate(blood[:3].copy(), LABELS, cluster=True).obs["langcell_cluster"].notna().all()


def test_a_missing_package_is_named_before_any_work(mini, blood, monkeypatch):
    monkeypatch.setattr(neighbours, "find_spec", lambda package: None if package == "igraph" else True)
    with pytest.raises(InputError, match=r'need igraph: pip install "modeling-langcell\[clusters\]"'):
        mini.annotate(blood, LABELS, cluster=True)
