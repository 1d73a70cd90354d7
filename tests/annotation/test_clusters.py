# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Consensus: one answer for each cluster, and the share of its cells that agree."""

import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff

LABELS = ["B cell", "natural killer cell", "monocyte"]


def test_without_calibration_it_is_the_best_label_of_the_mean(tiny_checkpoint, cells):
    cells.obs["leiden"] = [*"aabbbcccccc", None]
    LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells, LABELS, cluster_key="leiden")
    means = cells.obsm["langcell_probabilities"].groupby(cells.obs["leiden"].to_numpy()).mean()
    for cluster, label in means.idxmax(axis=1).items():
        own = cells.obs[cells.obs["leiden"] == cluster]
        assert (own["langcell_consensus"] == label).all()
        share = (own["langcell_cell_type"] == label).mean()
        np.testing.assert_allclose(own["langcell_consensus_agreement"], share)
    assert cells.obs[["langcell_consensus", "langcell_consensus_agreement"]].iloc[-1].isna().all()
    assert cells.uns["langcell"]["cluster_key"] == "leiden"


def test_with_calibration_it_is_the_answer_to_the_mean(calibrated_checkpoint, cells):
    cells.obs["leiden"] = list("aaaabbbbcccc")
    annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
    calibration = annotator.model.config.calibration
    rate = max(calibration["thresholds"], key=float)
    annotator.annotate(cells, LABELS, cluster_key="leiden", error_rate=float(rate))
    means = cells.obsm["langcell_probabilities"].groupby(cells.obs["leiden"].to_numpy()).mean()
    backoff = OntologyBackoff(LABELS)
    answers, _ = backoff.answer(backoff.probabilities(means.to_numpy()), calibration["thresholds"][rate])
    for cluster, answer in zip(means.index, answers, strict=True):
        said = backoff.nodes[answer] if answer >= 0 else None
        own = cells.obs[cells.obs["leiden"] == cluster]
        assert set(own["langcell_consensus"]) == {said.name if said else "unknown"}
        assert set(own["langcell_consensus_id"]) == {said.id if said else ""}
        best = [LABELS.index(label) for label in own["langcell_cell_type"]]
        share = backoff.holds(np.full(len(best), answer), np.array(best)).mean()
        np.testing.assert_allclose(own["langcell_consensus_agreement"], share)


@pytest.mark.parametrize(("key", "message"), [("nowhere", "No column"), ("empty", "holds no cluster")])
def test_missing_clusters_are_refused(tiny_checkpoint, cells, key, message):
    cells.obs["empty"] = pd.Series([None] * cells.n_obs, index=cells.obs_names, dtype="object")
    with pytest.raises(InputError, match=message):
        LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells, LABELS, cluster_key=key)
