# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Folders are checked before they are published, and others get exactly what was published."""

import gzip
import json
import os
import shutil
import subprocess
from collections import Counter

import anndata as ad
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from typer.testing import CliRunner

from modeling_langcell import (
    InputError,
    LangCellCellModel,
    LangCellForSequenceClassification,
    LangCellModel,
    LangCellProcessor,
)
from modeling_langcell.adaptation.adapt import AdaptationConfig, adapt
from modeling_langcell.annotation.records import label_descriptions
from modeling_langcell.checkpoint import files
from modeling_langcell.checkpoint import folder as folder_module
from modeling_langcell.checkpoint.folder import CheckpointFolder
from modeling_langcell.checkpoint.repository import Pushed
from modeling_langcell.cli.main import app
from modeling_langcell.publishing.cards import write_card
from modeling_langcell.publishing.checks import check as check_folder
from modeling_langcell.publishing.publish import publish as publish_folder
from tests.support.commands import WITHOUT_THE_PACKAGE
from tests.support.paths import REPOSITORY
from tests.support.tiny import tiny_config

from .test_cards import python_blocks

MINI, BASE = (REPOSITORY / "hub_configs" / name for name in ("langcell-mini", "langcell-base"))
SECRET = "hf_" + "aB3" * 12


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "mine")


@pytest.fixture
def labelled(cells):
    cells.obs["type"] = ["NK", "monocyte"] * 6
    return cells


@pytest.fixture
def adapter(tiny_checkpoint, labelled, tmp_path):
    descriptions = {"NK": "cell type : nk .", "monocyte": "monocyte"}
    config = AdaptationConfig(epochs=1)
    adapted = adapt(str(tiny_checkpoint), labelled, "type", descriptions=descriptions, config=config)
    return adapted.save(tmp_path / "adapter")


def check(folder, **options) -> None:
    check_folder(CheckpointFolder(folder), **options)


