# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Marker evidence: the places of named genes in the rankings of cells, and what they add to the scores."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from transformers import pipeline

from modeling_langcell import InputError, LangCellAnnotator, annotate_file
from modeling_langcell.model.gene_matching import UsualPlaces
from modeling_langcell.model.marker_genes import NamedGenes
from modeling_langcell.model.zero_shot import MarkerEvidence

from ..support.tiny import SYMBOLS

LABELS = {
    "b": {"description": "b cell", "markers": ["GENE1", "GENE2"]},
    "nk": {"description": "nk", "markers": ["GENE7"], "absent": ["GENE1"]},
    "other": {"description": "monocyte", "markers": []},
}
PROBABILITIES = "langcell_probabilities"


@pytest.fixture(scope="module")
def annotator(tiny_checkpoint):
    return LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")


def numbers(cells):
    return cells.obsm[PROBABILITIES].to_numpy()


class TestPlaces:
    @pytest.fixture
    def extractor(self, tiny_processor):
        return tiny_processor.feature_extractor

    def test_by_hand(self, extractor, cells):
        """1 - rank / expressed genes, by sorting each cell's values; 0 where a gene is not expressed."""
        watched = [extractor.genes.id_of(symbol) for symbol in SYMBOLS]
        ranked = next(iter(extractor.chunks(cells, places_of=watched)))
        order = extractor.rank(cells, max_length=100)
        expected = np.zeros_like(ranked.places)
        for cell in range(len(order)):
            genes = order[cell][1:]
            for rank, gene in enumerate(genes):
                expected[cell, watched.index(gene)] = 1 - rank / len(genes)
        assert (expected > 0).any()
        np.testing.assert_allclose(ranked.places, expected, atol=1e-6)

    def test_the_ranking_is_cut_later(self, extractor, cells):
        watched = [extractor.genes.id_of(symbol) for symbol in SYMBOLS]
        whole, cut = (next(iter(extractor.chunks(cells, places_of=watched, max_length=n))) for n in (100, 4))
        assert cut.lengths.max() == 4 < whole.lengths.max()
        np.testing.assert_array_equal(cut.places, whole.places)
        plain = next(iter(extractor.chunks(cells, max_length=4)))
        np.testing.assert_array_equal(cut.token_ids, plain.token_ids)
        assert plain.places.shape == (cells.n_obs, 0)

    def test_what_was_not_measured_is_missing(self, extractor, cells):
        watched = [extractor.genes.id_of(symbol) for symbol in SYMBOLS]
        some = cells[:, 5:]
        places = next(iter(extractor.chunks(some, places_of=watched, empty_cells="mark"))).places
        _, match = extractor.open(some)
        np.testing.assert_array_equal(np.isnan(places).all(axis=0), ~np.isin(watched, match.token_ids))
        assert np.isnan(places).any()

    def test_columns_of_one_gene_are_summed_first(self, extractor):
        counts, names = sp.csr_matrix([[1.0, 5, 1]]), ["GENE1", "GENE2", "GENE1"]
        adata = ad.AnnData(counts, var=pd.DataFrame({"symbol": names}, index=["a", "b", "c"]))
        watched = [extractor.genes.id_of(name) for name in ("GENE1", "GENE2")]
        places = next(iter(extractor.chunks(adata, places_of=watched))).places
        assert sorted(places[0].tolist()) == [0.5, 1.0]


class TestEvidence:
    @pytest.fixture
    def evidence(self):
        named = {"a": NamedGenes((2, 3)), "b": NamedGenes((3,), (2,)), "c": NamedGenes()}
        usual = UsualPlaces({"means": [0.2, 0.5], "spreads": [0.2, 0.25]}, 5)
        return MarkerEvidence(named, usual, torch.device("cpu"))

    def test_by_hand(self, evidence):
        found = evidence(torch.tensor([[0.6, 0.5], [0.2, 1.0]]))
        # Two spreads above for the first gene of "a", none for the second; and four further genes, a third below each.
        two, further = 2**0.75, 4 * (1 / 3) ** 0.75
        expected = [
            [(two - further) / 6, (-two - further) / 6, -further / 4],
            [(two - further) / 6, (two - further) / 6, -further / 4],
        ]
        torch.testing.assert_close(found, torch.tensor(expected))

    def test_what_was_not_measured_says_nothing(self, evidence):
        found = evidence(torch.tensor([[torch.nan, 1.0], [torch.nan, torch.nan]]))
        two, further = 2**0.75, 4 * (1 / 3) ** 0.75
        expected = [[(two - further) / 5, (two - further) / 5, -further / 4], [-further / 4] * 3]
        torch.testing.assert_close(found, torch.tensor(expected))

    def test_a_gene_that_hardly_varies_does_not_outweigh_all(self):
        assert UsualPlaces({"means": [0.0], "spreads": [0.001]}, 4).spreads[2] == np.float32(UsualPlaces.LEAST_SPREAD)


