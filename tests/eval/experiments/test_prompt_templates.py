# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The comparison of prompt templates: scores are those of annotation, and gains are those of the same cells."""

import numpy as np
import pytest

from modeling_langcell.eval.experiments import prompt_templates
from modeling_langcell.eval.task import EvaluationContext, score_predictions, scorer_of_rows


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(
        prompt_templates,
        "ENSEMBLES",
        {prompt_templates.DEFAULT: prompt_templates.ENSEMBLES[prompt_templates.DEFAULT], "name": ("{name}",)},
    )


@pytest.mark.long
def test_measures_are_those_of_annotation(shared, two):
    context = EvaluationContext("langcell-mini", None, shared / "data")
    config = context.annotator.model.config
    config.relatives_weight = config.known_cells_weight = 0  # Cells are compared with the texts alone.
    study = context.study("zheng68k_subset_pbmc")
    adata = context.cells(study)
    truth = adata.obs[study.label_key].astype(str).to_numpy()
    found = prompt_templates.measures(context, study, sorted({*truth}))
    candidates, every = np.unique(truth), np.arange(len(truth))
    for name, ensemble in prompt_templates.ENSEMBLES.items():
        context.annotator.processor.prompt_templates = ensemble
        scores = (
            context.annotator.annotate(adata.copy(), candidates, marker_weight=0)
            .obsm["langcell_probabilities"]
            .to_numpy()
        )
        expected = score_predictions(truth, candidates, scores).scores
        measured = found[name](every)
        assert measured.pop("cell_to_text_r1") == pytest.approx(expected["accuracy"]), "all types are the study's"
        assert measured == {metric: pytest.approx(expected[metric]) for metric in measured}
    assert found[prompt_templates.DEFAULT](every) != found["name"](every)


def test_gains_are_of_the_same_cells(two):
    rng = np.random.default_rng(0)
    by_study = {}
    for study in prompt_templates.RETRIEVAL.studies:
        truth = rng.choice(["a", "b"], 40)
        worse = np.where(rng.random(40) < 0.3, "b", truth)
        by_study[study] = {
            prompt_templates.DEFAULT: scorer_of_rows(truth, truth),
            "name": scorer_of_rows(truth, worse),
        }
    found = prompt_templates.compare(by_study, dict.fromkeys(by_study, 40), seed=0, draws=30)
    accuracies = [found[study]["name"]["accuracy"] for study in by_study]
    for study, one in zip(by_study, accuracies, strict=True):
        assert one["score"] == by_study[study]["name"](np.arange(40))["accuracy"]
        assert one["gain"] == pytest.approx(one["score"] - 1)
        assert one["interval"][0] < one["gain"] < one["interval"][1] <= 0
    assert found["mean"]["name"]["accuracy"]["score"] == pytest.approx(np.mean([one["score"] for one in accuracies]))
    assert found["mean"][prompt_templates.DEFAULT]["macro_f1"] == {"score": 1.0, "gain": 0.0, "interval": [0.0, 0.0]}
