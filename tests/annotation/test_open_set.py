# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells of no candidate: told from the others beside the types that the checkpoint knows, and answered `unknown`."""

import anndata as ad
import numpy as np
import pytest

from modeling_langcell import LangCellAnnotator, LangCellConfig
from modeling_langcell.annotation.calibrate import score_labelled
from modeling_langcell.annotation.calibration import (
    Calibration,
    LabelledScores,
    RivalScores,
    candidate_sets,
    fit_lead,
)
from modeling_langcell.annotation.open_set import OtherTypes, lead
from modeling_langcell.model.token_budget import TokenBudget
from modeling_langcell.model.zero_shot import MarkerEvidence, read_cells

BLOOD = ["B cell", "natural killer cell", "CD14-positive monocyte"]
T_CELLS = {"CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell"}


@pytest.fixture(scope="module")
def mini():
    return LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")


@pytest.fixture(scope="module")
def blood(shared):
    return ad.read_h5ad(shared / "data/validation/pbmc_kang_ctrl.h5ad")[:400].copy()


def test_lead_by_hand():
    logits = np.array([[5.0, 1.0], [2.0, 3.0], [9.0, 0.0]])
    others = np.array([[4.0, 8.0, 7.0, 3.0], [50.0, 41.0, 40.0, 1.0], [0.0, 40.0, 1.0, 2.0]])
    competes = np.array([[True, False, True, True], [True] * 4])  # The second type is too much like the first label.
    np.testing.assert_array_equal(lead(logits, others, competes), [5 - 3, -20, 9 - 0])
    np.testing.assert_array_equal(lead(logits, others[:, :2], competes[:, :2]), 20)  # Two rivals may fit by chance.


def test_types_above_below_and_like_a_candidate_do_not_compete(mini):
    others = OtherTypes(mini.model, mini.processor)
    scorer = mini.scorer(["T cell", "B cell"]).by_description
    related, alike = others.alike(scorer.descriptions, scorer.label_embeds)
    column = {term: number for number, term in enumerate(others.ids)}
    t_cell, b_cell = related.tolist()
    assert t_cell[column["CL:0000084"]], "its own"
    assert t_cell[column["CL:0000624"]], "CD4-positive T cells are T cells"
    assert not t_cell[column["CL:0000236"]]
    assert b_cell[column["CL:0000236"]]
    assert alike[0, column["CL:0000084"]]
    assert not alike[0, column["CL:0000182"]], "a hepatocyte"


def test_cells_of_no_candidate_are_unknown_and_the_reason_is_told(mini, blood):
    found = mini.annotate(blood.copy(), BLOOD).obs
    truth = blood.obs["cell_type"].astype(str)
    unlike = found["langcell_unknown_because"].astype(str) == "unlike every candidate"
    assert unlike[truth.isin(T_CELLS)].mean() > 0.8
    assert unlike[truth.isin(BLOOD)].mean() < 0.1
    assert (found["langcell_answer"] == "unknown").equals(found["langcell_unknown_because"].notna())
    assert ((found["langcell_fit"] < 0.5) == unlike).all()


def test_a_single_candidate_is_not_the_answer_for_every_cell(mini, blood):
    found = mini.annotate(blood.copy(), ["B cell"]).obs
    is_b = blood.obs["cell_type"].astype(str) == "B cell"
    unknown = found["langcell_answer"] == "unknown"
    assert unknown[~is_b].mean() > 0.8
    assert unknown[is_b].mean() < 0.1


def test_clusters_of_no_candidate_are_unknown(mini, blood):
    adata = blood.copy()
    adata.obs["type"] = adata.obs["cell_type"].astype(str)
    found = mini.annotate(adata, BLOOD, cluster_key="type").obs
    answers = found.groupby("type")["langcell_cluster_answer"].first()
    assert answers["B cell"] == "B cell"
    assert all(answers[one] == "unknown" for one in T_CELLS & set(answers.index))


def test_the_calibration_offers_what_users_offer():
    labels = ["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "B cell", "monocyte"]
    study = LabelledScores(labels, *(np.ones((1, 4)),) * 2, np.zeros(1), np.array(labels[:1]))
    sets = candidate_sets(study)
    offered = {kind: {tuple(one.tolist()) for of_kind, one in sets if of_kind == kind} for kind, _ in sets}
    assert offered["all"] == {(True, True, True, True)}
    assert (False, False, True, True) in offered["branch"], "without T cells"
    assert (False, False, False, True) in offered["branch"], "without lymphocytes"
    assert offered["alone"] == {tuple(row) for row in np.eye(4, dtype=bool).tolist()}


def _study(seed):
    """Cells of four labels; each fits its own label best, and three types that compete with the others."""
    rng = np.random.default_rng(seed)
    labels, truth = ["B cell", "monocyte", "fibroblast", "neuron"], rng.integers(0, 4, 400)
    logits = rng.normal(0, 1, (400, 4)) + 8 * np.eye(4)[truth]
    kinds = np.repeat(np.eye(4, dtype=bool), 3, axis=1)  # Three of each label.
    others = rng.normal(0, 1, (400, 12)) + 8 * kinds[truth]
    found = RivalScores(logits, others, np.zeros_like(others), kinds, kinds, np.eye(4, dtype=bool))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return LabelledScores(labels, scores, np.zeros_like(scores), np.zeros(400), np.array(labels)[truth], found)


def test_the_fit_tells_cells_of_a_candidate_from_others():
    weights = fit_lead({"one": _study(0), "two": _study(1)}, 0.0)
    assert weights[0] > 0
    new, calibration = _study(2), Calibration(1.0, {}, 0.0, 1.0, lead=weights)
    offered = np.array([True, True, False, True])
    fits = new.fit_probability(calibration, offered) >= 0.5
    assert (fits == offered[new.truth_index]).mean() > 0.95


def test_a_checkpoint_that_does_not_name_its_types_has_no_fit(calibrated_checkpoint, cells, labelled_studies):
    annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
    assert "langcell_fit" not in annotator.annotate(cells, BLOOD).obs
    assert score_labelled(annotator, ad.read_h5ad(labelled_studies[0]), "cell_type").rivals is None
    assert (
        fit_lead(
            {"one": _study(0), "two": score_labelled(annotator, ad.read_h5ad(labelled_studies[0]), "cell_type")}, 0
        )
        is None
    )


def test_known_types_and_their_number_must_agree():
    with pytest.raises(Exception, match="known_types names 1 types, not n_known_types=2"):
        LangCellConfig(n_known_types=2, known_types=["CL:0000084"])


def test_cells_are_compared_once_with_each_type(mini, blood, monkeypatch):
    scorer = mini.scorer([*BLOOD, "a cell that nobody has described"], accept_text=True)
    compared, weighed = [], []
    similarity, evidence = mini.model.get_similarity_logits, MarkerEvidence.__call__
    monkeypatch.setattr(
        mini.model, "get_similarity_logits", lambda *given: compared.append(given[1]) or similarity(*given)
    )
    monkeypatch.setattr(MarkerEvidence, "__call__", lambda self, places: weighed.append(self) or evidence(self, places))
    ranked = mini.processor.feature_extractor.rank(blood, places_of=scorer.marker_ids)
    list(read_cells(ranked, scorer, TokenBudget(10**6), mini.device))
    own = scorer.by_description
    assert own.relatives is not None, "one candidate is new"
    assert [len(embeds) for embeds in compared] == [
        len(own.label_embeds),
        len(own.relatives.known_embeds),
        len(scorer.others.embeds),
    ]
    assert weighed == [own.evidence, scorer.others.evidence]
