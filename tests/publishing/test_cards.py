# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cards: made of a checkpoint's files, the shipped ones as the renderer gives them, their snippets as they stand."""

import json
import re
import shutil

import anndata as ad
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from modeling_langcell import InputError
from modeling_langcell.cli.main import app
from modeling_langcell.publishing.cards import Prose, faults_of, render, sections, summarize, write_card
from tests.support.paths import REPOSITORY

HUB_CONFIGS, CARDS = REPOSITORY / "hub_configs", REPOSITORY / "model_cards"
RESULTS = REPOSITORY / "eval" / "results"
MINI = HUB_CONFIGS / "langcell-mini"


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


class TestShippedCards:
    @pytest.mark.parametrize("name", ["langcell-base", "langcell-mini"])
    def test_they_are_what_the_renderer_gives(self, name):
        meant = render(HUB_CONFIGS / name, Prose.read(CARDS / f"{name}.yaml"))
        assert (HUB_CONFIGS / name / "README.md").read_text() == meant, (
            f"langcell card hub_configs/{name} --about model_cards/{name}.yaml"
        )
        assert (CARDS / f"{name}.md").read_text() == meant

    def test_mini_has_the_figures_of_the_results(self):
        assert json.loads((MINI / "evaluation.json").read_text()) == summarize(RESULTS), (
            "langcell card hub_configs/langcell-mini --results eval/results --about model_cards/langcell-mini.yaml"
        )

    def test_mini_has_a_model_index_that_the_hub_reads(self):
        data = ModelCard.load(MINI / "README.md").data
        found = {(r.task_type, r.dataset_type, r.metric_name): r.metric_value for r in data.eval_results}
        cells = json.loads((RESULTS / "zero-shot.json").read_text())["cells"]
        (kang,) = [c for c in cells if c["method"] == "langcell" and c["study"] == "pbmc_kang_ctrl"]
        assert found["zero-shot", "pbmc_kang_ctrl", "accuracy"] == pytest.approx(kang["scores"]["accuracy"], abs=1e-4)
        assert len(found) == len(data.eval_results)  # The Hub shows one figure a task, study and metric.

    def test_mini_counts_its_training_cells(self):
        text = sections((MINI / "README.md").read_text())["Training data"]
        *counts, total = [
            int(row.split("|")[2].replace(",", "")) for row in text.splitlines() if re.match(r"\| \w.*\d", row)
        ]
        assert len(counts) == 17
        assert sum(counts) == total == 21_956

    def test_snippets_of_mini(self, shared):
        """As they stand, but for its name, which is a folder here."""
        adata = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")[:40].copy()
        blocks = python_blocks((MINI / "README.md").read_text())
        assert len(blocks) == 3
        for block in blocks:
            exec(block.replace('"langcell-mini"', repr(str(MINI))), {"adata": adata})
        assert set(adata.obs["langcell_cell_type"]) <= {"B cell", "NK cell", "CL:0001054"}

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
    from modeling_langcell.publishing.cards import fingerprint_of

    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "few-shot.json").write_text(json.dumps(a_table(fingerprint_of(checkpoint))))
    (folder / "throughput.json").write_text(json.dumps({"ratio": 3}))  # No table of results.
    return folder


