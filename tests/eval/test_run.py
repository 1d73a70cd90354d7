# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Evaluation: each run is measured once, the table of results, and the tasks on real cells."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellForMaskedLM, LangCellModel
from modeling_langcell.cli.main import app
from modeling_langcell.eval.run import TASKS, _key, evaluate, find_task
from modeling_langcell.eval.studies import read_studies
from modeling_langcell.eval.task import (
    LANGCELL,
    RANDOM,
    EvaluationContext,
    Result,
    Run,
    Task,
    intervals,
    score_predictions,
)
from modeling_langcell.eval.tasks import masked_genes
from modeling_langcell.eval.tasks.few_shot import split
from modeling_langcell.ontology import find_term
from tests.support.paths import REPOSITORY

MINI = str(REPOSITORY / "hub_configs" / "langcell-mini")


@pytest.fixture(scope="module")
def context() -> EvaluationContext:
    """langcell-mini and scanpy's blood cells, without training cells."""
    return EvaluationContext(MINI, None, Path("nowhere"))


@pytest.fixture
def task():
    """A task that lists its runs, and whose score is a tenth of the seed."""
    asked = []

    def measure(run: Run) -> Result:
        asked.append((run.study.name, run.method, dict(run.setting), run.seed))
        return Result({"macro_f1": run.seed / 10, "accuracy": 0.5}, {"accuracy": [0.4, 0.6]})

    made = Task(
        name="zero-shot",
        question="What?",
        studies=("pbmc68k_reduced",),
        methods=(LANGCELL, "majority"),
        metrics=("accuracy", "macro_f1"),
        main_score="macro_f1",
        measure=measure,
        settings=({"shots": 0}, {"shots": 3}),
        seeded=(LANGCELL,),
        applies=lambda method, setting: setting["shots"] > 0 or method == LANGCELL,
    )
    return made, asked