def publish(*arguments) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["publish", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


class TestShippedFolders:
    @pytest.mark.long
    @pytest.mark.parametrize("folder", [MINI, BASE])
    def test_dry_run_passes_and_lists_what_would_go(self, folder):
        code, said, _ = publish(folder, "--repo-id", f"you/{folder.name}", "--dry-run")
        assert code == 0
        for path in folder.iterdir():
            assert (f"  {path.name}\n" in said) == (path.name != "card.yaml")
        assert "Left out: card.yaml\n" in said
        assert "Nothing was sent" in said

    @pytest.mark.parametrize("folder", [MINI, BASE])
    def test_their_code_is_the_packages(self, folder):
        copies = sorted(folder.glob("*.py"))
        assert len(copies) == 19
        for path in copies:
            own = REPOSITORY / "modeling_langcell" / "model" / path.name
            assert path.read_bytes() == own.read_bytes(), f"cp modeling_langcell/{path.name} {folder}"


class TestRefused:
    """Every fault is named, and the Hub is not asked."""

    @pytest.mark.long
    def test_an_intact_checkpoint_passes(self, checkpoint):
        check(checkpoint)

    @pytest.mark.parametrize(
        ("file", "content", "fault"),
        [
            ("pytorch_model.bin", b"\x80\x02}q\x00.", "pytorch_model.bin is a pickle"),
            ("notes.txt", b"\x80\x04\x95\x00", "notes.txt is a pickle"),
            ("genes.md", b"PK\x03\x04", "genes.md is a pickle"),
            ("weights.exe", b"MZ", "weights.exe is not part of a model"),
            ("extra.json", b"{", "extra.json cannot be read"),
            ("more.safetensors", b"\x08\0\0\0\0\0\0\0{}", "more.safetensors is incomplete"),
            ("helper.py", b"import os\n", "helper.py is not code of modeling-langcell"),
            ("notes.md", b"made in /home/someone/runs/best\n", "notes.md holds a path of this machine: /home/someone"),
            ("notes.md", b"made in C:\\Users\\someone\n", "notes.md holds a path of this machine: C:"),
            ("extra.json", json.dumps({"token": SECRET}).encode(), "extra.json holds what looks like a secret"),
            ("notes.txt", b"-----BEGIN RSA PRIVATE KEY-----", "notes.txt holds what looks like a secret"),
            ("LICENSE", SECRET.encode(), "LICENSE holds what looks like a secret"),
            ("a.svg", b"<svg>/home/someone/x</svg>", "a.svg holds a path of this machine"),
            ("extra.json", b'{"from": "/cluster7/someone/ckpt"}', "extra.json holds a path of this machine"),
            ("extra.json", b'{"from": "C:/Users/someone"}', "extra.json holds a path of this machine"),
            ("extra.json", b'{"from": "file:///x/someone"}', "extra.json holds a path of this machine"),
            ("extra.json", b"[" * 100_000 + b"]" * 100_000, "extra.json cannot be read"),
            ("notes.txt", b'cos\nsystem\n(S"id"\ntR.', "notes.txt is a pickle"),
            ("notes.txt", gzip.compress(b"x", mtime=0), "notes.txt is not text"),
            ("a.png", b"\x80", "a.png is not a picture"),
            ("more.safetensors", b"\x80\x04\x95\x00", "more.safetensors is a pickle"),
            ("sub/helper.py", b"import os\n", "sub/helper.py is not code"),
            ("other.yaml", b"a: b\n", "other.yaml is not part of a model"),
            ("card.yaml", f"limits: {SECRET}\n".encode(), "card.yaml holds what looks like a secret"),
            ("card.yaml", b"limits: made in /home/someone/runs\n", "card.yaml holds a path of this machine"),
            ("card.yaml", b"limits: TODO\n", "card.yaml still says TODO"),
            ("card.yaml", b"[1]", "card.yaml must map"),
            ("card.yaml", b"summary: |\n  | pbmc | 0.999 |\n", "card.yaml: summary has a table"),
            ("training.json", b'{"runs": [{}]}', "does not have the form that this package writes"),
        ],
    )
    def test_files_that_do_not_belong(self, checkpoint, file, content, fault):
        (checkpoint / file).parent.mkdir(exist_ok=True)
        (checkpoint / file).write_bytes(content)
        with pytest.raises(InputError, match=fault):
            check(checkpoint)

    @pytest.mark.long
    def test_content_that_only_looks_unsafe(self, checkpoint):
        """A header whose length begins like a pickle, a slug, and slashes that are no paths."""
        for padding in range(700):
            content = save({"a": torch.zeros(1)}, metadata={"a": "x" * padding})
            if content[:2] in (b"\x80\x02", b"\x80\x03"):
                break
        assert content[:1] == b"\x80"
        (checkpoint / "more.safetensors").write_bytes(content)
        slug = "https://x.org/risk-of-severe-disease-in-patients-with-lupus, .5 and a/b/c"
        (checkpoint / "card.yaml").write_text(f'failure_modes: "{slug}"\n')
        check(checkpoint)

    def test_metadata_of_weights(self, checkpoint):
        (checkpoint / "more.safetensors").write_bytes(save({"a": torch.zeros(1)}, metadata={"by": SECRET}))
        with pytest.raises(InputError, match=r"more.safetensors holds what looks like a secret"):
            check(checkpoint)

    def test_a_pipe(self, checkpoint):
        os.mkfifo(checkpoint / "notes.txt")
        with pytest.raises(InputError, match=r"notes.txt is a link, or not a regular file"):
            check(checkpoint)

    @pytest.mark.parametrize(
        ("settings", "fault"),
        [
            ({"auto_map": {"AutoModel": "other/repo--m.C"}}, "other/repo--m.C is code outside this folder"),
            ({"auto_map": {"AutoTokenizer": ["sub/m.C", None]}}, "sub/m.C is code outside this folder"),
            ({"auto_map": [1]}, "auto_map"),
            ({"custom_pipelines": [1]}, "custom_pipelines"),
            ({"custom_pipelines": {"a": "x"}}, "custom_pipelines"),
            ({"custom_pipelines": {"a": {"impl": "evil.C", "pt": ["AutoModel"]}}}, "evil.py, which"),
        ],
    )
    def test_code_from_elsewhere(self, checkpoint, settings, fault):
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | settings))
        with pytest.raises(InputError, match=fault):
            check(checkpoint)

    @pytest.mark.parametrize(
        ("file", "fault"),
        [
            ("model.safetensors", "model.safetensors is missing"),
            ("processor_config.json", "gene vocabulary"),
            ("tokenizer.json", "tokenizer"),
            ("objectives.py", "objectives.py, which config.json or processor_config.json needs, is missing"),
            ("pipeline_langcell.py", "pipeline_langcell.py, which"),
            ("config.json", "neither a checkpoint"),
        ],
    )
    def test_files_that_are_missing(self, checkpoint, file, fault):
        (checkpoint / file).unlink()
        with pytest.raises(InputError, match=fault):
            check(checkpoint)

    @pytest.mark.parametrize(
        ("file", "before", "after", "fault"),
        [
            ("modeling_langcell.py", "import torch\n", "import torch  # old\n", "modeling_langcell.py differs"),
            ("config.json", '"vocab_size": 43', '"vocab_size": 44', "gives 43 genes"),
            ("config.json", '"auto_map": {\n    "AutoConfig": "configuration_langcell.LangCellConfig"',
             '"no_map": {\n    "AutoConfig": "configuration_langcell.LangCellConfig"', "has no auto_map"),
            ("config.json", '"hidden_size": 16', '"hidden_size": 32', "does not load"),
        ],
    )  # fmt: skip
    def test_files_that_do_not_fit(self, checkpoint, file, before, after, fault):
        text = (checkpoint / file).read_text()
        assert before in text
        (checkpoint / file).write_text(text.replace(before, after, 1))
        with pytest.raises(InputError, match=fault):
            check(checkpoint)

    def test_code_from_elsewhere_inside_other_settings(self, checkpoint):
        path = checkpoint / "processor_config.json"
        settings = json.loads(path.read_text())
        settings["feature_extractor"]["auto_map"] = {"AutoFeatureExtractor": "other/repo--m.C"}
        path.write_text(json.dumps(settings))
        with pytest.raises(InputError, match=r"other/repo--m.C is code outside this folder"):
            check(checkpoint)

    def test_a_vocabulary_without_medians(self, checkpoint):
        path = checkpoint / "processor_config.json"
        settings = json.loads(path.read_text())
        vocabulary = settings["feature_extractor"]["gene_vocabulary"]
        vocabulary["medians"] = [None] * len(vocabulary["medians"])
        path.write_text(json.dumps(settings))
        with pytest.raises(InputError, match=r"no gene with a median|does not load"):
            check(checkpoint)

    @pytest.mark.parametrize("name", ["notes.txt", "card.yaml", "objectives.py"])
    def test_a_link(self, checkpoint, tmp_path, name):
        (tmp_path / name).write_text("")
        (checkpoint / name).unlink(missing_ok=True)
        (checkpoint / name).symlink_to(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name} is a link"):
            check(checkpoint)

    def test_a_link_to_other_code_of_the_package(self, checkpoint):
        (checkpoint / "objectives.py").unlink()
        (checkpoint / "objectives.py").symlink_to(BASE.resolve() / "zero_shot.py")
        with pytest.raises(InputError, match=r"objectives.py is a link"):
            check(checkpoint)

    @pytest.mark.parametrize("file", ["a.pkl", "notes.txt"])
    def test_faults_of_files_are_found_without_the_model(self, checkpoint, file, monkeypatch):
        monkeypatch.setattr(CheckpointFolder, "model", property(lambda folder: pytest.fail("the model was loaded")))
        (checkpoint / file).write_text(SECRET)
        with pytest.raises(InputError, match=file):
            check(checkpoint)

    @pytest.mark.long
    def test_figures_of_another_model(self, checkpoint):
        (checkpoint / "evaluation.json").write_text(json.dumps({"model": "0" * 16, "studies": {}, "tasks": []}))
        with pytest.raises(InputError, match="belongs to a different model"):
            check(checkpoint)

    def test_all_faults_are_listed_at_once(self, checkpoint):
        (checkpoint / "a.pkl").write_bytes(b"x")
        (checkpoint / "b.md").write_text(SECRET)
        code, _, errors = publish(checkpoint, "--repo-id", "you/mine", "--dry-run")
        assert code == 2
        assert "a.pkl" in errors
        assert "b.md" in errors
        assert SECRET not in errors

    @pytest.mark.long
    def test_results_that_differ(self):
        code, _, _ = publish(MINI, "--repo-id", "you/mine", "--dry-run", "--results", REPOSITORY / "eval" / "results")
        assert code == 0
        evaluation = json.loads((MINI / "evaluation.json").read_text())
        evaluation["tasks"][0]["rows"][0]["scores"]["accuracy"]["mean"] += 0.1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("modeling_langcell.publishing.checks.summarize", lambda results: evaluation)
            with pytest.raises(InputError, match=r"evaluation.json differs from results"):
                check(MINI, results="results")

    @pytest.mark.parametrize(
        "name", ["mine", "a/b/c", "you/m ine", "", "you/..", "you/-x", "you/x.git", "you/" + "x" * 99]
    )
    def test_invalid_names_of_repositories(self, checkpoint, name):
        assert publish(checkpoint, "--repo-id", name, "--dry-run")[0] == 2

    @pytest.mark.parametrize("tag", ["", "bad tag", "a..b", "-a", "a.lock", "a."])
    def test_invalid_tags(self, checkpoint, tag):
        code, _, errors = publish(checkpoint, "--repo-id", "you/mine", "--tag", tag, "--dry-run")
        assert (code, "is not a tag" in errors) == (2, True)

    def test_no_folder(self, tmp_path):
        for folder in (tmp_path / "nowhere", tmp_path):
            assert publish(folder, "--repo-id", "you/mine", "--dry-run")[0] == 2


