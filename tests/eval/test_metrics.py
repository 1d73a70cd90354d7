# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The local metrics of `eval/metrics`, compared with plain loops."""

import os
from functools import cache

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc

from modeling_langcell import InputError
from modeling_langcell.ontology import agreement
from tests.support.commands import link_cache, run_python
from tests.support.paths import REPOSITORY

METRICS = REPOSITORY / "eval" / "metrics"

RUN_EXAMPLES = """
import doctest
import sys
import evaluate
for name in sys.argv[1:]:
    info = evaluate.load(f"eval/metrics/{name}").info
    assert info.description and "@" in info.citation, name
    examples = doctest.DocTestParser().get_doctest(info.inputs_description, {}, name, None, None)
    assert len(examples.examples) > 2, name
    assert doctest.DocTestRunner().run(examples).failed == 0, name
"""


@cache
def metric(name):
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


@pytest.mark.long
def test_each_loads_offline_by_its_path_and_its_examples_run(tmp_path):
    names = sorted(path.stem for path in METRICS.glob("*/*.py"))
    assert len(names) >= 5
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(link_cache(tmp_path / "home"))}
    done = run_python("-c", RUN_EXAMPLES, *names, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


types = st.sampled_from(["B cell", "T cell", "natural killer cell", "monocyte"])


@given(st.lists(st.tuples(types, types), min_size=1, max_size=30))
def test_cell_annotation(pairs):
    references, predictions = zip(*pairs, strict=True)
    per_class = {}
    for name in set(references):
        hits = sum(pair == (name, name) for pair in pairs)
        cells, guesses = references.count(name), predictions.count(name)
        f1 = 2 * hits / (cells + guesses)
        per_class[name] = {"precision": hits / max(guesses, 1), "recall": hits / cells, "f1": f1, "cells": cells}
    found = metric("cell_annotation").compute(references=references, predictions=predictions)
    assert found["accuracy"] == pytest.approx(sum(truth == guess for truth, guess in pairs) / len(pairs))
    assert found["balanced_accuracy"] == pytest.approx(np.mean([one["recall"] for one in per_class.values()]))
    assert found["macro_f1"] == pytest.approx(np.mean([one["f1"] for one in per_class.values()]))
    assert found["per_class"] == {name: pytest.approx(figures) for name, figures in per_class.items()}


def test_a_type_never_predicted_and_one_only_predicted():
    found = metric("cell_annotation").compute(references=["B", "B", "T"], predictions=["B", "NK", "B"])
    assert found["per_class"]["T"] == {"precision": 0, "recall": 0, "f1": 0, "cells": 1}
    assert set(found["per_class"]) == {"B", "T"}
    assert found["balanced_accuracy"] == 0.25, "over B and T, not over NK"


def test_ontology_score():
    t_cell, lymphocyte, b_cell, neuron = "CL:0000084", "CL:0000542", "CL:0000236", "CL:0000540"
    references, predictions = [t_cell] * 4, [t_cell, lymphocyte, b_cell, neuron]
    found = metric("ontology_score").compute(references=references, predictions=predictions)
    expected = (1 + agreement(t_cell, lymphocyte) + agreement(t_cell, b_cell) + 0) / 4
    assert found == {"ontology_score": pytest.approx(expected)}
    assert 0.25 < expected < 0.75


# Fifteenths lie on the edges of bins.
confidences = st.integers(0, 15).map(lambda number: number / 15) | st.floats(0, 1)


@given(st.lists(st.tuples(st.booleans(), confidences), min_size=1, max_size=40), st.sampled_from([1, 4, 15]))
def test_calibration_error(cells, n_bins):
    error, diagram = 0.0, []
    for number in range(n_bins):
        low, high = number / n_bins, (number + 1) / n_bins
        inside = [(right, sure) for right, sure in cells if low < sure <= high or (number == 0 and sure == 0)]
        if inside:
            accuracy, confidence = np.mean(inside, axis=0)
            error += len(inside) / len(cells) * abs(accuracy - confidence)
            diagram.append({"confidence": confidence, "accuracy": accuracy, "cells": len(inside)})
    right, sure = zip(*cells, strict=True)
    found = metric("calibration_error").compute(references=right, confidences=sure, n_bins=n_bins)
    assert found["expected_calibration_error"] == pytest.approx(error)
    assert found["reliability"] == [pytest.approx(one) for one in diagram]


def test_the_default_is_fifteen_bins():
    right, sure = [True, False] * 20, np.linspace(0, 1, 40)
    default = metric("calibration_error").compute(references=right, confidences=sure)
    assert len(default["reliability"]) == 15
    assert default == metric("calibration_error").compute(references=right, confidences=sure, n_bins=15)


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([3, 1000]), st.integers(0, 2**32 - 1))
def test_cell_text_retrieval(cells, texts, levels, seed):
    rng = np.random.default_rng(seed)
    own = rng.integers(0, texts, cells).tolist()
    table = rng.integers(0, levels, (cells, texts)) / 8  # Few levels give many ties.
    text_ranks, cell_ranks = [], []
    for cell in range(cells):
        best_first = sorted(range(texts), key=lambda text: (-table[cell, text], text == own[cell]))
        text_ranks.append(best_first.index(own[cell]) + 1)
    for text in set(own):
        best_first = sorted(range(cells), key=lambda cell: (-table[cell, text], own[cell] == text))
        cell_ranks.append([own[cell] for cell in best_first].index(text) + 1)
    expected = {"chance_cell_to_text_r1": 1 / texts}
    for direction, ranks in (("cell_to_text", text_ranks), ("text_to_cell", cell_ranks)):
        expected |= {f"{direction}_r{k}": np.mean([rank <= k for rank in ranks]) for k in (1, 5, 10)}
        expected[f"{direction}_mean_rank"] = np.mean(ranks)
    assert metric("cell_text_retrieval").compute(references=own, similarities=table) == pytest.approx(expected)