class TestTheTable:
    def test_each_run_is_measured_once(self, context, task, tmp_path):
        made, asked = task
        result = evaluate(made, context, seeds=2, out=tmp_path)
        expected = [(LANGCELL, 0, 0), (LANGCELL, 0, 1), (LANGCELL, 3, 0), (LANGCELL, 3, 1), ("majority", 3, 0)]
        assert [(method, setting["shots"], seed) for _, method, setting, seed in asked] == expected
        again = evaluate(made, context, seeds=2, out=tmp_path)
        assert len(asked) == 5
        assert again["cells"] == result["cells"]
        evaluate(made, context, seeds=3, out=tmp_path)
        assert asked[5:] == [("pbmc68k_reduced", LANGCELL, {"shots": shots}, 2) for shots in (0, 3)]

    def test_a_killed_evaluation_continues(self, context, task, tmp_path):
        made, asked = task

        def dies(run: Run) -> Result:
            if len(asked) == 3:
                raise KeyboardInterrupt
            return made.measure(run)

        with pytest.raises(KeyboardInterrupt):
            evaluate(replace(made, measure=dies), context, seeds=2, out=tmp_path)
        assert not (tmp_path / "zero-shot.json").exists()
        evaluate(made, context, seeds=2, out=tmp_path)
        assert len(asked) == len({json.dumps(one) for one in asked}) == 5

    def test_another_model_has_runs_of_its_own(self, context, task, tiny_checkpoint, tmp_path):
        made, asked = task
        evaluate(made, context, seeds=1, out=tmp_path, methods=["majority"])
        evaluate(
            made, EvaluationContext(str(tiny_checkpoint), None, Path()), seeds=1, out=tmp_path, methods=["majority"]
        )
        assert len(asked) == 2

    def test_earlier_runs_stay_in_the_table(self, context, task, tmp_path):
        """A copy of the table alone continues in another folder."""
        made, asked = task
        whole = evaluate(made, context, seeds=2, out=tmp_path)
        part = evaluate(made, context, seeds=1, out=tmp_path, methods=["majority"])
        assert part["cells"] == whole["cells"]
        (tmp_path / "copy").mkdir()
        (tmp_path / "zero-shot.json").rename(tmp_path / "copy" / "zero-shot.json")
        assert evaluate(made, context, seeds=2, out=tmp_path / "copy")["cells"] == whole["cells"]
        assert len(asked) == 5

    @pytest.mark.parametrize("changed", ["alpha", "version", "methods"])
    def test_runs_that_would_differ_today_leave_the_table(self, context, task, tmp_path, changed):
        """They would count as further seeds of the runs with which they share a row; their files stay."""
        made, asked = task
        evaluate(made, context, seeds=2, out=tmp_path)
        if changed == "alpha":
            again = evaluate(made, replace(context, alpha=1.0), seeds=2, out=tmp_path)
        elif changed == "version":
            again = evaluate(replace(made, version=2), context, seeds=2, out=tmp_path)
        else:
            again = evaluate(replace(made, methods=(LANGCELL,)), context, seeds=2, out=tmp_path)
        rows = [(run["method"], run["setting"]["shots"], run["seed"]) for run in again["cells"]]
        assert len(rows) == len(set(rows)) == (4 if changed == "methods" else 5)
        measured = len(asked)
        assert len(evaluate(made, context, seeds=2, out=tmp_path)["cells"]) == 5
        assert len(asked) == measured

    @pytest.mark.parametrize("changes", [{"label_key": "phase"}, {"batch_key": "phase"}, {"read": {"counts": "raw"}}])
    def test_a_changed_study_of_the_same_name_has_runs_of_its_own(self, context, task, tmp_path, changes):
        made, asked = task
        evaluate(made, context, seeds=1, out=tmp_path, methods=["majority"])
        other = replace(context.study("pbmc68k_reduced"), **changes)
        evaluate(made, replace(context, studies={other.name: other}), seeds=1, out=tmp_path, methods=["majority"])
        assert len(asked) == 2

    def test_another_version_of_the_task_is_measured_again(self, context, task, tmp_path):
        made, asked = task
        evaluate(made, context, seeds=1, out=tmp_path, methods=["majority"])
        evaluate(replace(made, version=2), context, seeds=1, out=tmp_path, methods=["majority"])
        assert len(asked) == 2

    def test_a_task_that_adapts_refuses_an_adapter(self, context, task, tmp_path):
        made, _ = task
        with pytest.raises(InputError, match="leave out the adapter"):
            evaluate(replace(made, adapts=True), replace(context, adapter="mine"), seeds=1, out=tmp_path)

    def test_damaged_results_and_places_that_cannot_be_written(self, context, task, tmp_path):
        made, _ = task
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="cannot be written"):
            evaluate(made, context, seeds=1, out=tmp_path / "file" / "out")
        evaluate(made, context, seeds=1, out=tmp_path)
        (tmp_path / "zero-shot.json").unlink()
        next((tmp_path / "cells").iterdir()).write_text("{")
        with pytest.raises(InputError, match="is damaged"):
            evaluate(made, context, seeds=1, out=tmp_path)
        (tmp_path / "zero-shot.json").write_text("[]")
        with pytest.raises(InputError, match="is not a table of results"):
            evaluate(made, context, seeds=1, out=tmp_path)

    def test_means_spreads_and_intervals(self, context, task, tmp_path):
        made, _ = task
        evaluate(made, context, seeds=3, out=tmp_path)
        lines = (tmp_path / "zero-shot.md").read_text().splitlines()
        assert "| study | method | shots | macro f1 | accuracy |" in lines
        assert "| pbmc68k_reduced | langcell | 3 | 0.100 ± 0.100 | 0.500 ± 0.000 |" in lines
        assert "| pbmc68k_reduced | majority | 3 | 0.000 | 0.500 (0.400 to 0.600) |" in lines
        assert lines[-1].startswith("- **pbmc68k_reduced**: Blood")
        assert lines[-1].endswith("It was not used for training.")

    def test_the_record_says_how_to_repeat_it(self, context, task, tmp_path):
        made, _ = task
        evaluate(made, context, seeds=1, out=tmp_path)
        said = json.loads((tmp_path / "zero-shot.json").read_text())
        assert {"command", "versions", "machine", "task", "model", "studies", "seeds", "cells"} <= set(said)
        assert said["studies"]["pbmc68k_reduced"]["citation"]
        assert {"seconds", "peak_gb", "version"} <= set(said["cells"][0])
        assert "/" not in said["command"].split()[0]

    def test_all_tasks_have_their_metadata(self):
        for name in TASKS:
            found = find_task(name)
            assert found.name == name
            assert found.question.endswith("?")
            assert found.main_score in found.metrics
            assert set(found.studies) <= set(read_studies())
            assert set(found.seeded) <= set(found.methods)


