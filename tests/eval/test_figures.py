# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Figures of results: their kinds, their content, that nothing is cut off, and the page of all tasks."""

import json
import re
import shlex

import numpy as np
import pytest

from modeling_langcell import InputError
from modeling_langcell.eval import figures
from tests.support.paths import REPOSITORY

LONG = "a_study_with_a_name_that_says_all_there_is_to_say_of_its_tissue_donors_and_assays"
TYPES = ["B cell", "CD4-positive, CD25-positive, alpha-beta regulatory T cell", "monocyte"]
CONFUSION = {"labels": TYPES, "cells": [[6, 2, 0], [0, 5, 5], [1, 0, 3]]}


def a_run(method, study="one", seed=0, drawings=None, intervals=None, shots=None, **scores):
    return {
        "study": study,
        "method": method,
        "setting": {} if shots is None else {"shots": shots},
        "seed": seed,
        "scores": scores,
        "intervals": intervals or {},
        "per_class": {},
        "drawings": drawings or {},
    }


def a_result(name, runs, main_score="macro_f1"):
    known = {"what": "Blood.", "citation": "A & B 2020", "in_training": False}
    return {
        "command": f"langcell evaluate {name}",
        "task": {"name": name, "question": "What?", "metrics": ["accuracy", main_score], "main_score": main_score},
        "model": {"checkpoint": "langcell-mini", "adapter": None},
        "studies": {run["study"]: known for run in runs},
        "cells": runs,
    }


@pytest.fixture
def zero_shot():
    """Two studies, one with a long name; one method with all drawings, another with scores only."""
    rng = np.random.default_rng(0)
    batches = [f"donor {i:02}" for i in rng.permutation(np.repeat(np.arange(25), np.arange(1, 26)))]
    labels = rng.choice(TYPES, len(batches)).tolist()
    umap = {axis: rng.normal(size=len(batches)).round(2).tolist() for axis in "xy"}
    umap |= {"label": labels, "prediction": labels[::-1], "batch": batches}
    bins = [{"confidence": 0.3, "accuracy": 0.5, "cells": 2}, {"confidence": 0.9, "accuracy": 0.8, "cells": 10}]
    drawings = {"confusion": CONFUSION, "reliability": bins, "umap": umap}
    of_langcell = {"accuracy": 0.7, "macro_f1": 0.6, "expected_calibration_error": 0.125}
    runs = []
    for study in ("one", LONG):
        runs.append(a_run("langcell", study, 0, drawings, {"macro_f1": [0.5, 0.7]}, **of_langcell))
        runs.append(a_run("majority", study, accuracy=0.4, macro_f1=0.1))
    return a_result("zero-shot", runs)


@pytest.fixture
def few_shot():
    """Two seeds of two numbers of shots; the confusion tables of most shots have different labels."""
    tables = [CONFUSION, {"labels": ["B cell", "platelet"], "cells": [[3, 1], [0, 2]]}]
    runs = [a_run("langcell", seed=seed, shots=0, macro_f1=0.3 + seed / 10) for seed in (0, 1)]
    for seed in (0, 1):
        runs.append(a_run("langcell", seed=seed, shots=1, drawings={"confusion": CONFUSION}, macro_f1=0.5))
        runs.append(
            a_run("langcell", seed=seed, shots=9, drawings={"confusion": tables[seed]}, macro_f1=0.6 + seed / 5)
        )
        runs += [a_run("prototypes", seed=seed, shots=shots, macro_f1=0.2) for shots in (1, 9)]
    return a_result("few-shot", runs)


@pytest.fixture
def novel_types():
    points = [(0.0, 0.0), (0.2, 0.8), (1.0, 1.0)]
    roc = [{"false_positive_rate": x, "true_positive_rate": y} for x, y in points]
    methods = ("langcell", "random_weights", "logistic_regression", "knn_pca", "gene_name_embeddings")
    runs = [a_run(method, LONG, drawings={"roc": roc}, auroc=0.8) for method in methods]
    return a_result("novel-types", runs, "auroc")


def names_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


