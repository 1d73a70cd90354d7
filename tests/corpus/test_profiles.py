# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Profiles, which are averages or sums over many cells: cells are drawn from them, for training and for the genes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from modeling_langcell.corpus.build import CorpusSettings, make_corpus
from modeling_langcell.corpus.profiles import BACKGROUND, CELLS, COUNTS, draw_cell, draw_cells
from modeling_langcell.corpus.sources import ToldOfSource, find_sources
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor
from tests.corpus.conftest import build, same_folders
from tests.support.tiny import GENES

N_GENES = 40


@pytest.fixture
def atlas(tmp_path):
    """Four profiles, of which the first has one gene alone, and six cells."""
    rng = np.random.default_rng(0)
    profiles = rng.integers(1, 3000, (4, N_GENES)).astype(np.float32)
    profiles[0] = 0
    profiles[0, 3] = 100_000
    counts = np.vstack([profiles, rng.poisson(1.0, (6, N_GENES)) + np.eye(6, N_GENES)])
    obs = pd.DataFrame(
        {
            "cell_type_ontology_term_id": "CL:0000236",
            "organism": "Mus musculus",
            "profile": [True] * 4 + [False] * 6,
        },
        index=[f"row{number}" for number in range(10)],
    )
    (tmp_path / "atlas").mkdir()
    adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES[:N_GENES]))
    adata.write_h5ad(tmp_path / "atlas" / "atlas.h5ad")
    return tmp_path / "atlas"


class TestDrawing:
    def test_counts_follow_the_profile_and_the_background(self):
        rng, profile, background = np.random.default_rng(0), np.array([3, 7]), np.array([0, 0, 0, 0, 0, 1.0]).cumsum()
        totals, shares = [], []
        for _ in range(300):
            genes, counts = draw_cell(profile, np.array([1.0, 3.0]), background, rng)
            drawn = dict(zip(genes.tolist(), counts.tolist(), strict=True))
            assert set(drawn) <= {3, 5, 7}
            assert drawn[7] / (drawn[3] + drawn[7]) == pytest.approx(0.75, abs=0.1)
            totals.append(sum(drawn.values()))
            shares.append(drawn.get(5, 0) / totals[-1])
        assert COUNTS[0] <= min(totals) < 1000
        assert 5000 < max(totals) <= COUNTS[1]
        assert np.median(totals) == pytest.approx(np.sqrt(np.prod(COUNTS)), rel=0.15), "equally likely in logarithms"
        assert np.mean(shares) == pytest.approx(BACKGROUND / 2, abs=0.01)
        assert max(shares) < BACKGROUND * 1.2

    def test_genes_of_no_share_are_never_drawn(self):
        rng = np.random.default_rng(0)
        background = np.array([0.0, 1.0, 0.0, 0.0]).cumsum()
        for _ in range(50):
            assert set(draw_cell(np.array([0, 1, 2]), np.array([0.0, 1.0, 0.0]), background, rng)[0]) == {1}

    def test_profiles_become_several_cells_and_cells_stay(self):
        counts = sp.csr_matrix(np.array([[0, 5], [2000, 1], [7, 0]], dtype=np.float32))
        cells, rows = draw_cells(counts, np.array([False, True, False]), seed=0)
        assert rows.tolist() == [0, 2] + [1] * CELLS
        np.testing.assert_array_equal(cells[:2].toarray(), [[0, 5], [7, 0]])
        assert (cells[2:].sum(axis=1) >= COUNTS[0]).all()
        again, _ = draw_cells(counts, np.array([False, True, False]), seed=0)
        assert (cells != again).nnz == 0

    def test_a_profile_without_counts_stays(self):
        counts = sp.csr_matrix(np.array([[0, 0], [3, 1]], dtype=np.float32))
        cells, rows = draw_cells(counts, np.array([True, True]), seed=0)
        assert rows.tolist() == [0] + [1] * CELLS
        assert cells[0].sum() == 0
        cells, rows = draw_cells(counts[:1], np.array([True]), seed=0)
        assert rows.tolist() == [0]