def test_a_model_that_tells_nothing_apart_comes_last():
    found = metric("cell_text_retrieval").compute(references=[0, 0, 1, 2], similarities=np.zeros((4, 12)))
    assert found["cell_to_text_mean_rank"] == 12
    assert found["cell_to_text_r10"] == found["text_to_cell_r1"] == 0
    assert found["text_to_cell_mean_rank"] == pytest.approx((3 + 4 + 4) / 3), "after the cells of other texts"


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3) | st.floats(-4, 4)), max_size=30))
def test_novelty(cells):
    cells = [(True, 1.0), (False, 0.0), *cells]
    novel = [score for new, score in cells if new]
    known = [score for new, score in cells if not new]
    wins = sum((one > other) + (one == other) / 2 for one in novel for other in known)
    precision_by_recall, curve = 0.0, {(0.0, 0.0)}
    for threshold in sorted({score for _, score in cells}, reverse=True):
        found_novel = sum(score >= threshold for score in novel)
        found_known = sum(score >= threshold for score in known)
        gained = found_novel - sum(score > threshold for score in novel)
        precision_by_recall += gained / len(novel) * found_novel / (found_novel + found_known)
        curve.add((found_known / len(known), found_novel / len(novel)))
    references, scores = zip(*cells, strict=True)
    found = metric("novelty").compute(references=references, scores=scores)
    assert found["auroc"] == pytest.approx(wins / (len(novel) * len(known)))
    assert found["average_precision"] == pytest.approx(precision_by_recall)
    points = [(point["false_positive_rate"], point["true_positive_rate"]) for point in found["roc"]]
    assert points[0] == (0, 0)
    assert points[-1] == (1, 1)
    assert points == sorted(points)
    assert set(points) <= curve


def test_the_curve_of_many_cells_is_thinned_to_a_hundred_points():
    rng = np.random.default_rng(0)
    references = rng.random(4000) < 0.5
    found = metric("novelty").compute(references=references, scores=rng.normal(references))
    across, up = ([point[rate] for point in found["roc"]] for rate in ("false_positive_rate", "true_positive_rate"))
    assert len(across) == 100
    assert (across[0], up[0], across[-1], up[-1]) == (0, 0, 1, 1)
    assert auc(across, up) == pytest.approx(found["auroc"], abs=2e-3)


@pytest.mark.parametrize(
    ("name", "inputs", "says"),
    [
        ("cell_annotation", {"references": [], "predictions": []}, "no cells"),
        ("ontology_score", {"references": [], "predictions": []}, "no cells"),
        ("ontology_score", {"references": ["CL:0000084"], "predictions": ["T cell"]}, "'T cell'"),
        ("calibration_error", {"references": [], "confidences": []}, "no cells"),
        ("calibration_error", {"references": [True], "confidences": [1.5]}, "not 1.5"),
        ("calibration_error", {"references": [True], "confidences": [np.nan]}, "not nan"),
        ("calibration_error", {"references": [True], "confidences": [0.5], "n_bins": 0}, "n_bins"),
        ("cell_text_retrieval", {"references": [], "similarities": []}, "no cells"),
        ("cell_text_retrieval", {"references": [0, 0], "similarities": [[1.0], [1.0, 0.0]]}, "rows of equal length"),
        ("cell_text_retrieval", {"references": [0], "similarities": [[np.nan, 1.0]]}, "finite"),
        ("cell_text_retrieval", {"references": [-1], "similarities": [[0.0, 1.0]]}, "-1"),
        ("cell_text_retrieval", {"references": [2], "similarities": [[0.0, 1.0]]}, "2 texts"),
        ("novelty", {"references": [True, True], "scores": [0.0, 1.0]}, "known types"),
        ("novelty", {"references": [True, False], "scores": [0.0, np.inf]}, "finite"),
    ],
)
def test_unusable_inputs_are_refused(name, inputs, says):
    with pytest.raises(InputError, match=says):
        metric(name).compute(**inputs)
