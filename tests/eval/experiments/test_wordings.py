# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Ensembles of wordings measured: the scores are those of annotation, and gains are of the same cells."""

import numpy as np
import pytest

from modeling_langcell.eval.experiments import wordings
from modeling_langcell.eval.task import Bench, judge, scores_of_rows


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(wordings, "ENSEMBLES", {wordings.ONE: wordings.ENSEMBLES[wordings.ONE], "name": ("{name}",)})


def test_measures_are_those_of_annotation(shared, two):
    bench = Bench("langcell-mini", None, shared / "data")
    study = bench.study("zheng68k_subset_pbmc")
    adata = bench.cells(study)
    truth = adata.obs[study.label_key].astype(str).to_numpy()
    found = wordings.measures(bench, study, sorted({*truth}))
    candidates, every = np.unique(truth), np.arange(len(truth))
    for name, ensemble in wordings.ENSEMBLES.items():
        bench.annotator.processor.wordings = ensemble
        scores = bench.annotator.annotate(adata.copy(), candidates).obsm["langcell_probabilities"].to_numpy()
        expected = judge(truth, candidates, scores).scores
        measured = found[name](every)
        assert measured.pop("cell_to_text_r1") == pytest.approx(expected["accuracy"]), "all types are the study's"
        assert measured == {metric: pytest.approx(expected[metric]) for metric in measured}
    assert found[wordings.ONE](every) != found["name"](every)


def test_gains_are_of_the_same_cells(two):
    rng = np.random.default_rng(0)
    of_studies = {}
    for study in wordings.RETRIEVAL.studies:
        truth = rng.choice(["a", "b"], 40)
        worse = np.where(rng.random(40) < 0.3, "b", truth)
        of_studies[study] = {wordings.ONE: scores_of_rows(truth, truth), "name": scores_of_rows(truth, worse)}
    found = wordings.compare(of_studies, dict.fromkeys(of_studies, 40), seed=0, draws=30)
    accuracies = [found[study]["name"]["accuracy"] for study in of_studies]
    for study, one in zip(of_studies, accuracies, strict=True):
        assert one["score"] == of_studies[study]["name"](np.arange(40))["accuracy"]
        assert one["gain"] == pytest.approx(one["score"] - 1)
        assert one["interval"][0] < one["gain"] < one["interval"][1] <= 0
    assert found["mean"]["name"]["accuracy"]["score"] == pytest.approx(np.mean([one["score"] for one in accuracies]))
    assert found["mean"][wordings.ONE]["macro_f1"] == {"score": 1.0, "gain": 0.0, "interval": [0.0, 0.0]}