class TestLoading:
    """The model is loaded once in this process, and once in the process without the package."""

    @pytest.fixture
    def loads(self, monkeypatch):
        """Counts loads of models and processors, and reads of JSON files, by name."""
        counted: Counter[str] = Counter()

        def counting(owner, name, said):
            original = getattr(owner, name)

            def call(*arguments, **options):
                counted[said(arguments)] += 1
                return original(*arguments, **options)

            monkeypatch.setattr(owner, name, call)

        for kind in (LangCellModel, LangCellForSequenceClassification):
            counting(kind, "from_pretrained", lambda _: "model")
        counting(LangCellProcessor, "from_pretrained", lambda _: "processor")
        counting(files, "read_json", lambda arguments: arguments[0].name)
        counting(folder_module, "read_json", lambda arguments: arguments[0].name)
        counting(subprocess, "run", lambda _: "process")
        return counted

    @pytest.mark.long
    def test_a_checkpoint_with_results(self, checkpoint, loads):
        fingerprint = CheckpointFolder(checkpoint).fingerprint
        (checkpoint / "evaluation.json").write_text(json.dumps({"model": fingerprint, "studies": {}, "tasks": []}))
        loads.clear()
        publish_folder(checkpoint, "you/mine", dry_run=True)
        assert (loads["model"], loads["processor"], loads["process"]) == (1, 1, 1)
        assert (loads["evaluation.json"], loads["training.json"], loads["processor_config.json"]) == (1, 1, 1)

    @pytest.mark.parametrize("base", ["langcell-mini", "you/tiny"])
    def test_an_adapter(self, adapter, tiny_checkpoint, loads, base, monkeypatch):
        monkeypatch.setattr("modeling_langcell.publishing.publish.push", lambda *_, **__: Pushed("you/a", "0", "url"))
        monkeypatch.setattr("modeling_langcell.checkpoint.loading.resolve_checkpoint", lambda _: str(tiny_checkpoint))
        publish_folder(adapter, "you/adapter", base=base)
        assert (loads["model"], loads["processor"]) == (1, 1)


