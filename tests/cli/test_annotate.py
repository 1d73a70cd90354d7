# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The commands that use a checkpoint: their results, and the message that bad input ends in."""

import errno
import json
import os
import pickle
import re
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import LangCellProcessor
from modeling_langcell.ontology import find_term, release

LABELS = "B cell;natural killer cell;CD8-positive, alpha-beta T cell"


def test_annotate_writes_file_figure_and_report(run, cells_file, tiny_checkpoint, tmp_path):
    out, report, figure = tmp_path / "o.h5ad", tmp_path / "r.html", tmp_path / "f.png"
    result = run(
        *("annotate", cells_file, "--model", tiny_checkpoint, "--labels", LABELS, "--reference", "known"),
        *("--out", out, "--report", report, "--figure", figure),
    )
    assert result.exit_code == 0, result.output
    for path in (out, report, figure):
        assert str(path) in result.stdout
    assert "Accuracy against known" in result.stdout
    labels = ad.read_h5ad(out).obs["langcell_cell_type"]
    assert list(labels.cat.categories) == [label for label in LABELS.split(";") if (labels == label).any()]
    page = report.read_text()
    assert "CD8-positive, alpha-beta T cell" in page
    assert "http" not in page, "the page opens without a network"
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_without_out_the_result_lies_beside_the_input(run, cells_file, tiny_checkpoint):
    result = run("annotate", cells_file, "--model", tiny_checkpoint, "--labels", "B cell,T cell", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["annotated"] == str(cells_file.with_name("cells_langcell.h5ad"))
    assert sum(said["labels"].values()) == said["cells"] == 12
    assert set(said["labels"]) == {"B cell", "T cell"}, "whether or not a cell has them"
    assert "langcell_cell_type" in ad.read_h5ad(said["annotated"]).obs


def test_labels_from_files_and_from_the_ontology(run, cells_file, tiny_checkpoint, tmp_path):
    files = {
        "l.json": json.dumps({"mine": "cell type: mine", "B cell": ""}),
        "l.tsv": "mine\tcell type: mine\nB cell\n",
        "l.txt": "natural killer cell\n\nB cell\nB cell\n",
        "several.json": json.dumps({"mine": ["cell type: mine", "what I call so"], "B cell": ""}),
        "several.tsv": "mine\tcell type: mine\nmine\twhat I call so\nB cell\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_text(content)
        result = run("annotate", cells_file, "--model", tiny_checkpoint, "--labels", path, "--json")
        assert result.exit_code == 0, result.output
        expected = {"natural killer cell" if name == "l.txt" else "mine", "B cell"}
        assert set(json.loads(result.stdout)["labels"]) == expected
        if name.startswith("several"):
            described = ad.read_h5ad(cells_file.with_name("cells_langcell.h5ad")).uns["langcell"]["descriptions"]
            assert described[0] == "cell type: mine\nwhat I call so"
    result = run("annotate", cells_file, "--model", tiny_checkpoint, "--ontology-root", "B-1 B cell", "--json")
    assert {"B-1 B cell", "B-1a B cell"} <= set(json.loads(result.stdout)["labels"])


def test_a_shortlist_is_reported(run, cells_file, tiny_checkpoint):
    arguments = ("annotate", cells_file, "--model", tiny_checkpoint, "--labels", LABELS, "--alpha", "0.3")
    said = run(*arguments, "--shortlist", 2, "--batch-tokens", 64).stdout
    proven = r"^The matching scored 2 of 3 candidates for each cell; for \d+% of the cells no other candidate can be "
    proven += "the best"
    assert re.search(rf"{proven}\.$", said, re.M)
    said = run(*arguments, "--shortlist", 2, "--check-shortlist", 5).stdout
    checked = r"5 cells were scored against all candidates as well: the best one is the same for \d+%"
    assert re.search(rf"{proven}\. {checked}\.$", said, re.M)
    facts = json.loads(run(*arguments, "--shortlist", 2, "--check-shortlist", 5, "--json").stdout)["shortlist"]
    assert {name: facts[name] for name in ("read", "candidates", "checked")} == {
        "read": 2,
        "candidates": 3,
        "checked": 5,
    }
    assert 0 <= facts["proven"] <= 1
    assert 0 <= facts["agreement"] <= 1
    assert json.loads(run(*arguments, "--shortlist", "all", "--json").stdout)["shortlist"] is None


def test_a_run_on_a_full_disk_is_resumed(run, cells_file, tiny_checkpoint, monkeypatch):
    arguments = ("annotate", cells_file, "--model", tiny_checkpoint, "--labels", LABELS)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("modeling_langcell.annotation.large_files.shutil.copyfile", full)
        failed = run(*arguments)
    assert failed.exit_code == 2
    assert "No space left on device" in failed.stderr
    assert "the same command continues it" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    on = run(*arguments)
    assert on.exit_code == 0, on.output
    assert on.stdout.startswith("Resuming: 12 cells are already done.\n")


def test_embed(run, cells_file, tiny_checkpoint, tmp_path):
    out = tmp_path / "e.h5ad"
    result = run("embed", cells_file, "--model", tiny_checkpoint, "--out", out)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(np.linalg.norm(ad.read_h5ad(out).obsm["X_langcell"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cells": "nowhere.h5ad"}, "No file"),
        ({"--labels": "no such cell at all;B cell"}, "does not know"),
        ({"--labels": "missing.tsv"}, "cannot be read"),
        ({"--tissue": "nowhere"}, "not both"),
        ({"--labels": None, "--tissue": "nowhere"}, "no tissue 'nowhere'"),
        ({"--ontology-root": "B cell"}, "not both"),
        ({"--model": "no/such/checkpoint"}, "No LangCell checkpoint"),
        ({"--layer": "absent"}, "No layer 'absent'"),
        ({"--reference": "absent"}, "No column 'absent'"),
        ({"--alpha": "7"}, "alpha=7.0"),
        ({"--figure": "f.nonsense"}, "figure"),
        ({"--out": "."}, "--out . holds INPUT"),
        ({"--out": "cells.h5ad/o.h5ad"}, "cannot be written"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    run, cells_file, tiny_checkpoint, tmp_path, monkeypatch, change, says
):
    monkeypatch.chdir(tmp_path)
    options = {"--model": tiny_checkpoint, "--labels": LABELS, "--out": "o.h5ad"} | change
    cells = options.pop("cells", cells_file)
    before = set(tmp_path.iterdir())
    result = run("annotate", cells, *(part for item in options.items() if item[1] is not None for part in item))
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert set(tmp_path.iterdir()) == before, "nothing is half-written"


def test_an_input_and_the_example_together_are_refused(run, cells_file):
    for arguments in (("annotate",), ("annotate", cells_file, "--example")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "--example" in result.stderr


@pytest.mark.parametrize(
    ("damage", "options", "advice"),
    [
        ("counts in a layer", ["--counts", "raw"], "pass --layer 'my counts'."),
        ("counts in raw", ["--counts", "raw"], "raw.X looks like counts: pass --use-raw."),
        ("logarithms", ["--counts", "raw"], "pass --counts log1p"),
        ("unknown genes", [], "Give their column of var with --gene-column."),
        ("an empty cell", [], "To keep them unannotated, pass --empty-cells mark."),
        (None, ["--use-raw"], "leave out --use-raw"),
    ],
)
def test_advice_names_options(run, cells, tiny_checkpoint, tmp_path, damage, options, advice):
    if damage == "counts in a layer":
        cells.layers["my counts"] = cells.X.copy()
    if damage == "counts in raw":
        cells.raw = cells.copy()
    if damage in ("counts in a layer", "counts in raw", "logarithms"):
        cells.X = cells.X.log1p()
    if damage == "unknown genes":
        cells.var_names = [f"unknown{number}" for number in range(cells.n_vars)]
        del cells.var
    if damage == "an empty cell":
        cells.X.data[: cells.X.indptr[1]] = 0
    cells.write_h5ad(tmp_path / "cells.h5ad")
    result = run("annotate", tmp_path / "cells.h5ad", "--model", tiny_checkpoint, "--labels", LABELS, *options)
    assert result.exit_code == 2, result.output
    assert advice in result.stderr


@pytest.mark.parametrize(
    ("author", "reason"),
    [
        ("cluster 7", "None of the labels in obs['author'] is a candidate. The labels: cluster 7."),
        (7, "None of the labels in obs['author'] is a candidate. The labels: 7."),
        ("Unassigned", "obs['author'] has no labels."),
        (None, "obs['author'] has no labels."),
    ],
)
def test_a_reference_that_cannot_be_compared_costs_the_comparison_alone(
    run, cells, tiny_checkpoint, tmp_path, author, reason
):
    cells.obs["author"] = pd.Categorical([author] * cells.n_obs)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    asked = ["annotate", tmp_path / "cells.h5ad", "--model", tiny_checkpoint, "--labels", LABELS]
    asked += ["--reference", "author", "--report", tmp_path / "report.html", "--figure", tmp_path / "figure.png"]
    result = run(*asked)
    assert result.exit_code == 0, result.output
    assert f"Not compared with author. {reason}" in result.stdout
    assert all((tmp_path / name).exists() for name in ("cells_langcell.h5ad", "report.html", "figure.png"))
    facts = json.loads(run(*asked, "--json").stdout)
    assert facts["agreement"] is None
    assert facts["not_compared"].startswith("Not compared with author. ")


@pytest.mark.parametrize("name", ["report.pdf", "report.docx", "report", "report.html.gz"])
def test_a_report_in_another_format_is_refused(run, cells_file, tiny_checkpoint, tmp_path, name):
    report = tmp_path / name
    result = run("annotate", cells_file, "--model", tiny_checkpoint, "--labels", LABELS, "--report", report)
    assert result.exit_code == 2
    assert f"--report {report} must end in .html or .htm" in result.stderr
    assert not report.exists()


class TestDescribe:
    def test_values_that_cannot_be_read_do_not_matter(self, run, cells, tiny_checkpoint, tmp_path):
        cells.X.data -= 3  # Negative values.
        cells.write_h5ad(tmp_path / "cells.h5ad")
        result = run("describe", "NK cell", "--model", tiny_checkpoint, "--cells", tmp_path / "cells.h5ad")
        assert result.exit_code == 0, result.output

    def test_says_text_and_origin(self, run, tiny_checkpoint):
        result = run("describe", "NK cell", "CL:0000236", "--model", tiny_checkpoint)
        assert result.exit_code == 0, result.output
        assert "  means  natural killer cell (CL:0000623)" in result.stdout
        assert "  text   cell type: natural killer cell. A lymphocyte" in result.stdout
        assert "  from   name and definition in the Cell Ontology, v" in result.stdout
        assert "  cut    after 32 of its" in result.stdout, "the tiny tower reads little"

    def test_a_file_of_ones_own_words(self, run, tiny_checkpoint, tmp_path):
        (tmp_path / "types.tsv").write_text("B cell\nmine\tcell type: t.\n")
        result = run("describe", "--labels", tmp_path / "types.tsv", "--model", tiny_checkpoint)
        assert result.exit_code == 0, result.output
        assert "mine\n  text   cell type: t.\n  from   your own words\n" in result.stdout

    def test_shows_all_that_a_checkpoint_with_several_wordings_reads(self, run, tiny_processor, tmp_path):
        """Of the checkpoint only what words and cuts texts is there."""
        prompt_templates = ["cell type: {name}. {definition}", "{synonym}"]
        LangCellProcessor(tiny_processor.feature_extractor, tiny_processor.tokenizer, prompt_templates).save_pretrained(
            tmp_path
        )
        (tmp_path / "types.json").write_text(json.dumps({"NK cell": "", "mine": ["one", "two"]}))
        result = run("describe", "--labels", tmp_path / "types.json", "--no-markers", "--model", tmp_path)
        assert result.exit_code == 0, result.output
        shown = [line for line in result.stdout.splitlines() if not line.startswith("  cut")]
        assert shown == [
            "NK cell",
            "  means  natural killer cell (CL:0000623)",
            "  also   NK cell",
            f"  text   {find_term('NK cell').description}",
            f"  from   name and definition in the Cell Ontology, {release()}",
            f"  as     {prompt_templates[0]}",
            "  text   NK cell",
            f"  from   synonym 'NK cell' in the Cell Ontology, {release()}",
            f"  as     {prompt_templates[1]}",
            *("", "mine", "  text   one", "  from   your own words", "  text   two", "  from   your own words"),
        ]
        assert result.stdout.count("  cut") == 1

    @pytest.mark.parametrize(
        "content", ['{"mine": [1]}', '{"mine": 1}', '{"mine": []}', "[1]", "1", '{"mine": ["", "a"]}']
    )
    def test_a_file_of_no_texts(self, run, tiny_checkpoint, tmp_path, content):
        (tmp_path / "types.json").write_text(content)
        result = run("describe", "--labels", tmp_path / "types.json", "--model", tiny_checkpoint)
        assert result.exit_code == 2
        assert "must hold" in result.stderr or "must be texts" in result.stderr

    @pytest.mark.parametrize("damage", ["{", '{"prompt_templates": ["{nme}"]}', '{"prompt_templates": "{name}"}'])
    def test_a_damaged_processor_is_one_message(self, run, tiny_checkpoint, tmp_path, damage):
        shutil.copytree(tiny_checkpoint, tmp_path / "model")
        path = tmp_path / "model" / "processor_config.json"
        whole = json.loads(path.read_text())
        path.write_text(damage if damage == "{" else json.dumps(whole | json.loads(damage)))
        result = run("describe", "NK cell", "--model", tmp_path / "model")
        assert result.exit_code == 2
        said = "processor_config.json cannot be read" if damage == "{" else "No LangCell checkpoint could be loaded"
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1

    @pytest.mark.parametrize("arguments", [[], ["B cell", "--labels", "types.tsv"]])
    def test_labels_or_a_file(self, run, arguments):
        result = run("describe", *arguments)
        assert result.exit_code == 2
        assert "Give either labels or a file" in result.output

    def test_no_such_type(self, run):
        result = run("describe", "no such thing at all")
        assert result.exit_code == 2
        assert "does not know" in result.output


class TestDamagedInput:
    """Each ends in one message, and nothing is left where the result would be."""

    def refused(self, run, cells_file, *options):
        result = run("annotate", cells_file, *options)
        assert result.exit_code == 2, result.output
        assert result.output.count("Error: ") == 1
        assert list(cells_file.parent.glob("*langcell*.h5ad*")) == []
        return result.output

    def test_labels_nested_without_end(self, run, cells_file, tmp_path):
        (tmp_path / "types.json").write_text("[" * 100_000)
        assert "cannot be read" in self.refused(run, cells_file, "--labels", tmp_path / "types.json")

    @pytest.mark.parametrize("damage", ["cut short", "other shapes", "code in place of weights"])
    def test_weights(self, run, cells_file, tiny_checkpoint, tmp_path, damage):
        model = tmp_path / "model"
        shutil.copytree(tiny_checkpoint, model)
        weights = model / "model.safetensors"
        if damage == "cut short":
            os.truncate(weights, weights.stat().st_size // 2)
        elif damage == "other shapes":
            config = json.loads((model / "config.json").read_text())
            config["projection_dim"] += 1
            (model / "config.json").write_text(json.dumps(config))
        else:
            weights.unlink()
            (model / "pytorch_model.bin").write_bytes(pickle.dumps({"a": _Bomb(tmp_path / "was-run")}))
        said = self.refused(run, cells_file, "--model", model, "--labels", LABELS)
        assert "No LangCell checkpoint could be loaded" in said
        assert not (tmp_path / "was-run").exists()


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestNamesAreCheckedBeforeTheCheckpoint:
    @pytest.fixture(autouse=True)
    def _no_checkpoint(self, monkeypatch):
        monkeypatch.setattr(
            "modeling_langcell.annotation.annotator.load_checkpoint", lambda *_, **__: pytest.fail("work")
        )

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--labels", "B cell;b cell"], "they differ only in case"),
            (["--labels", "B cell;\N{ZERO WIDTH SPACE}"], "nothing in it can be seen"),
            (["--labels", f"B cell;{'T' * 2_000}"], "has 2,000 characters: give at most 1,000"),
            (["--labels", LABELS, "--cluster-key", "langcell_cell_type"], "The annotation replaces"),
            (["--labels", LABELS, "--cluster-key", " "], "No column ' ' in obs"),
            (["--labels", LABELS, "--reference", "langcell_answer"], "The annotation replaces"),
            (["--tissue", " "], "the text is empty"),
            (["--tissue", "lunge"], "no tissue 'lunge'"),
            (["--ontology-root", "\N{ZERO WIDTH SPACE}"], "The name of a cell type is"),
        ],
    )
    def test_annotate(self, run, cells_file, options, said):
        result = run("annotate", cells_file, *options)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert list(cells_file.parent.iterdir()) == [cells_file]

    def test_search(self, run, cells_file):
        result = run("search", cells_file, "\N{ZERO WIDTH SPACE}")
        assert result.exit_code == 2, result.output
        assert "the text is empty" in result.stderr