class TestScores:
    @pytest.mark.parametrize("alpha", [1, 0.4])
    def test_weight_0_changes_no_bit(self, annotator, cells, alpha):
        plain = {label: given["description"] for label, given in LABELS.items()}
        expected = numbers(annotator.annotate(cells.copy(), plain, alpha=alpha))
        for labels in (LABELS, plain):
            np.testing.assert_array_equal(
                numbers(annotator.annotate(cells.copy(), labels, alpha=alpha, marker_weight=0)), expected
            )
        assert "marker_weight" not in annotator.annotate(cells, LABELS).uns["langcell"]

    @pytest.mark.parametrize("alpha", [1, 0.4])
    def test_by_hand(self, annotator, cells, alpha):
        plain = numbers(annotator.annotate(cells.copy(), LABELS, alpha=alpha))
        found = numbers(annotator.annotate(cells.copy(), LABELS, alpha=alpha, marker_weight=2))
        scorer = annotator.scorer(LABELS, alpha, marker_weight=2)
        places = next(iter(annotator.chunks(cells, places_of=scorer.marker_ids))).places
        expected = plain * np.exp(2 * scorer.evidence(torch.from_numpy(places)).numpy())
        np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)
        assert np.abs(found - plain).max() > 0.05

    def test_neighbours_change_nothing(self, annotator, cells):
        whole = numbers(annotator.annotate(cells.copy(), LABELS, marker_weight=3))
        alone = numbers(annotator.annotate(cells[3:4].copy(), LABELS, marker_weight=3))
        np.testing.assert_allclose(alone[0], whole[3], rtol=1e-5)

    def test_text_and_lists_are_the_same(self, annotator, cells):
        by_text = {"b": "b cell. markers: GENE1, GENE2", "nk": "nk. markers: GENE7, -GENE1", "other": "monocyte"}
        found = [numbers(annotator.annotate(cells.copy(), one, marker_weight=2)) for one in (LABELS, by_text)]
        np.testing.assert_allclose(found[0], found[1], rtol=2e-2)
        np.testing.assert_array_equal(found[0].argmax(axis=1), found[1].argmax(axis=1))

    def test_pipeline_and_files_say_the_same(self, annotator, cells, tmp_path):
        expected = numbers(annotator.annotate(cells.copy(), LABELS, marker_weight=2, alpha=0.4))
        answers = pipeline("zero-shot-cell-annotation", model=annotator.model, processor=annotator.processor)(
            cells, candidate_labels=LABELS, marker_weight=2, alpha=0.4
        )
        by_pipeline = [
            [{one["label"]: one["score"] for one in answer}[label] for label in LABELS] for answer in answers
        ]
        np.testing.assert_allclose(by_pipeline, expected, rtol=1e-5)
        cells.write_h5ad(tmp_path / "cells.h5ad")
        annotate_file(annotator, tmp_path / "cells.h5ad", tmp_path / "out.h5ad", LABELS, marker_weight=2, alpha=0.4)
        out = ad.read_h5ad(tmp_path / "out.h5ad")
        np.testing.assert_allclose(numbers(out), expected, rtol=1e-6)
        assert out.uns["langcell"]["marker_weight"] == 2

    def test_a_shortlist_follows_the_evidence(self, annotator, cells):
        exact = numbers(annotator.annotate(cells.copy(), LABELS, alpha=0.4, marker_weight=5, shortlist=None))
        found = annotator.annotate(cells.copy(), LABELS, alpha=0.4, marker_weight=5, shortlist=2)
        proven = found.obs["langcell_proven"].to_numpy()
        np.testing.assert_array_equal(numbers(found).argmax(axis=1)[proven], exact.argmax(axis=1)[proven])

    def test_scores_are_calibrated_for_one_weight(self, annotator, cells, monkeypatch):
        calibration = {"alpha": 1.0, "temperature": 2.0, "thresholds": {}, "usual_novelty": 1.0, "marker_weight": 2.0}
        monkeypatch.setattr(annotator.model.config, "calibration", calibration)
        assert annotator.scorer(LABELS, 1.0, marker_weight=2).calibration is calibration
        assert annotator.scorer(LABELS, 1.0, marker_weight=1).calibration is None
        assert annotator.scorer(LABELS, 1.0).calibration is None

    @pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
    def test_other_weights_are_refused(self, annotator, cells, weight):
        with pytest.raises(InputError, match="marker_weight"):
            annotator.annotate(cells, LABELS, marker_weight=weight)


def test_usual_places_are_saved(tiny_processor, tmp_path):
    extractor = tiny_processor.feature_extractor
    places = {"means": [0.25] * len(SYMBOLS), "spreads": [0.5] * len(SYMBOLS)}
    made = type(extractor)(extractor.gene_vocabulary, gene_places=places)
    made.save_pretrained(tmp_path)
    again = type(extractor).from_pretrained(tmp_path)
    assert again.gene_places == places
    assert again.usual_places.means[5] == 0.25
    extractor.save_pretrained(tmp_path / "without")
    assert "gene_places" not in (tmp_path / "without" / "preprocessor_config.json").read_text()