class TestKinds:
    @pytest.mark.long
    def test_files_of_a_training_run_are_left_out(self, checkpoint):
        (checkpoint / "tensorboard").mkdir()
        (checkpoint / "tensorboard" / "events").write_bytes(b"\x80\x02")
        (checkpoint / "losses.jsonl").write_text("{}\n")
        code, said, _ = publish(checkpoint, "--repo-id", "you/mine", "--dry-run")
        assert code == 0
        assert "Left out: losses.jsonl\nLeft out: tensorboard/events\n" in said

    @pytest.mark.long
    def test_towers_and_classifiers(self, tiny_processor, tmp_path):
        config = tiny_config(cell_config={"num_labels": 3}).cell_config
        for name, kind in (("cells", LangCellCellModel), ("classes", LangCellForSequenceClassification)):
            folder = tmp_path / name
            torch.manual_seed(0)
            kind(config).save_pretrained(folder)
            tiny_processor.save_pretrained(folder)
            check(folder)

    def test_an_adapter_names_its_base(self, adapter):
        code, _, errors = publish(adapter, "--repo-id", "you/adapter", "--dry-run")
        assert code == 2
        assert "--base OWNER/NAME" in errors
        code, said, _ = publish(adapter, "--repo-id", "you/adapter", "--base", "you/tiny", "--dry-run")
        assert code == 0
        assert "Base: you/tiny" in said

    @pytest.mark.parametrize("head", ["descriptions", "classes", "prototypes"])
    def test_the_snippets_of_an_adapters_card(self, tiny_checkpoint, labelled, tmp_path, head):
        """Only the name is replaced, by that of the folder."""
        descriptions = {"NK": "cell type : nk .", "monocyte": "monocyte"}
        config = AdaptationConfig(epochs=1, head=head)
        adapted = adapt(str(tiny_checkpoint), labelled, "type", descriptions=descriptions, config=config)
        folder = adapted.save(tmp_path / "adapter")
        assert not (folder / "README.md").exists()
        blocks = python_blocks(write_card(folder).read_text())
        assert len(blocks) == (1 if head == "prototypes" else 2)
        made = {"adata": labelled}
        for block in blocks:
            exec(block.replace('"adapter"', repr(str(folder))), made)
        assert set(labelled.obs["langcell_cell_type"]) <= {"NK", "monocyte"}
        if head != "prototypes":
            assert type(made["model"]).__name__.startswith("PeftModel")

    def test_faults_of_an_adapter(self, adapter):
        (adapter / "handler.py").write_text("import os")
        with pytest.raises(InputError, match=r"handler.py is not code"):
            check(adapter)
        (adapter / "handler.py").unlink()
        weights = load_file(adapter / "adapter_model.safetensors")
        (adapter / "adapter_model.safetensors").write_bytes(save({name: w * torch.nan for name, w in weights.items()}))
        with pytest.raises(InputError, match=r"not finite"):
            check(adapter)
        (adapter / "adapter_config.json").write_text("[1]")
        with pytest.raises(InputError, match="does not hold a JSON object"):
            check(adapter)
        (adapter / "adapter_model.safetensors").unlink()
        with pytest.raises(InputError, match="incomplete"):
            check(adapter)

    @pytest.mark.parametrize("prototypes", [torch.zeros(1, 5), torch.full((2, 12), torch.nan)])
    def test_prototypes_of_another_shape(self, tiny_checkpoint, labelled, tmp_path, prototypes):
        config = AdaptationConfig(head="prototypes")
        descriptions = {"NK": "cell type : nk .", "monocyte": "monocyte"}
        adapted = adapt(str(tiny_checkpoint), labelled, "type", descriptions=descriptions, config=config)
        folder = adapted.save(tmp_path / "prototypes")
        check(folder)
        (folder / "prototypes.safetensors").write_bytes(save({"prototypes": prototypes}))
        with pytest.raises(InputError, match=r"must be 2 x 12 finite numbers"):
            check(folder)

    @pytest.mark.parametrize(
        "said",
        [{"base": ["x"]}, {"cells": None}, {"labels": ["a"]}, {"settings": [1]}, {"head": "foo"}, {"alpha": "abc"}],
    )
    def test_adaptations_of_another_shape(self, adapter, said):
        path = adapter / "adaptation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | said))
        code, _, errors = publish(adapter, "--repo-id", "you/adapter", "--base", "you/tiny", "--dry-run")
        assert code == 2
        assert "adaptation" in errors

    @pytest.mark.long
    def test_a_whole_adapted_checkpoint(self, tiny_checkpoint, labelled, tmp_path):
        config = AdaptationConfig(epochs=1, method="full")
        descriptions = {"NK": "cell type : nk .", "monocyte": "monocyte"}
        adapted = adapt(str(tiny_checkpoint), labelled, "type", descriptions=descriptions, config=config)
        check(adapted.save(tmp_path / "whole"))


