# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The table of results: what fills it, that it is filled once, and the tasks on real cells."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score
from typer.testing import CliRunner

from modeling_langcell import InputError
from modeling_langcell.cli import app
from modeling_langcell.eval import run
from modeling_langcell.eval.studies import read_studies
from modeling_langcell.eval.task import LANGCELL, RANDOM, Bench, Cell, Found, Task, intervals, judge
from modeling_langcell.eval.tasks.few_shot import draw

from .conftest import REPOSITORY

MINI = str(REPOSITORY / "hub_configs" / "langcell-mini")


@pytest.fixture(scope="module")
def bench() -> Bench:
    """langcell-mini, and scanpy's blood cells, of which there is no training data."""
    return Bench(MINI, None, Path("nowhere"))


@pytest.fixture
def task():
    """Counts how often it is asked; its score is the number of the seed."""
    asked = []

    def measure(cell: Cell) -> Found:
        asked.append((cell.study.name, cell.method, dict(cell.setting), cell.seed))
        return Found({"macro_f1": cell.seed / 10, "accuracy": 0.5}, {"accuracy": [0.4, 0.6]})

    made = Task(
        name="zero-shot",
        question="What?",
        studies=("pbmc68k_reduced",),
        methods=(LANGCELL, "majority"),
        metrics=("accuracy", "macro_f1"),
        main_score="macro_f1",
        measure=measure,
        settings=({"shots": 0}, {"shots": 3}),
        drawn=(LANGCELL,),
        has=lambda method, setting: setting["shots"] > 0 or method == LANGCELL,
    )
    return made, asked


class TestTheTable:
    def test_each_cell_is_filled_once(self, bench, task, tmp_path):
        made, asked = task
        result = run.evaluate(made, bench, seeds=2, out=tmp_path)
        expected = [(LANGCELL, 0, 0), (LANGCELL, 0, 1), (LANGCELL, 3, 0), (LANGCELL, 3, 1), ("majority", 3, 0)]
        assert [(method, setting["shots"], seed) for _, method, setting, seed in asked] == expected
        again = run.evaluate(made, bench, seeds=2, out=tmp_path)
        assert len(asked) == 5
        assert again["cells"] == result["cells"]
        run.evaluate(made, bench, seeds=3, out=tmp_path)
        assert asked[5:] == [("pbmc68k_reduced", LANGCELL, {"shots": shots}, 2) for shots in (0, 3)]

    def test_a_run_that_died_goes_on(self, bench, task, tmp_path):
        made, asked = task

        def dies(cell: Cell) -> Found:
            if len(asked) == 3:
                raise KeyboardInterrupt
            return made.measure(cell)

        with pytest.raises(KeyboardInterrupt):
            run.evaluate(replace(made, measure=dies), bench, seeds=2, out=tmp_path)
        assert not (tmp_path / "zero-shot.json").exists()
        run.evaluate(made, bench, seeds=2, out=tmp_path)
        assert len(asked) == len({json.dumps(one) for one in asked}) == 5

    def test_another_model_has_cells_of_its_own(self, bench, task, tiny_checkpoint, tmp_path):
        made, asked = task
        run.evaluate(made, bench, seeds=1, out=tmp_path, methods=["majority"])
        run.evaluate(made, Bench(str(tiny_checkpoint), None, Path()), seeds=1, out=tmp_path, methods=["majority"])
        assert len(asked) == 2

    def test_means_spreads_and_intervals(self, bench, task, tmp_path):
        made, _ = task
        run.evaluate(made, bench, seeds=3, out=tmp_path)
        lines = (tmp_path / "zero-shot.md").read_text().splitlines()
        assert "| study | method | shots | macro f1 | accuracy |" in lines
        assert "| pbmc68k_reduced | langcell | 3 | 0.100 ± 0.100 | 0.500 ± 0.000 |" in lines
        assert "| pbmc68k_reduced | majority | 3 | 0.000 | 0.500 (0.400 to 0.600) |" in lines

    def test_the_record_says_how_to_repeat_it(self, bench, task, tmp_path):
        made, _ = task
        run.evaluate(made, bench, seeds=1, out=tmp_path)
        said = json.loads((tmp_path / "zero-shot.json").read_text())
        assert {"command", "versions", "machine", "task", "model", "studies", "seeds", "cells"} <= set(said)
        assert said["studies"]["pbmc68k_reduced"]["citation"]
        assert {"seconds", "peak_gb", "version"} <= set(said["cells"][0])
        assert "/" not in said["command"].split()[0]

    def test_all_tasks_have_their_metadata(self):
        for name in run.TASKS:
            found = run.find_task(name)
            assert found.name == name
            assert found.question.endswith("?")
            assert found.main_score in found.metrics
            assert set(found.studies) <= set(read_studies())
            assert set(found.drawn) <= set(found.methods)


