# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What markers add to annotation: the parts are what they are called, and answers count as the guide says."""

import numpy as np
import pytest

from modeling_langcell.checkpoint.builtin import resolve_checkpoint
from modeling_langcell.eval.experiments import marker_ablation
from modeling_langcell.eval.task import EvaluationContext, score_predictions
from modeling_langcell.eval.tasks.zero_shot import TASK
from modeling_langcell.ontology import id_of


@pytest.fixture(scope="module")
def context(shared):
    return EvaluationContext(resolve_checkpoint("langcell-mini"), None, shared / "data")


@pytest.fixture(scope="module")
def measured(context):
    return marker_ablation.measure_candidates(context, context.study("zheng68k_subset_pbmc"))


@pytest.mark.long
def test_each_part_is_what_annotation_gives(context, measured):
    study = context.study("zheng68k_subset_pbmc")
    adata = context.cells(study)
    truth = adata.obs[study.label_key].astype(str).to_numpy()
    for described, options in {"and definitions": {"marker_weight": 0}, "and the catalogue's markers": {}}.items():
        found = context.annotator.annotate(adata.copy(), np.unique(truth), **options)
        scores = score_predictions(truth, np.unique(truth), found.obsm["langcell_probabilities"].to_numpy()).scores
        for name in ("accuracy", "macro_f1"):
            assert measured[described]["scores"][name] == pytest.approx(scores[name])
    assert len({found["scores"]["macro_f1"] for found in measured.values()}) == len(measured)


def test_markers_are_written_down_for_every_type_of_the_studies(context):
    textbook = marker_ablation.read_labels(marker_ablation.TEXTBOOK)
    for study in map(context.study, TASK.studies):
        types = set(context.cells(study).obs[study.label_key].astype(str))
        assert types <= textbook.keys()
    genes = context.extractor.genes
    names = {name for one in textbook.values() for kind in ("markers", "absent") for name in one.get(kind, [])}
    assert np.mean([genes.id_of(name) is not None for name in names]) > 0.9, "the vocabulary knows nearly all of them"


def test_an_answer_is_right_if_it_is_the_type_or_above_it():
    assert marker_ablation._is_right(id_of("lymphocyte"), id_of("B cell"))
    assert marker_ablation._is_right(id_of("B cell"), id_of("B cell"))
    assert not marker_ablation._is_right(id_of("B cell"), id_of("lymphocyte"))
    assert not marker_ablation._is_right(None, id_of("B cell"))


def test_cells_of_a_tumour_are_also_of_the_lineage_that_it_grew_from():
    malignant, duct = id_of("malignant cell"), id_of("pancreatic ductal cell")
    assert not marker_ablation._lineages(malignant) & marker_ablation._lineages(duct)
    assert marker_ablation._lineages(malignant, "epithelium") & marker_ablation._lineages(duct)
    assert marker_ablation._lineages(duct, "connective tissue") == {"epithelium"}
