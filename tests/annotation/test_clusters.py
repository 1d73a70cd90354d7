# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Labels of clusters: by the evidence of all their cells, with the share that agrees and a mark on mixed clusters."""

import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation.clusters import CORRELATION, ClusterLabels, count_clusters
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.annotation.predictions import DecisionRule

LABELS = ["B cell", "natural killer cell", "monocyte"]


def geometric_means(adata, key):
    """Returns the geometric mean of the scores of each cluster, scaled to add up to 1."""
    logs = np.log(adata.obsm["langcell_probabilities"].astype(float)).groupby(adata.obs[key].to_numpy()).mean()
    return np.exp(logs).div(np.exp(logs).sum(axis=1), axis=0)


def label_by_hand(scores, names):
    """Writes the labels of clusters, uncalibrated, from scores given by hand, and returns `obs`."""

    class Rule:
        labels, backoff = LABELS, None

    obs = pd.DataFrame({"cluster": names})
    scores = np.array(scores)
    found = ClusterLabels(obs["cluster"], Rule())
    found.add(range(len(scores)), scores)
    best = np.where(np.isnan(scores[:, 0]), -1, np.nan_to_num(scores).argmax(axis=1))
    found.write(obs, type("Predictions", (), {"best": best}))
    return obs


def test_without_calibration_it_is_the_label_with_the_highest_geometric_mean(tiny_checkpoint, cells):
    cells.obs["leiden"] = [*"aabbbcccccc", None]
    LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells, LABELS, cluster_key="leiden")
    for cluster, means in geometric_means(cells, "leiden").iterrows():
        own = cells.obs[cells.obs["leiden"] == cluster]
        assert (own["langcell_cluster_label"] == means.idxmax()).all()
        assert (own["langcell_cluster_second"] == means.sort_values().index[-2]).all()
        share = (own["langcell_cell_type"] == means.idxmax()).mean()
        np.testing.assert_allclose(own["langcell_cluster_agreement"], share)
    last = cells.obs.iloc[-1]
    assert last[["langcell_cluster_label", "langcell_cluster_second", "langcell_cluster_agreement"]].isna().all()
    assert not last["langcell_cluster_mixed"]
    assert cells.uns["langcell"]["cluster_key"] == "leiden"


def test_with_calibration_the_answer_counts_four_cells_as_one_and_a_bit(calibrated_checkpoint, cells):
    cells.obs["leiden"] = list("aaaabbbbcccc")
    annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
    calibration = annotator.model.config.calibration
    rate = max(calibration["thresholds"], key=float)
    annotator.annotate(cells, LABELS, cluster_key="leiden", error_rate=float(rate))
    means = geometric_means(cells, "leiden") ** (4 / (1 + 3 * CORRELATION))
    means = means.div(means.sum(axis=1), axis=0)
    backoff = OntologyBackoff(LABELS)
    answers, _ = backoff.answer(backoff.probabilities(means.to_numpy()), calibration["thresholds"][rate])
    for cluster, answer in zip(means.index, answers, strict=True):
        said = backoff.nodes[answer] if answer >= 0 else None
        own = cells.obs[cells.obs["leiden"] == cluster]
        assert set(own["langcell_cluster_answer"]) == {said.name if said else "unknown"}
        assert set(own["langcell_cluster_answer_id"]) == {said.id if said else ""}
        best = [LABELS.index(label) for label in own["langcell_cell_type"]]
        share = backoff.holds(np.full(len(best), answer), np.array(best)).mean()
        np.testing.assert_allclose(own["langcell_cluster_agreement"], share)


def test_a_weak_majority_does_not_outvote_strong_evidence():
    scores = [[0.5, 0.45, 0.05]] * 3 + [[0.1, 0.8, 0.1]] * 2
    obs = label_by_hand(scores, ["a"] * 5)
    assert set(obs["langcell_cluster_label"]) == {"natural killer cell"}
    assert set(obs["langcell_cluster_second"]) == {"B cell"}
    np.testing.assert_allclose(obs["langcell_cluster_agreement"], 0.4)