#: Process without the package, which gets the labels' probabilities by transformers and peft alone.
STRANGER = """
import json, sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_langcell":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NotInstalled())
import anndata as ad
import numpy as np
from peft import PeftConfig, PeftModel
from transformers import AutoModel, pipeline

base, adapter, cells, descriptions, marker_weight, output = sys.argv[1:]
descriptions, adata = json.loads(descriptions), ad.read_h5ad(cells)
annotate = pipeline("zero-shot-cell-annotation", model=base, trust_remote_code=True)


def probabilities():
    answers = annotate(adata, candidate_labels=descriptions)
    by_label = [{one["label"]: one["score"] for one in answer} for answer in answers]
    return np.array([[found[label] for label in descriptions] for found in by_label], dtype=np.float32)


found = {"base": probabilities()}
assert PeftConfig.from_pretrained(adapter).base_model_name_or_path == base
annotate.model = PeftModel.from_pretrained(annotate.model, adapter).merge_and_unload()
annotate.model.config.calibration = None  # It was fitted on the weights of the base, as the card says.
annotate.model.config.relatives_weight = annotate.model.config.known_cells_weight = 0  # As the card says, too.
annotate.model.config.marker_weight = float(marker_weight)
found["adapter"] = probabilities()
np.savez(output, **found)
"""