class TestScores:
    def test_scores_intervals_and_drawings(self):
        truth = np.array(["B cell", "B cell", "T cell", "monocyte"])
        labels = np.array(["B cell", "T cell", "monocyte"])
        said = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]])
        found = score_predictions(truth, labels, said)
        assert found.scores["accuracy"] == 0.5
        assert found.scores["balanced_accuracy"] == pytest.approx(0.5)
        # B cells and T cells are both lymphocytes: a mix-up of them is half right.
        assert 0.5 < found.scores["ontology_score"] < 1
        assert found.drawings["confusion"]["cells"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
        low, high = found.intervals["accuracy"]
        assert 0 <= low < 0.5 < high <= 1

    def test_intervals_are_bootstrap_intervals_over_cells(self):
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
    def test_all_shots_are_tested_on_the_same_cells(self):
        truth = np.repeat(["a", "b", "c"], [40, 15, 5])
        seen = []
        for shots in (1, 3, 9):
            train, test = split(truth, shots, seed=2)
            assert not set(train) & set(test)
            seen.append((set(train), test.tolist()))
            names, sizes = np.unique(truth[train], return_counts=True)
            assert dict(zip(names, sizes, strict=True)) == {"a": shots, "b": shots, "c": min(shots, 3)}
        assert seen[0][0] < seen[1][0] < seen[2][0]
        assert seen[0][1] == seen[1][1] == seen[2][1]

    @pytest.mark.long
    def test_it_runs_on_real_cells(self, context, monkeypatch):
        types = ["B cell", "CD14-positive monocyte", "dendritic cell", "natural killer cell"]
        study = few(context, monkeypatch, dict.fromkeys(types, 30))
        made = find_task("few-shot")
        scores = {}
        for method, shots in ((LANGCELL, 0), ("prototypes", 3), (RANDOM, 3), ("majority", 3)):
            scores[method] = made.measure(Run(context, study, method, {"shots": shots}, 0)).scores["macro_f1"]
        assert scores["prototypes"] > scores[RANDOM] > scores["majority"]
        assert scores[LANGCELL] > scores["majority"]


class TestTheCommand:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("some-task",), "is not one of"),
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

    @pytest.mark.parametrize(
        ("report", "other"),
        [
            ("studies.yaml", "--studies"),
            ("sets.gmt", "--gene-sets"),
        ],
    )
    def test_a_page_is_written_over_nothing_that_is_read(self, report, other, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for path in map(Path, ("studies.yaml", "sets.gmt", "data/validation/cells.h5ad")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
        read = ["--studies", "studies.yaml", "--gene-sets", "sets.gmt", "--data", "data"]
        written = ["--out", "out", "--figures", "figures", "--report", report]
        done = CliRunner().invoke(app, ["evaluate", "zero-shot", *read, *written])
        assert done.exit_code == 2, done.output
        assert f"--report {report} is the same file as {other} ({report})" in " ".join(done.stderr.split())
        assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {"mine"}

    @pytest.mark.parametrize(
        ("outputs", "said"),
        [
            (["--report", "data/validation/page.html"], "lies in --data"),
            (["--out", "data/train"], "is the same file as --data"),
            (["--report", "out/zero-shot.json"], "must end in .html"),
            (["--out", "more", "--studies", "more/studies.yaml"], "holds --studies"),
            (["--out", "notes"], "zero-shot.md exists and is not a page of scores"),
        ],
    )
    def test_folders_of_outputs_are_apart_from_what_is_read(self, outputs, said, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for path in map(Path, ("more/studies.yaml", "data/validation/cells", "data/train/a", "notes/zero-shot.md")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        outputs = outputs if "--out" in outputs else [*outputs, "--out", "out"]
        done = CliRunner().invoke(app, ["evaluate", "zero-shot", "--data", "data", *outputs])
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.split())
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4

    @pytest.mark.long
    def test_it_writes_table_and_figures(self, context, monkeypatch, tmp_path):
        few(context, monkeypatch, {"B cell": 20, "CD14-positive monocyte": 20, "dendritic cell": 20})
        options = ["--study", "pbmc68k_reduced", "--method", "langcell", "--method", "random_weights", "--seeds", "1"]
        places = ["--out", str(tmp_path / "out"), "--figures", str(tmp_path / "figures")]
        done = CliRunner().invoke(app, ["evaluate", "zero-shot", *options, *places])
        assert done.exit_code == 0, done.output
        assert "| pbmc68k_reduced | langcell |" in done.stdout
        assert list((tmp_path / "figures").glob("zero-shot-*.png"))


def few(context, monkeypatch, sizes):
    """Limits the example to some cells of some types, and returns its study."""
    study = context.study("pbmc68k_reduced")
    cells = context.cells(study)
    truth = cells.obs[study.label_key].astype(str).to_numpy()
    rows = np.concatenate([np.flatnonzero(truth == name)[:size] for name, size in sizes.items()])
    monkeypatch.setattr(EvaluationContext, "cells", lambda *_: cells[np.sort(rows)].copy())
    return study


@pytest.mark.parametrize("task", ["few-shot", "fine-tuning"])
def test_a_type_with_too_few_cells_is_named(context, monkeypatch, task):
    study = few(context, monkeypatch, {"B cell": 9, "dendritic cell": 1})
    with pytest.raises(InputError, match="cells each are needed; the rarest is 'dendritic cell'"):
        find_task(task).measure(Run(context, study, "majority", {"shots": 3}, 0))


def test_fine_tuning_tells_few_types_apart(context, monkeypatch):
    study = few(context, monkeypatch, {"B cell": 24, "CD14-positive monocyte": 24})
    found = find_task("fine-tuning").measure(Run(context, study, "head_alone", {}, 0))
    assert found.scores["macro_f1"] > 0.9


def test_random_weights_depend_on_the_seed(context):
    first, again, other = (context.untrained(seed).model.cell_projection.weight for seed in (0, 0, 1))
    assert first is again
    assert not (first == other).any()


class TestMaskedGenes:
    def test_the_shipped_head_guesses_better_than_the_most_frequent_gene(self, context, monkeypatch):
        monkeypatch.setattr(masked_genes, "MOST_CELLS", 20)
        study = context.study("pbmc68k_reduced")
        found = {
            method: masked_genes.measure(Run(context, study, method, {}, 0)).scores["masked_gene_accuracy"]
            for method in masked_genes.TASK.methods
        }
        assert found[LANGCELL] > found[masked_genes.FREQUENT]

    def test_guesses_against_a_loop(self, tiny_checkpoint):
        torch.manual_seed(0)
        model = LangCellForMaskedLM(LangCellModel.from_pretrained(tiny_checkpoint).config.cell_config).eval()
        pairs = []
        for length in (7, 4):
            shown = torch.randint(2, 40, (length,))
            labels = torch.where(torch.arange(length) % 2 == 0, torch.randint(2, 40, (length,)), -100)
            pairs.append((shown, labels))
        right, losses = masked_genes.guesses(model, pairs)
        for row, (shown, labels) in enumerate(pairs):
            with torch.no_grad():
                scores = model(shown[None]).logits[0].log_softmax(dim=-1)
            asked = [(scores[i], int(label)) for i, label in enumerate(labels) if label != -100]
            assert right[row] == sum(int(score.argmax()) == label for score, label in asked)
            assert losses[row] == pytest.approx(-sum(score[label].item() for score, label in asked), abs=1e-4)

    def test_an_adapter_is_refused(self, context):
        run = Run(replace(context, adapter="mine"), context.study("pbmc68k_reduced"), LANGCELL, {}, 0)
        with pytest.raises(InputError, match="leave out the adapter"):
            masked_genes.measure(run)

    def test_a_checkpoint_without_a_head_is_refused(self, tiny_checkpoint):
        with pytest.raises(InputError, match="no masked-gene head"):
            masked_genes.load_head(str(tiny_checkpoint))


def test_retrieval_against_a_loop(context, monkeypatch):
    study = few(context, monkeypatch, {"B cell": 8, "CD14-positive monocyte": 8, "dendritic cell": 8})
    run = Run(context, study, LANGCELL, {}, 0)
    found = find_task("retrieval").measure(run)
    names = sorted(set(run.truth))
    cells = context.annotator.embed(run.cells, **study.read).obsm["X_langcell"]
    texts = context.annotator.embed_texts([find_term(name).description for name in names])
    nearest = [names[int(np.argmax([embed @ text for text in texts]))] for embed in cells]
    share = np.mean([name == own for name, own in zip(nearest, run.truth, strict=True)])
    assert found.scores["cell_to_text_r1"] == pytest.approx(share)
    low, high = found.intervals["cell_to_text_r1"]
    assert low <= share <= high
    assert found.scores["chance_cell_to_text_r1"] == pytest.approx(1 / 3)


@pytest.mark.long
def test_novel_types_on_a_study_of_the_users_own(context, monkeypatch):
    study = context.study("pbmc68k_reduced")
    run = Run(context, study, LANGCELL, {}, 0)
    novel = find_task("novel-types").measure(run)
    assert novel.scores["novel_share"] == 0.5  # each cell once
    assert novel.scores["auroc"] > 0.6
    low, high = novel.intervals["auroc"]
    assert low < novel.scores["auroc"] < high
    assert novel.drawings["roc"][0] == {"false_positive_rate": 0.0, "true_positive_rate": 0.0}
    monkeypatch.setattr(Run, "truth", np.full(len(run.truth), "B cell"))
    with pytest.raises(InputError, match="pbmc68k_reduced has one type only"):
        find_task("novel-types").measure(run)


def test_runs_know_the_training_rows_by_their_content(tmp_path):
    """A file of the same name, size and time is another training."""
    rows = tmp_path / "train" / "rows.h5ad"
    rows.parent.mkdir()
    task = replace(find_task("zero-shot"), reads_markers=False)
    study = read_studies()["pbmc68k_reduced"]
    keys = []
    for content in (b"one", b"two", b"two"):
        rows.write_bytes(content)
        os.utime(rows, (len(keys), len(keys)) if content == b"two" else (1, 1))
        keys.append(_key(task, EvaluationContext("model", None, tmp_path), "", study, "langcell", {}, 0))
    assert keys[0]["training"] != keys[1]["training"] == keys[2]["training"]