class TestFiles:
    def test_each_result_has_the_figures_that_it_has_data_for(self, zero_shot, few_shot, novel_types, tmp_path):
        expected = {
            "zero-shot": ["scores", "confusion", "reliability", "umap"],
            "few-shot": ["curve", "confusion"],
            "novel-types": ["scores", "roc"],
        }
        for result in (zero_shot, few_shot, novel_types):
            name = result["task"]["name"]
            files = figures.draw_task(result, tmp_path / "new")
            assert files == [tmp_path / "new" / f"{name}-{kind}.png" for kind in expected[name]]
            assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)

    def test_an_unwritable_folder_is_named(self, few_shot, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"few-shot-curve\.png cannot be written"):
            figures.draw_task(few_shot, tmp_path / "file")

    def test_nothing_is_cut_off(self, zero_shot, few_shot, novel_types):
        lone = zero_shot | {"cells": [run for run in zero_shot["cells"] if run["study"] == LONG]}
        for result in (zero_shot, lone, few_shot, novel_types):
            for kind, draw in figures.FIGURES.items():
                if (figure := draw(result)) is not None:
                    figure.draw_without_rendering()
                    drawn, paper = figure.get_tightbbox(), figure.bbox_inches
                    assert drawn.x0 >= -0.01, kind
                    assert drawn.y0 >= -0.01, kind
                    assert drawn.x1 <= paper.x1 + 0.01, kind
                    assert drawn.y1 <= paper.y1 + 0.01, kind


class TestContent:
    def test_curve(self, few_shot):
        figure = figures.draw_curve(few_shot)
        (axes,) = figure.axes
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines) == ["langcell, zero-shot", "langcell", "prototypes"]
        np.testing.assert_allclose(lines["langcell"].get_xydata(), [[1, 0.5], [9, 0.7]])
        np.testing.assert_allclose(lines["langcell, zero-shot"].get_ydata(), 0.35)
        assert lines["langcell, zero-shot"].get_linestyle() == "--"
        shade = axes.collections[0].get_paths()[0].vertices
        assert {*shade[shade[:, 0] == 9][:, 1].round(6)} == {0.6, 0.8}

    def test_scores(self, zero_shot):
        panels = figures.draw_scores(zero_shot).axes
        assert [panel.get_title().replace("\n", "") for panel in panels] == ["one", LONG]
        assert [label.get_text() for label in panels[0].get_yticklabels()] == ["langcell", "majority"]
        spread, point, _, other = panels[0].lines
        assert spread.get_xydata().tolist() == [[0.5, 0], [0.7, 0]]
        assert point.get_xydata().tolist() == [[0.6, 0]]
        assert other.get_xydata().tolist() == [[0.1, 1]]

    def test_one_number_of_shots_is_no_curve(self, few_shot):
        result = few_shot | {"cells": [run for run in few_shot["cells"] if run["setting"]["shots"] != 1]}
        assert figures.draw_curve(result) is None
        (axes,) = figures.draw_scores(result).axes
        rows = [label.get_text() for label in axes.get_yticklabels()]
        assert rows == ["langcell, 0 shots", "langcell, 9 shots", "prototypes, 9 shots"]

    def test_confusion_takes_the_most_shots_and_all_seeds(self, few_shot):
        (axes,) = figures.draw_confusion(few_shot).axes
        expected = np.array([[9 / 12, 2 / 12, 0, 1 / 12], [0, 0.5, 0.5, 0], [0.25, 0, 0.75, 0], [0, 0, 0, 1]])
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
        rows = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
        assert rows == ["B cell (12)  1", f"{TYPES[1]} (10)  2", "monocyte (4)  3", "platelet (2)  4"]

    def test_reliability(self, zero_shot):
        first, _ = figures.draw_reliability(zero_shot).axes
        assert "expected calibration error 0.125" in first.get_title()
        few, many = first.patches
        assert (few.get_height(), many.get_height()) == (0.5, 0.8)
        assert few.get_x() + few.get_width() / 2 == pytest.approx(0.3)
        assert many.get_width() == pytest.approx(5 * few.get_width())

    def test_reliability_of_several_seeds_is_weighted_by_cells(self):
        seeds = [
            [{"confidence": 0.91, "accuracy": 1.0, "cells": 1}],
            [{"confidence": 0.87, "accuracy": 0.0, "cells": 3}],
        ]
        (only,) = figures.reliability([{"drawings": {"reliability": bins}} for bins in seeds]).to_dict("records")
        assert only == pytest.approx({"confidence": 0.88, "accuracy": 0.25, "cells": 4})

    def test_roc(self, novel_types):
        (axes,) = figures.draw_roc(novel_types).axes
        assert names_of(axes)[:2] == ["langcell, AUROC 0.80", "random weights, AUROC 0.80"]
        assert axes.lines[1].get_xydata().tolist() == [[0, 0], [0.2, 0.8], [1, 1]]

    def test_umap_names_twenty_and_colours_a_label_like_its_prediction(self, zero_shot):
        panels = figures.draw_umap(zero_shot).axes
        assert len(panels) == 6
        by_label, by_prediction, by_batch = panels[:3]
        colours = [
            {one.get_label(): one.get_facecolor()[0].tolist() for one in panel.collections}
            for panel in (by_label, by_prediction)
        ]
        assert colours[0] == colours[1]
        assert len(colours[0]) == len(TYPES)
        named = names_of(by_batch)
        assert named[0] == "donor 24"
        assert len(named) == 21
        assert named[-1] == "other (5)"

    def test_methods_look_the_same_in_all_tasks_and_differ_from_each_other(self):
        some, others = figures.styles(["prototypes", "langcell"]), figures.styles(["langcell", *"abcdefgh"])
        assert some["langcell"] == others["langcell"]
        assert len({(look["color"], look["marker"]) for look in others.values()}) == len(others)