class TestPublished:
    def test_mini_and_an_adapter_give_a_stranger_the_same_probabilities(self, hub, run, shared, tmp_path):
        """The folders are pushed, pulled by id without the package, and annotate real cells."""
        adata = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")
        adata[::3].write_h5ad(tmp_path / "cells.h5ad")
        adata[1::3].write_h5ad(tmp_path / "labelled.h5ad")
        langcell = ("-m", "modeling_langcell.cli")
        names = ("you/langcell-mini", "you/adapter")
        adapting = ("--label-key", "cell_type", "--shots", 2, "--epochs", 2, "--out", "adapter")
        for command in (
            ("publish", MINI, "--repo-id", names[0], "--tag", "v1"),
            ("adapt", "labelled.h5ad", *adapting),
            ("publish", "adapter", "--repo-id", names[1], "--base", names[0]),
            ("card", "adapter"),
            ("annotate", "cells.h5ad", "--adapter", names[1], "--out", "adapted.h5ad"),
        ):
            code, _, errors = run(*langcell, *command)
            assert code == 0, (command, errors)
        adapted = ad.read_h5ad(tmp_path / "adapted.h5ad")
        assert adapted.uns["langcell"]["checkpoint"] == names[0]
        run_record = adapted.uns["langcell"]
        descriptions = {
            label: {"description": one.texts, "markers": one.markers, "absent": one.absent}
            for label, one in label_descriptions(run_record).items()
        }
        marker_weight = json.loads((tmp_path / "adapter" / "adaptation.json").read_text())["marker_weight"]
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert f"model.config.marker_weight = {marker_weight} " in card
        assert "model.config.relatives_weight = model.config.known_cells_weight = 0 " in card
        (tmp_path / "labels.json").write_text(json.dumps(descriptions))
        code, _, errors = run(
            *langcell, "annotate", "cells.h5ad", "--model", names[0], "--revision", "v1", "--labels", "labels.json",
            "--out", "base.h5ad",
        )  # fmt: skip
        assert code == 0, errors

        arguments = (*names, "cells.h5ad", json.dumps(descriptions), str(marker_weight), "found.npz")
        code, _, errors = run("-I", "-c", STRANGER, *arguments, home="another", preload=WITHOUT_THE_PACKAGE)
        assert code == 0, errors
        found = np.load(tmp_path / "found.npz")
        for name, annotated in (("base", ad.read_h5ad(tmp_path / "base.h5ad")), ("adapter", adapted)):
            # The package's own kernels round otherwise than torch's standard ones, which the published code uses.
            expected = annotated.obsm["langcell_probabilities"].to_numpy()
            np.testing.assert_allclose(found[name], expected, atol=1e-5, rtol=0, err_msg=name)
        assert not np.allclose(found["base"], found["adapter"], atol=1e-2)

    def test_the_repository_has_the_folders_bytes(self, hub, run, checkpoint):
        """Only the card is rendered anew, with the repository's name, whatever the folder's README.md says."""
        card = write_card(checkpoint).read_bytes()
        (checkpoint / "README.md").write_text("# Another\n\n| accuracy | 1.000 |\n")
        (checkpoint / "objectives.py").unlink()
        (checkpoint / "objectives.py").symlink_to((MINI / "objectives.py").resolve())
        code, said, errors = run(
            "-m", "modeling_langcell.cli", "publish", "mine", "--repo-id", "you/mine", "--tag", "v1"
        )
        assert code == 0, errors
        there = hub.repositories["you/mine"]
        for path in checkpoint.iterdir():
            meant = path.read_bytes()
            if path.name == "README.md":
                assert b'"mine"' in card
                meant = card.replace(b'"mine"', b'"you/mine"')
            assert there[path.name] == meant, path.name
        assert set(there) == {path.name for path in checkpoint.iterdir()} | {".gitattributes"}
        assert len(there.commits) == 2  # That of the Hub itself, and one push.
        assert there.tags == {"v1": there.commits[-1].id}
        assert there.commits[-1].id in said
        # The second time there is nothing to do.
        assert run("-m", "modeling_langcell.cli", "publish", "mine", "--repo-id", "you/mine", "--tag", "v1")[0] == 0
        assert len(there.commits) == 2

    def test_an_adapter_is_tried_on_its_base_there(self, hub, run, adapter, tiny_checkpoint):
        command = (
            "-m",
            "modeling_langcell.cli",
            "publish",
            "adapter",
            "--repo-id",
            "you/adapter",
            "--base",
            "you/tiny",
        )
        code, _, errors = run(*command)
        assert code == 2
        assert "you/tiny" in errors
        assert "you/adapter" not in hub.repositories
        hub.add("you/tiny", tiny_checkpoint)
        assert run(*command)[0] == 0
        there = hub.repositories["you/adapter"]
        assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == "you/tiny"
        card = there["README.md"].decode()
        assert "base_model: you/tiny" in card
        assert 'LangCellAnnotator.from_pretrained(adapter="you/adapter")' in card
        assert 'AutoModel.from_pretrained("you/tiny", trust_remote_code=True)' in card
        assert str(tiny_checkpoint) not in card

    def test_a_refused_folder_is_not_sent(self, hub, run, checkpoint):
        (checkpoint / "a.pkl").write_bytes(b"x")
        code, _, errors = run("-m", "modeling_langcell.cli", "publish", "mine", "--repo-id", "you/mine")
        assert code == 2
        assert "a.pkl" in errors
        assert "Traceback" not in errors
        assert not hub.requests
