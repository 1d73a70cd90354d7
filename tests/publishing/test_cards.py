# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cards are rendered from a checkpoint's files, and the snippets of the shipped ones run."""

import json
import re
import shutil
from dataclasses import asdict

import anndata as ad
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from modeling_langcell import InputError
from modeling_langcell.checkpoint.folder import CheckpointFolder
from modeling_langcell.cli.main import app
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.publishing.cards import render, write_card
from modeling_langcell.publishing.evaluation import summarize
from tests.support.paths import REPOSITORY

HUB_CONFIGS, CARDS = REPOSITORY / "hub_configs", REPOSITORY / "model_cards"
RESULTS = REPOSITORY / "eval" / "results"
MINI = HUB_CONFIGS / "langcell-mini"


def sections(text: str) -> dict[str, str]:
    """Returns the second-level sections of a card by their titles."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


class TestShippedCards:
    @pytest.mark.parametrize("name", ["langcell-base", "langcell-mini"])
    def test_they_are_rendered_from_their_folders(self, name):
        rendered = render(CheckpointFolder(HUB_CONFIGS / name))
        assert (HUB_CONFIGS / name / "README.md").read_text() == rendered, f"run: langcell card hub_configs/{name}"
        assert (CARDS / f"{name}.md").resolve() == (HUB_CONFIGS / name / "README.md").resolve()

    def test_mini_has_the_figures_of_the_results(self):
        assert json.loads((MINI / "evaluation.json").read_text()) == summarize(RESULTS), (
            "run: langcell card hub_configs/langcell-mini --results eval/results"
        )

    def test_mini_has_a_model_index_that_the_hub_reads(self):
        data = ModelCard.load(MINI / "README.md").data
        found = {(r.task_type, r.dataset_type, r.metric_name): r.metric_value for r in data.eval_results}
        cells = json.loads((RESULTS / "zero-shot.json").read_text())["cells"]
        (kang,) = [c for c in cells if c["method"] == "langcell" and c["study"] == "pbmc_kang_ctrl"]
        assert found["zero-shot", "pbmc_kang_ctrl", "accuracy"] == pytest.approx(kang["scores"]["accuracy"], abs=1e-4)
        assert len(found) == len(data.eval_results)  # The Hub shows one score per task, study and metric.

    def test_mini_counts_its_training_cells(self):
        text = sections((MINI / "README.md").read_text())["Training data"]
        *counts, total = [
            int(row.split("|")[2].replace(",", "")) for row in text.splitlines() if re.match(r"\| \w.*\d", row)
        ]
        assert len(counts) == 44
        assert sum(counts) == total == 33_169

    @pytest.mark.long
    def test_snippets_of_mini(self, shared):
        """Only the name is replaced, by that of the folder."""
        adata = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")[:40].copy()
        blocks = python_blocks((MINI / "README.md").read_text())
        assert len(blocks) == 3
        for block in blocks:
            exec(block.replace('"langcell-mini"', repr(str(MINI))), {"adata": adata})
        assert set(adata.obs["langcell_cell_type"]) <= {"B cell", "NK cell", "CL:0001054"}

    @pytest.mark.long
    def test_base_builds_and_says_that_it_has_no_weights(self):
        text = (HUB_CONFIGS / "langcell-base" / "README.md").read_text()
        assert "without weights" in text
        (block,) = python_blocks(text)
        made: dict = {}
        exec(block.replace('"langcell-base"', repr(str(HUB_CONFIGS / "langcell-base"))), made)
        parameters = sum(parameter.numel() for parameter in made["model"].parameters())
        assert f"| parameters | {parameters:,} |" in text
        assert not list((HUB_CONFIGS / "langcell-base").glob("*.safetensors"))


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "mine")


def a_table(model: str, accuracies=(0.5, 0.7)) -> dict:
    cells = [
        {"study": "blood", "method": method, "setting": {"shots": 5}, "seed": seed, "intervals": {}}
        | {"scores": scores}
        for seed, accuracy in enumerate(accuracies)
        for method, scores in (("langcell", {"accuracy": accuracy}), ("knn", {"accuracy": accuracy / 2}))
    ]
    return {
        "command": "langcell evaluate few-shot",
        "versions": {"torch": "2"},
        "task": {"name": "few-shot", "question": "Which type?", "main_score": "accuracy"},
        "model": {"fingerprint": model},
        "studies": {"blood": {"what": "Blood.", "citation": "Me", "licence": "CC0", "in_training": True}},
        "cells": cells,
    }


@pytest.fixture
def results(checkpoint, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "few-shot.json").write_text(json.dumps(a_table(CheckpointFolder(checkpoint).fingerprint)))
    (folder / "throughput.json").write_text(json.dumps({"ratio": 3}))  # Not a table of results.
    return folder


class TestWriting:
    def test_figures_are_means_with_their_range(self, checkpoint, results):
        write_card(checkpoint, results)
        text = (checkpoint / "README.md").read_text()
        assert "| blood* | 5 | 0.600 (0.500 to 0.700) |  | 0.300 (0.250 to 0.350), knn |" in text
        (result,) = ModelCard.load(checkpoint / "README.md").data.eval_results
        assert (result.metric_value, result.metric_name) == (0.6, "accuracy, 5 shots")

    def test_without_results_it_says_so(self, checkpoint):
        write_card(checkpoint)
        assert "Not measured" in sections((checkpoint / "README.md").read_text())["Evaluation"]

    def test_results_of_another_model(self, checkpoint, results):
        (results / "few-shot.json").write_text(json.dumps(a_table("0" * 16)))
        with pytest.raises(InputError, match="belong to a different model"):
            write_card(checkpoint, results)
        assert not (checkpoint / "README.md").exists()
        (results / "zero-shot.json").write_text(json.dumps(a_table("1" * 16)))
        with pytest.raises(InputError, match="2 models"):
            write_card(checkpoint, results)

    def test_prose_is_kept_and_used_again(self, checkpoint, tmp_path):
        about = "limits: |\n  Mice only.\nmetadata:\n  license: mit\n  tags: [mouse]\n"
        (tmp_path / "about.yaml").write_text(about)
        write_card(checkpoint, about=tmp_path / "about.yaml")
        assert (checkpoint / "card.yaml").read_text() == about
        (checkpoint / "README.md").unlink()
        write_card(checkpoint)
        card = ModelCard.load(checkpoint / "README.md")
        assert "Mice only." in sections(card.text)["Intended use and limits"]
        assert card.data.license == "mit"
        assert {"langcell", "mouse"} <= set(card.data.tags)

    def test_the_folders_own_prose_can_be_named(self, checkpoint):
        (checkpoint / "card.yaml").write_text("limits: Mice only.\n")
        done = CliRunner().invoke(app, ["card", str(checkpoint), "--about", str(checkpoint / "card.yaml")])
        assert done.exit_code == 0, done.output
        assert (checkpoint / "card.yaml").read_text() == "limits: Mice only.\n"

    def test_a_repository_gives_the_card_its_name(self, checkpoint):
        text = render(CheckpointFolder(checkpoint), repo_id="you/other")
        assert "\n# other\n" in text
        assert 'from_pretrained("you/other"' in text
        assert "mine" not in text

    def test_prose_without_the_rest_of_a_card_is_checked_first(self, checkpoint, tmp_path):
        (tmp_path / "about.yaml").write_text("limits: Mice only.\n")
        (checkpoint / "training.json").write_text('{"runs": [{}]}')
        with pytest.raises(InputError, match=r"training|JSON"):
            write_card(checkpoint, about=tmp_path / "about.yaml")
        assert not (checkpoint / "card.yaml").exists()

    @pytest.mark.parametrize(
        "said",
        [
            *("limit: x", "limits: 3", "[1]", "a: b: c", "[" * 2_000),
            *("metadata: x", "metadata: {tags: 5}", "metadata: {model_name: x}", "metadata: {license: ' '}"),
            "summary: |\n  A table.\n\n  | pbmc | 0.999 |\n",  # Tables hold only what the folder's files say.
        ],
    )
    def test_bad_prose(self, checkpoint, tmp_path, said):
        (tmp_path / "about.yaml").write_text(said)
        done = CliRunner().invoke(app, ["card", str(checkpoint), "--about", str(tmp_path / "about.yaml")])
        assert done.exit_code == 2
        assert not (checkpoint / "README.md").exists()

    def test_no_checkpoint(self, tmp_path):
        for folder in (tmp_path, tmp_path / "nowhere"):
            assert CliRunner().invoke(app, ["card", str(folder)]).exit_code == 2


class TestAdaptation:
    @pytest.fixture
    def adapter(self, tmp_path):
        folder = tmp_path / "adapter"
        folder.mkdir()
        record = {"head": "classes", "labels": {"NK": "", "a | b": "cell type: B cell."}, "base": "you/base"}
        record |= {
            "several": True,
            "cells": {"NK": 6},
            "settings": {"epochs": 3, "shots": None},
            "versions": {"torch": "2"},
        }
        (folder / "adaptation.json").write_text(json.dumps(record))
        return folder

    def test_the_card_has_the_record(self, adapter):
        """A record from before `several` was called `multilabel`."""
        text = write_card(adapter).read_text()
        for said in ("| NK | 6 |  |", "| a / b | 0 | cell type: B cell. |", "| epochs | 3 |", "| versions | torch 2 |"):
            assert said in text
        assert "A cell may have several labels." in text
        assert "shots" not in text

    def test_the_base_has_its_name_on_the_hub(self, adapter):
        text = render(CheckpointFolder(adapter), repo_id="you/adapter", base="me/base")
        assert "base_model: me/base" in text
        assert "made from `me/base`" in text
        assert "you/base" not in text

    def test_it_takes_no_other_texts_or_results(self, adapter, tmp_path):
        (tmp_path / "about.yaml").write_text("limits: None.\n")
        for option in ("--about", "--results"):
            done = CliRunner().invoke(app, ["card", str(adapter), option, str(tmp_path / "about.yaml")])
            assert done.exit_code == 2
            assert "was adapted" in " ".join(done.stderr.split())


class TestOddFiles:
    """Files with the right name and odd content give one message, and nothing is written."""

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("training.json", {"runs": [{}]}),
            ("training.json", {"runs": None}),
            ("training.json", {"runs": {"a": 1}}),
            ("training.json", {"runs": [{"config": {"model": {}}, "corpus": {}}]}),
            ("evaluation.json", {"tasks": [{"rows": []}]}),
            ("evaluation.json", {"tasks": {"a": 1}}),
            ("evaluation.json", {"studies": []}),
            ("adaptation.json", {"head": "nope"}),
            ("adaptation.json", {"head": "classes", "base": "x", "labels": ["a"]}),
            ("config.json", {"model_type": "langcell", "alpha": "x"}),
            ("config.json", {"model_type": "langcell", "cell_config": {"num_attention_heads": 0}}),
            ("config.json", {"model_type": "bert"}),
        ],
    )
    def test_refused(self, checkpoint, file, content):
        (checkpoint / file).write_text(json.dumps(content))
        before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        done = CliRunner().invoke(app, ["card", str(checkpoint)])
        assert done.exit_code == 2, done.exception
        assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before

    def test_results_are_not_kept_if_no_card_can_be_rendered(self, checkpoint, results):
        (checkpoint / "training.json").write_text('{"runs": [{}]}')
        with pytest.raises(InputError):
            write_card(checkpoint, results)
        assert not (checkpoint / "evaluation.json").exists()

    def test_results_of_another_shape(self, checkpoint, tmp_path):
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd" / "a.json").write_text('{"task": {}, "model": "x", "cells": []}')
        with pytest.raises(InputError, match="odd"):
            write_card(checkpoint, tmp_path / "odd")


def test_texts_of_files_stay_in_their_cells(tiny_checkpoint, tmp_path):
    """A hostile record adds neither rows nor columns nor lines to a card, nor code to its snippets."""
    evil = 'x | y\n| forged | row |\x1b[2J\n# forged\n```\n") ; evil("'
    folder = tmp_path / 'a"b'
    shutil.copytree(tiny_checkpoint, folder)
    source = {"name": evil, "kept": 3, "about": {"title": evil, "licence": evil}}
    run = {"config": asdict(PretrainingConfig(corpus="c", output="o", start=evil)), "versions": {evil: evil}}
    run["corpus"] = {"cells": 3, "genes": 4, "sources": [source]}
    (folder / "training.json").write_text(json.dumps({"runs": [run]}))
    card = write_card(folder).read_text()
    assert "\x1b" not in card
    assert not [line for line in card.splitlines() if line.startswith(("| forged", "# forged", '") ;'))]
    assert 'from_pretrained("a\\"b")' in card
    (row,) = [line for line in card.splitlines() if line.startswith("| x / y")]
    assert row.count("|") == 5