class TestCorpus:
    def test_a_profile_keeps_all_its_genes_and_counts(self, atlas, tmp_path, gene_info):
        corpus = build(atlas, tmp_path / "corpus", gene_info, max_genes=8)
        assert corpus.facts["profile"].tolist() == [True] * 4 + [False] * 6
        assert set(corpus.facts["organism"]) == {"Mus musculus"}
        ids = corpus.token_ids(range(10))
        assert [len(row) for row in ids[:4]] == [2] + [N_GENES + 1] * 3
        assert max(map(len, ids[4:])) == 8
        assert corpus.facts["length"].max() == 8
        adata, extractor = ad.read_h5ad(atlas / "atlas.h5ad"), LangCellFeatureExtractor(corpus.gene_vocabulary)
        by_id, _ = extractor.read_counts(adata)
        for row in range(4):
            np.testing.assert_array_equal(corpus.cells[row]["counts"], by_id[row, ids[row][1:]].toarray().ravel())
        assert corpus.cells[5]["counts"] is None

    def test_cells_are_drawn_from_it(self, atlas, tmp_path, gene_info):
        corpus = build(atlas, tmp_path / "corpus", gene_info)
        cls, alone = corpus.token_ids([0])[0]
        drawn = corpus.draw_cell(0, np.random.default_rng(1))
        assert drawn[:2].tolist() == [cls, alone], "nearly all its counts are of one gene"
        assert len(set(drawn.tolist())) == len(drawn) > 2, "the others come from the background"
        assert corpus.draw_cell(0, np.random.default_rng(1)).tolist() == drawn.tolist()
        assert corpus.draw_cell(1, np.random.default_rng(1)).tolist() != drawn.tolist()

    def test_drawn_cells_are_ranked_as_the_extractor_ranks_them(self, atlas, tmp_path, gene_info, monkeypatch):
        corpus = build(atlas, tmp_path / "corpus", gene_info)
        extractor = LangCellFeatureExtractor(corpus.gene_vocabulary)
        counts = np.random.default_rng(0).integers(1, 9, N_GENES)
        ids = np.arange(2, 2 + N_GENES)
        monkeypatch.setattr("modeling_langcell.corpus.corpus.draw_cell", lambda *_: (ids, counts))
        ranked = extractor.rank(counts[None], gene_ids=corpus.gene_vocabulary["ensembl_ids"])
        assert corpus.draw_cell(1, np.random.default_rng(0)).tolist() == ranked[0].tolist()

    def test_genes_are_described_by_drawn_cells(self, atlas, tmp_path, gene_info):
        """Medians and usual places are those of a corpus of the drawn cells themselves, in place of the profiles."""
        corpus = build(atlas, tmp_path / "corpus", gene_info)
        adata = ad.read_h5ad(atlas / "atlas.h5ad")
        cells, rows = draw_cells(adata.X, adata.obs["profile"].to_numpy(), seed=0)
        obs = adata.obs.iloc[rows].assign(profile=False, dataset_id="atlas").set_axis([*map(str, range(len(rows)))])
        (tmp_path / "drawn").mkdir()
        ad.AnnData(cells, obs=obs, var=adata.var).write_h5ad(tmp_path / "drawn" / "drawn.h5ad")
        drawn = build(tmp_path / "drawn", tmp_path / "of-drawn", gene_info, chunk_cells=100)
        assert corpus.gene_vocabulary == drawn.gene_vocabulary
        assert corpus.gene_places == drawn.gene_places
        adata.obs["profile"] = False
        adata.write_h5ad(atlas / "atlas.h5ad")
        as_cells = build(atlas, tmp_path / "as-cells", gene_info)
        assert corpus.gene_vocabulary["medians"] != as_cells.gene_vocabulary["medians"]
        assert corpus.gene_places != as_cells.gene_places

    def test_a_profile_without_known_genes_is_left_out(self, atlas, tmp_path, gene_info):
        adata = ad.read_h5ad(atlas / "atlas.h5ad")
        empty = adata.X.toarray()
        empty[0] = 0
        adata.X = empty
        adata.write_h5ad(atlas / "atlas.h5ad")
        corpus = build(atlas, tmp_path / "corpus", gene_info)
        assert corpus.manifest["sources"][0]["left_out"] == {"no known gene": 1}
        assert corpus.facts["profile"].sum() == 3
        assert len(corpus.draw_cell(0, np.random.default_rng(0))) > 2

    def test_the_background_has_the_genes_of_its_source_alone(self, atlas, tmp_path, gene_info):
        adata = ad.read_h5ad(atlas / "atlas.h5ad")
        adata[:, :10].copy().write_h5ad(atlas / "panel.h5ad")
        sources = find_sources([str(atlas)], told=dict.fromkeys(("atlas", "panel"), ToldOfSource("one")))
        corpus = make_corpus(sources, tmp_path / "corpus", CorpusSettings(gene_info, min_cells=1))
        panel = set(corpus.panels["panel", "one"].tolist())
        rows = np.flatnonzero(corpus.facts["profile"])[4:]
        for row in rows.tolist():
            assert set(corpus.draw_cell(row, np.random.default_rng(0))[1:].tolist()) <= panel

    @pytest.mark.long
    def test_the_same_cells_give_the_same_corpus(self, atlas, tmp_path, gene_info):
        for name, processes in (("one", 1), ("two", 2)):
            build(atlas, tmp_path / name, gene_info, processes=processes, chunk_cells=3)
        assert same_folders(tmp_path / "one", tmp_path / "two")
