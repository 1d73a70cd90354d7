# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Options that several commands share: their choices, the checks of numbers, and the check of the paths."""

import inspect
import re
import shutil
import typing

import anndata as ad
import numpy as np
import pytest

from modeling_langcell import LangCellAnnotator, LangCellFeatureExtractor, make_corpus
from modeling_langcell.adaptation import config as adaptation
from modeling_langcell.adaptation import trainer
from modeling_langcell.annotation import explain
from modeling_langcell.checkpoint import adaptation_record
from modeling_langcell.cli import explore, options, train
from modeling_langcell.eval import TASKS
from modeling_langcell.eval import command as evaluation
from modeling_langcell.io.labels import read_labels
from modeling_langcell.model.errors import InputError

LABELS = "B cell;natural killer cell;CD8-positive, alpha-beta T cell"


def choices_of(function, argument):
    return typing.get_args(inspect.signature(function).parameters[argument].annotation)


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        (options.CountsChoice, choices_of(LangCellFeatureExtractor.__call__, "counts")),
        (options.EmptyCellsChoice, choices_of(LangCellFeatureExtractor.__call__, "empty_cells")),
        (train.Unlabelled, choices_of(read_labels, "unlabelled")),
        (train.OnUnfit, choices_of(make_corpus, "on_unfit")),
        (train.Head, typing.get_args(adaptation_record.Head)),
        (train.Method, typing.get_args(adaptation.Method)),
        (train.Precision, typing.get_args(adaptation.Precision)),
        (train.Logger, trainer.LOGGERS),
        (typing.Literal[tuple(one.value for one in evaluation.TaskName)], ("all", *TASKS)),
        (explore.ExplainMethod, typing.get_args(explain.Method)),
    ],
)
def test_choices_are_those_of_the_package(option, choices):
    assert set(typing.get_args(option)) == set(choices)


def test_the_types_of_numbers_are_those_of_the_annotator():
    with pytest.raises(InputError) as refused:
        LangCellAnnotator.from_pretrained("nowhere", dtype="int4")
    assert set(re.findall(r"\w*float\d+", str(refused.value))) == set(typing.get_args(options.DtypeChoice))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--counts", "cpm"], "Invalid value for '--counts': .*'cpm' is not one of 'auto', 'raw', 'corrected', .*"),
        (["--dtype", "int4"], "'int4' is not one of 'float32', 'bfloat16', 'float16'"),
        (["--empty-cells", "drop"], "'drop' is not one of 'error', 'mark'"),
        (["--shortlist", "few"], "'--shortlist': 'few' is not a number of candidates, 'auto' or 'all'"),
        (["--shortlist", "0"], "'0' is not a number"),
        (["--shortlist", "-3"], "'-3' is not a number"),
        (["--check-shortlist", "-1"], "'--check-shortlist'"),
        (["--batch-tokens", "0"], "'--batch-tokens'"),
    ],
)
def test_a_wrong_value_is_a_usage_error(run, cells_file, arguments, message):
    result = run("annotate", cells_file, "--labels", LABELS, *arguments)
    assert result.exit_code == 2, result.output
    shown = " ".join(re.sub("[─│╭╮╰╯]+", " ", result.stderr).split())
    assert re.search(message, shown), shown
    assert len(list(cells_file.parent.iterdir())) == 1, "nothing is written"