def test_a_few_cells_of_another_type_do_not_outvote_the_rest():
    scores = [[0.7, 0.2, 0.1]] * 8 + [[1e-12, 1e-12, 1.0]] * 2
    assert set(label_by_hand(scores, ["a"] * 10)["langcell_cluster_label"]) == {"B cell"}


def test_the_answer_is_the_label_or_above_it(calibrated_checkpoint, cells):
    """The plain means are for monocytes, but most cells are B cells: the answer is what both are."""
    annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
    rule = DecisionRule(annotator.scorer(LABELS))
    scores = np.array([[0.7, 0.2, 0.1]] * 8 + [[1e-12, 1e-12, 1.0]] * 2)
    obs = pd.DataFrame({"cluster": ["a"] * 10})
    found = ClusterLabels(obs["cluster"], rule)
    found.add(range(10), scores)
    found.write(obs, type("Predictions", (), {"best": scores.argmax(axis=1), "fit": np.full(10, np.nan)}))
    assert set(obs["langcell_cluster_label"]) == {"B cell"}
    assert set(obs["langcell_cluster_answer"]) == {"mononuclear leukocyte"}
    assert (obs["langcell_cluster_agreement"] == 1).all()


def test_a_cluster_of_two_types_is_marked():
    sure_b, sure_monocyte, unsure = [0.9, 0.05, 0.05], [0.05, 0.05, 0.9], [0.4, 0.35, 0.25]
    mixed, pure, unclear = [sure_b] * 3 + [sure_monocyte] * 2, [sure_b] * 5, [unsure] * 5
    obs = label_by_hand([*mixed, *pure, *unclear], ["mixed"] * 5 + ["pure"] * 5 + ["unclear"] * 5)
    assert obs.groupby("cluster")["langcell_cluster_mixed"].first().to_dict() == {
        "mixed": True,
        "pure": False,
        "unclear": False,
    }


def test_a_type_and_a_kind_of_it_are_not_two_types():
    class Rule:
        labels, backoff = ("T cell", "CD4-positive, alpha-beta T cell"), None

    obs = pd.DataFrame({"cluster": ["a"] * 4})
    found = ClusterLabels(obs["cluster"], Rule())
    found.add(range(4), np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]))
    found.write(obs, type("Predictions", (), {"best": np.array([0, 0, 1, 1])}))
    assert not obs["langcell_cluster_mixed"].any()


def test_clusters_are_counted_in_the_order_of_their_numbers():
    scores = [[0.9, 0.05, 0.05]] * 3 + [[np.nan] * 3]
    obs = label_by_hand(scores, ["10", "2", "x", "3"])
    found = count_clusters(obs, "cluster")
    assert list(found) == ["2", "3", "10", "x"]
    assert found["10"] == {
        "cells": 1,
        "label": "B cell",
        "answer": None,
        "agreement": 1.0,
        "second": "natural killer cell",
        "mixed": False,
    }
    assert found["3"] == {"cells": 1, "label": None, "answer": None, "agreement": None, "second": None, "mixed": False}


@pytest.mark.parametrize(("key", "message"), [("nowhere", "No column"), ("empty", "holds no cluster")])
def test_missing_clusters_are_refused(tiny_checkpoint, cells, key, message):
    cells.obs["empty"] = pd.Series([None] * cells.n_obs, index=cells.obs_names, dtype="object")
    with pytest.raises(InputError, match=message):
        LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells, LABELS, cluster_key=key)


def test_clusters_are_either_given_or_made(tiny_checkpoint, cells):
    cells.obs["leiden"] = "a"
    with pytest.raises(InputError, match="either cluster_key"):
        LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells, LABELS, cluster_key="leiden", cluster=True)