class TestJudging:
    def test_scores_intervals_and_drawings(self):
        truth = np.array(["B cell", "B cell", "T cell", "monocyte"])
        labels = np.array(["B cell", "T cell", "monocyte"])
        said = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
        found = judge(truth, labels, said)
        assert found.scores["accuracy"] == 0.5
        assert found.scores["balanced_accuracy"] == pytest.approx(0.5)
        # B cells and T cells are kinds of lymphocyte: to take one for the other is half right.
        assert 0.5 < found.scores["ontology_score"] < 1
        assert found.drawings["confusion"]["cells"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
        low, high = found.intervals["accuracy"]
        assert 0 <= low < 0.5 < high <= 1

    def test_intervals_are_those_of_cells_drawn_again(self):
        rng = np.random.default_rng(1)
        truth = rng.choice(["a", "b", "c"], 60)
        said = np.where(rng.random(60) < 0.7, truth, rng.choice(["a", "d"], 60))
        found = intervals(truth, said, seed=5, draws=40)
        rng = np.random.default_rng(5)
        values = []
        for _ in range(40):
            rows = rng.integers(0, 60, 60)
            names = np.unique(truth[rows])
            f1 = f1_score(truth[rows], said[rows], labels=names, average="macro", zero_division=0)
            values.append((f1, balanced_accuracy_score(truth[rows], said[rows])))
        expected = np.quantile(values, [0.025, 0.975], axis=0).T
        np.testing.assert_allclose([found["macro_f1"], found["balanced_accuracy"]], expected)


class TestFewShot:
    def test_the_same_cells_judge_all_shots(self):
        truth = np.repeat(["a", "b", "c"], [40, 15, 5])
        seen = []
        for shots in (1, 3, 9):
            learnt, judged = draw(truth, shots, seed=2)
            assert not set(learnt) & set(judged)
            seen.append((set(learnt), judged.tolist()))
            names, sizes = np.unique(truth[learnt], return_counts=True)
            assert dict(zip(names, sizes, strict=True)) == {"a": shots, "b": shots, "c": min(shots, 3)}
        assert seen[0][0] < seen[1][0] < seen[2][0]
        assert seen[0][1] == seen[1][1] == seen[2][1]

    def test_it_runs_on_real_cells(self, bench):
        made = run.find_task("few-shot")
        scores = {}
        for method, shots in ((LANGCELL, 0), ("prototypes", 3), (RANDOM, 3), ("majority", 3)):
            study = bench.study("pbmc68k_reduced")
            scores[method] = made.measure(Cell(bench, study, method, {"shots": shots}, 0)).scores["macro_f1"]
        assert scores["prototypes"] > scores[RANDOM] > scores["majority"]
        assert scores[LANGCELL] > scores["majority"]


class TestTheCommand:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("some-task",), "No task 'some-task'"),
            (("zero-shot", "--study", "mine"), "No study 'mine'"),
            (("zero-shot", "--method", "mine"), "no method 'mine'"),
            (("zero-shot", "--studies", "nowhere.yaml"), "nowhere.yaml"),
            (("zero-shot", "--data", "nowhere", "--method", "langcell"), "no file nowhere"),
        ],
    )
    def test_bad_input_is_one_message(self, arguments, said, tmp_path):
        done = CliRunner().invoke(app, ["evaluate", *arguments, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.split())

    def test_it_fills_table_and_figures(self, tmp_path):
        options = ["--study", "pbmc68k_reduced", "--method", "langcell", "--method", "random_weights"]
        places = ["--out", str(tmp_path / "out"), "--figures", str(tmp_path / "figures")]
        done = CliRunner().invoke(app, ["evaluate", "zero-shot", *options, *places])
        assert done.exit_code == 0, done.output
        assert "| pbmc68k_reduced | langcell |" in done.stdout
        assert list((tmp_path / "figures").glob("zero-shot-*.png"))


def test_novel_types_and_retrieval_on_a_study_of_the_users_own(bench, monkeypatch):
    study = bench.study("pbmc68k_reduced")
    types = np.array(["B cell", "CD14-positive monocyte", "dendritic cell"])
    monkeypatch.setattr(Bench, "training_cells", (None, types))
    novel = run.find_task("novel-types").measure(Cell(bench, study, LANGCELL, {}, 0))
    assert novel.scores["auroc"] > 0.6
    assert novel.drawings["roc"][0] == {"false_positive_rate": 0.0, "true_positive_rate": 0.0}
    monkeypatch.setattr(Bench, "training_cells", (None, np.array(["neuron"])))
    with pytest.raises(InputError, match="pbmc68k_reduced"):
        run.find_task("novel-types").measure(Cell(bench, study, LANGCELL, {}, 0))