def test_the_page_has_all_tasks(zero_shot, few_shot, novel_types, tmp_path):
    results = [zero_shot, few_shot, novel_types]
    files = {result["task"]["name"]: figures.draw_task(result, tmp_path) for result in results[:2]}
    page = figures.write_html(results, files, tmp_path / "new" / "page.html").read_text()
    assert re.findall(r'<h2 id="([\w-]+)">', page) == re.findall(r'href="#([\w-]+)"', page)
    assert re.findall(r'<h2 id="([\w-]+)">', page) == ["zero-shot", "few-shot", "novel-types"]
    assert page.count('src="data:image/png;base64,') == 6
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing is fetched"
    assert "http" not in page
    assert "A &amp; B 2020" in page
    assert "<td>0.600 (0.500 to 0.700)</td>" in page, "an interval over cells"
    assert "<td>0.700 (0.600 to 0.800)</td>" in page, "lowest and highest of the seeds"
    assert page.index("<th>macro f1</th>") < page.index("<th>accuracy</th>"), "the main score first"


@pytest.mark.parametrize("file", sorted((REPOSITORY / "eval" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_recorded_commands_start_what_is_there(file):
    program, what, *more = shlex.split(json.loads(file.read_text())["command"])
    if program == "python":
        place = REPOSITORY / (more[0].replace(".", "/") + ".py" if what == "-m" else what)
        assert place.is_file(), place
    else:
        assert (program, what) == ("langcell", "evaluate")


def test_the_readme_has_the_recorded_scores():
    rows = re.findall(
        r"^\| [^|]*, (\w+) \(\d+\)((?: \| [\d.]+ / [\d.]+){4}) \|$", (REPOSITORY / "README.md").read_text(), re.M
    )
    results = json.loads((REPOSITORY / "eval/results/peers.json").read_text())["results"]
    assert len(rows) == len(results) == 4
    for name, row in rows:
        (found,) = (one for study, one in results.items() if study.startswith((name, f"pbmc_{name}")))
        methods = [method + way for method in ("langcell", "celltypist") for way in ("", ", clusters")]
        ways = [found["methods"][method] for method in methods]
        said = [f"{one['accuracy']:.2f} / {one['macro_f1']:.2f}" for one in ways]
        assert row.strip(" |").split(" | ") == said, name