class TestMaking:
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
        with pytest.raises(InputError, match="of another model"):
            write_card(checkpoint, results)
        assert not (checkpoint / "README.md").exists()
        (results / "zero-shot.json").write_text(json.dumps(a_table("1" * 16)))
        with pytest.raises(InputError, match="2 models"):
            write_card(checkpoint, results)

    def test_prose(self, checkpoint, tmp_path):
        (tmp_path / "about.yaml").write_text("limits: |\n  Mice only.\nmetadata:\n  license: mit\n  tags: [mouse]\n")
        write_card(checkpoint, prose=Prose.read(tmp_path / "about.yaml"))
        card = ModelCard.load(checkpoint / "README.md")
        assert "Mice only." in sections(card.text)["Intended use and limits"]
        assert card.data.license == "mit"
        assert {"langcell", "mouse"} <= set(card.data.tags)

    @pytest.mark.parametrize(
        "said",
        ["limit: x", "limits: 3", "[1]", "a: b: c", "metadata: x", "metadata: {tags: 5}", "metadata: {model_name: x}"],
    )
    def test_bad_prose(self, checkpoint, tmp_path, said):
        (tmp_path / "about.yaml").write_text(said)
        done = CliRunner().invoke(app, ["card", str(checkpoint), "--about", str(tmp_path / "about.yaml")])
        assert done.exit_code == 2
        assert not (checkpoint / "README.md").exists()

    def test_no_checkpoint(self, tmp_path):
        for folder in (tmp_path, tmp_path / "nowhere"):
            assert CliRunner().invoke(app, ["card", str(folder)]).exit_code == 2


class TestComparing:
    @pytest.fixture
    def card(self, checkpoint, results):
        return write_card(checkpoint, results)

    def test_what_was_rendered_has_no_faults(self, card):
        assert faults_of(card.parent) == []

    def test_prose_is_free(self, card):
        text = card.read_text().replace("None was written down.", "It takes ducts for tumours.")
        card.write_text(text + "\n## Thanks\n\nTo all.\n")
        assert faults_of(card.parent) == []

    @pytest.mark.parametrize(
        ("before", "after", "fault"),
        [
            ("0.600 (0.500", "0.900 (0.500", "Evaluation"),
            ("value: 0.6", "value: 0.9", "model-index"),
            ("value: 0.6", "value: x", "model-index"),
            ("| parameters | ", "| parameters | 1", "Architecture"),
            ("| blood* |", "| bone |", "Evaluation"),
            ("## Known failure modes", "## Other", "no section 'Known failure modes'"),
            ("None was written down.", "TODO", "TODO"),
            ("license: apache-2.0\n", "", "no license"),
            ("tags:\n", "tags: [\n", "metadata cannot be read"),
            ("# mine\n", "# yours\n", "not the card of 'mine'"),
            ("## Evaluation\n", "## Evaluation\n\n| x | 0.999 |\n\n## Evaluation\n", "two sections 'Evaluation'"),
            ("## Evaluation\n", "## Evaluation\n\n  | a fake row | 0.999 |\n", "a fake row"),
            ("## Evaluation\n", "## Results\n\n| pbmc | 0.999 |\n\n## Evaluation\n", "Results: '| pbmc | 0.999 |'"),
            ("# mine\n", "# mine\n\n| pbmc | 0.999 |\n", "'| pbmc | 0.999 |'"),
        ],
    )
    def test_faults(self, card, before, after, fault):
        text = card.read_text()
        assert before in text
        card.write_text(text.replace(before, after, 1))
        assert any(fault in one for one in faults_of(card.parent)), faults_of(card.parent)

    def test_what_has_no_figures_may_have_none(self, checkpoint):
        card = write_card(checkpoint)
        card.write_text(card.read_text().replace("## Evaluation\n", "## Evaluation\n\n| pbmc | 0.999 |\n"))
        assert any("0.999" in fault for fault in faults_of(checkpoint))


class TestOddFiles:
    """Of the right names, and of any content: one message, and nothing half-written."""

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

    def test_results_are_not_taken_over_where_no_card_can_be_made(self, checkpoint, results):
        (checkpoint / "training.json").write_text('{"runs": [{}]}')
        with pytest.raises(InputError):
            write_card(checkpoint, results)
        assert not (checkpoint / "evaluation.json").exists()

    def test_results_of_another_shape(self, checkpoint, tmp_path):
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd" / "a.json").write_text('{"task": {}, "model": "x", "cells": []}')
        with pytest.raises(InputError, match="odd"):
            write_card(checkpoint, tmp_path / "odd")