class TestOutputsAreApart:
    """No command writes over what it reads, nor twice to one place; it says so before any work."""

    CELLS, MODEL, LABELS, LINK = "cells.h5ad", "model/config.json", "types.txt", "link.pdf"

    @pytest.fixture
    def folder(self, cells_file, tiny_checkpoint, tmp_path, monkeypatch):
        """All that is named below, and no way to load a checkpoint, which is the first work."""
        shutil.copytree(tiny_checkpoint, tmp_path / "model")
        (tmp_path / self.LABELS).write_text("B cell\nnatural killer cell\n")
        (tmp_path / self.LINK).symlink_to(cells_file)
        (tmp_path / "about.yaml").write_text("limits: none")
        (tmp_path / "model" / "README.md").hardlink_to(tmp_path / "about.yaml")
        monkeypatch.setattr(
            "modeling_langcell.annotation.annotator.load_checkpoint", lambda *_, **__: pytest.fail("work")
        )
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("command", "outputs", "other"),
        [
            ("annotate", {"--report": CELLS}, "INPUT"),
            ("annotate", {"--report": "./here/../cells.h5ad"}, "INPUT"),
            ("annotate", {"--figure": LINK}, "INPUT"),
            ("annotate", {"--report": LABELS}, "--labels"),
            ("annotate", {"--out": LABELS}, "--labels"),
            ("annotate", {"--report": MODEL}, "--model"),
            ("annotate", {"--out": "model/model.safetensors"}, "--model"),
            ("annotate", {"--report": "cells_langcell.h5ad"}, "--out"),
            ("annotate", {"--report": "a.pdf", "--figure": "a.pdf"}, "--report"),
            ("annotate", {"--out": CELLS, "--report": CELLS}, "INPUT"),
            ("annotate --example", {"--out": "a.pdf", "--figure": "a.pdf"}, "--out"),
            ("annotate --example", {"--report": LABELS}, "--labels"),
            ("embed", {"--out": MODEL}, "--model"),
            ("search", {"--out": CELLS}, "INPUT"),
            ("search", {"--out": LINK}, "INPUT"),
            ("search", {"--out": MODEL}, "--model"),
            ("explain", {"--out": CELLS}, "INPUT"),
            ("explain", {"--out": LABELS}, "--labels"),
            ("explain", {"--out": MODEL}, "--model"),
            ("explain", {"--out": "g.tsv", "--figure": LINK}, "INPUT"),
            ("explain", {"--out": "g.pdf", "--figure": "g.pdf"}, "--out"),
            ("card", {}, "--about"),
        ],
    )
    def test_each_is_refused(self, run, folder, command, outputs, other):
        (folder / "here").mkdir()
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        if command == "card":
            arguments = ["card", "model", "--about", "about.yaml"]
        else:
            arguments = [*command.split(), "--model", "model"]
            arguments += [] if "--example" in command else [self.CELLS]
            arguments += ["a B cell"] if command == "search" else []
            arguments += ["--labels", self.LABELS] if command.split()[0] in ("annotate", "explain") else []
        result = run(*arguments, *(part for item in outputs.items() for part in item))
        assert result.exit_code == 2, result.output
        assert len(result.stderr.strip().splitlines()) == 1
        assert re.search(
            rf"(is the same file as|lies in) {re.escape(other)} \(.*choose another path for one of them", result.stderr
        )
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("command", ["annotate", "embed"])
    def test_a_result_that_holds_the_input_may_take_its_place(self, run, cells_file, tiny_checkpoint, command):
        before = ad.read_h5ad(cells_file)
        options = ["--labels", LABELS] if command == "annotate" else []
        result = run(command, cells_file, "--model", tiny_checkpoint, "--out", cells_file, *options)
        assert result.exit_code == 0, result.output
        after = ad.read_h5ad(cells_file)
        assert "X_langcell" in after.obsm
        np.testing.assert_array_equal(after.X.toarray(), before.X.toarray())
        assert after.obs["known"].equals(before.obs["known"])

    @pytest.mark.parametrize("command", ["adapt", "calibrate", "export"])
    def test_a_folder_to_be_is_not_what_is_read(self, run, folder, command):
        arguments = ["model"] if command == "export" else [self.CELLS, "--model", "model", "--label-key", "known"]
        for out in (self.CELLS, "model"):
            result = run(command, *arguments, "--out", out)
            assert result.exit_code == 2, result.output
            assert f"{out} already exists: choose a new folder" in result.stderr
