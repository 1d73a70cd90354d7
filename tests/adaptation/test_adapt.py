# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Adaptation to labelled cells: training, saving, and the same predictions wherever it is loaded."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from transformers import AutoProcessor
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellAnnotator, LangCellForSequenceClassification, LangCellModel
from modeling_langcell.adaptation.adapt import AdaptationConfig, adapt
from modeling_langcell.adaptation.batches import CellBatches
from modeling_langcell.adaptation.losses import ClassLoss, DescriptionLoss
from modeling_langcell.cli.main import app
from modeling_langcell.io.example import CELL_OPTIONS, LABEL_COLUMN, load_example
from modeling_langcell.io.labels import rank_cells, read_labels
from tests.support.commands import run_without_the_package
from tests.support.paths import REPOSITORY
from tests.support.tiny import GENES, TYPES, tiny_config

MINI = REPOSITORY / "hub_configs" / "langcell-mini"
#: Types of real cells that langcell-mini knows well, with their names swapped: only an adapted model gives these.
SWAPPED = {"B cell": "monocyte", "natural killer cell": "B cell", "CD14-positive monocyte": "natural killer cell"}
#: Settings that learn the swapped names in seconds.
QUICK = {"epochs": 8, "learning_rate": 2e-3, "gene_dropout": 0.5, "batch_cells": 8}


@pytest.fixture(scope="module")
def labelled() -> ad.AnnData:
    """Thirty cells of three types; each type expresses ten genes of its own tenfold."""
    rng = np.random.default_rng(0)
    names = np.repeat(list(TYPES.values()), 10)
    rates = np.full((30, len(GENES)), 0.5)
    for number in range(3):
        rates[10 * number : 10 * number + 10, 10 * number : 10 * number + 10] *= 10
    obs = pd.DataFrame({"type": names}, index=[f"cell{row}" for row in range(30)])
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))
    has = np.column_stack([names == "B cell", names != "monocyte"])
    adata.obsm["pathways"] = pd.DataFrame(has, index=adata.obs_names, columns=["first", "second"])
    return adata


@pytest.fixture(scope="module")
def swapped() -> ad.AnnData:
    """Fifteen blood cells of each of three types, whose names are swapped."""
    cells = load_example()
    cells = cells[cells.obs[LABEL_COLUMN].isin(SWAPPED)].copy()
    cells.obs["swapped"] = cells.obs[LABEL_COLUMN].astype(str).map(SWAPPED)
    cells = cells[read_labels(cells, "swapped").shots(15, seed=0).rows].copy()
    has = {"first": cells.obs["swapped"] == "B cell", "second": cells.obs["swapped"] != "monocyte"}
    cells.obsm["pathways"] = pd.DataFrame(has)
    return cells


def accuracy(adata: ad.AnnData) -> float:
    return float((adata.obs["langcell_cell_type"].astype(str) == adata.obs["swapped"].astype(str)).mean())


class TestLabels:
    def test_shots_draw_the_same_number_of_each_label_and_larger_draws_contain_smaller_ones(self, labelled):
        labels = read_labels(labelled, "type")
        one, three = labels.shots(1, seed=4), labels.shots(3, seed=4)
        assert three.sizes() == dict.fromkeys(sorted(TYPES.values()), 3)
        assert set(one.rows) < set(three.rows)
        assert set(labels.shots(3, seed=5).rows) != set(three.rows)
        names = np.array(labels.names)
        assert (names[three.truth] == labelled.obs["type"].to_numpy()[three.rows]).all()

    def test_cells_without_a_label_can_be_skipped(self, labelled):
        some = labelled.copy()
        some.obs.loc[["cell3", "cell4"], "type"] = [None, " "]
        labels = read_labels(some, "type", unlabelled="skip")
        assert len(labels) == 28
        assert not {3, 4} & set(labels.rows)

    def test_held_out_cells_have_every_label(self, labelled):
        learnt, watched = read_labels(labelled, "type").held_out(0.2, seed=0)
        assert watched.sizes() == dict.fromkeys(sorted(TYPES.values()), 2)
        assert not set(learnt.rows) & set(watched.rows)

    def test_a_backed_file_is_read_the_same(self, labelled, tiny_processor, tmp_path):
        labelled.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        rows = np.array([2, 11, 29])
        ranked, expected = (rank_cells(adata, rows, tiny_processor.feature_extractor) for adata in (backed, labelled))
        np.testing.assert_array_equal(ranked.token_ids, expected.token_ids)


def test_a_label_is_described_by_the_first_prompt_template_of_the_checkpoint(labelled, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    processor.prompt_templates = ["a {name}", "{synonym}"]
    processor.save_pretrained(tmp_path / "model")
    adapted = adapt(
        *(str(tmp_path / "model"), labelled, "type"),
        descriptions={"B cell": "cell type : b ."},
        config=AdaptationConfig(head="prototypes"),
    )
    expected = {name: f"a {name}" for name in sorted(TYPES.values())} | {"B cell": "cell type : b ."}
    assert adapted.adaptation.labels == expected


class TestLosses:
    @pytest.fixture
    def batch(self, labelled, tiny_processor):
        labels = read_labels(labelled, "type")
        rows = np.arange(0, 30, 3)
        ranked = rank_cells(labelled, rows, tiny_processor.feature_extractor)
        batches = CellBatches(ranked, labels.truth[rows], len(rows))
        return next(batches.in_order())

    @pytest.mark.parametrize("matching", [False, True])
    @pytest.mark.parametrize("adapt_texts", [False, True])
    def test_the_loss_over_descriptions_is_the_models_own(self, batch, tiny_processor, matching, adapt_texts):
        torch.manual_seed(0)
        model = LangCellModel(tiny_config()).eval()
        texts = tiny_processor(text=["b cell", "monocyte", "natural killer cell"], return_tensors="pt")
        how = {"matching": matching, "adapt_texts": adapt_texts, "temperature": model.config.temperature}
        loss = DescriptionLoss(model, texts, **how)(**batch)
        ids, mask, truth = batch.values()
        expected = model(ids, mask, **texts, labels=truth, return_matching=matching).loss
        torch.testing.assert_close(loss, expected)

    def test_frozen_texts_are_encoded_once(self, batch, tiny_processor, monkeypatch):
        model = LangCellModel(tiny_config())
        texts = tiny_processor(text=["b", "t", "nk"], return_tensors="pt")
        loss_of = DescriptionLoss(model, texts, temperature=0.2, matching=False, adapt_texts=False)
        monkeypatch.setattr(type(model.text_model), "forward", lambda *_, **__: pytest.fail("texts were encoded again"))
        loss_of(**batch)

    def test_balanced_classes_have_equal_weight(self, batch):
        ids, mask, truth = batch.values()
        model = LangCellForSequenceClassification(tiny_config().cell_config).eval()
        model.config.num_labels, model.classifier = 3, torch.nn.Linear(16, 3)
        sizes = np.array([1, 2, 7])
        learnt_from = np.repeat(np.arange(3), sizes)
        loss = ClassLoss(model, learnt_from, balanced=True)(ids, mask, truth)
        each = F.cross_entropy(model(ids, mask).logits, truth, reduction="none")
        weights = torch.tensor(1 / sizes, dtype=torch.float32)[truth]
        torch.testing.assert_close(loss, (each * weights).sum() / weights.sum())

    def test_each_of_several_labels_has_its_own_loss(self, batch):
        ids, mask, _ = batch.values()
        truth = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1], [1, 0]] * 2, dtype=torch.bool)
        model = LangCellForSequenceClassification(tiny_config().cell_config).eval()
        model.classifier = torch.nn.Linear(16, 2)
        loss = ClassLoss(model, truth.numpy(), balanced=False)(ids, mask, truth)
        said = model(ids, mask).logits.sigmoid()
        expected = -torch.where(truth, said, 1 - said).log().mean()
        torch.testing.assert_close(loss, expected)


class TestGeneDropout:
    def test_cells_with_dropped_genes_keep_cls_and_order(self, labelled, tiny_processor):
        ranked = rank_cells(labelled, np.arange(30), tiny_processor.feature_extractor)
        batches = CellBatches(ranked, np.arange(30), 4)
        lengths = []
        for batch in batches.shuffled(np.random.default_rng(0), 0.9):
            for shown, there, cell in zip(*batch.values(), strict=True):
                genes = shown[there.bool()].numpy()
                whole = ranked[int(cell)]
                assert genes[0] == whole[0]
                places = [np.flatnonzero(whole == gene)[0] for gene in genes]
                assert places == sorted(places)
                lengths.append(len(genes) / len(whole))
        assert 0.3 < np.mean(lengths) < 0.8

    def test_without_dropout_every_cell_is_seen_once_with_all_genes(self, labelled, tiny_processor):
        ranked = rank_cells(labelled, np.arange(30), tiny_processor.feature_extractor)
        batches = CellBatches(ranked, np.arange(30), 4)
        seen = [int(cell) for batch in batches.shuffled(np.random.default_rng(0), 0.0) for cell in batch["truth"]]
        assert sorted(seen) == list(range(30))


class TestAdapt:
    @pytest.mark.long
    @pytest.mark.parametrize(
        "how",
        [
            {},
            {"adapt_texts": True},
            {"method": "full", "learning_rate": 5e-4},
            {"method": "frozen", "learning_rate": 1e-2},
            {"head": "classes"},
            {"head": "classes", "method": "full", "learning_rate": 5e-4},
            {"head": "classes", "method": "frozen", "learning_rate": 2e-2},
            {"head": "prototypes"},
        ],
        ids=str,
    )
    def test_it_learns_and_loads_from_its_folder(self, swapped, tmp_path, how):
        adapted = adapt(MINI, swapped, "swapped", shots=8, config=AdaptationConfig(**{**QUICK, **how}), **CELL_OPTIONS)
        expected = adapted.annotator().annotate(swapped.copy(), **CELL_OPTIONS)
        assert accuracy(expected) > 0.9
        folder = adapted.save(tmp_path / "new" / "adapted")
        assert not list(folder.glob("*.bin")), "safetensors alone"
        whole = (folder / "config.json").exists()
        assert whole == (how.get("method") in ("full", "frozen"))
        if not whole:
            assert sum(path.stat().st_size for path in folder.rglob("*")) < 10e6
            assert adapted.trained_share < 0.05
        source = {"checkpoint": folder} if whole else {"adapter": folder}
        again = LangCellAnnotator.from_pretrained(**source).annotate(swapped.copy(), **CELL_OPTIONS)
        found, said = (adata.obsm["langcell_probabilities"] for adata in (again, expected))
        np.testing.assert_allclose(found, said, atol=2e-4)
        assert list(found.columns) == sorted(SWAPPED.values())
        assert not (folder / "README.md").exists()
        np.testing.assert_allclose(again.obsm["X_langcell"], expected.obsm["X_langcell"], atol=1e-5)

    @pytest.mark.long
    def test_matching_is_trained_if_asked_for(self, swapped, tmp_path):
        config = AdaptationConfig(**{**QUICK, "matching": True, "epochs": 3, "gene_dropout": 0.0})
        adapted = adapt(MINI, swapped, "swapped", shots=4, config=config, **CELL_OPTIONS)
        assert adapted.losses[-1] < adapted.losses[0]
        expected = adapted.annotator().annotate(swapped[::5].copy(), **CELL_OPTIONS)
        assert expected.uns["langcell"]["alpha"] == 0.5
        folder = adapted.save(tmp_path / "adapted")
        again = LangCellAnnotator.from_pretrained(adapter=folder).annotate(swapped[::5].copy(), **CELL_OPTIONS)
        found, said = (adata.obsm["langcell_probabilities"] for adata in (again, expected))
        np.testing.assert_allclose(found, said, atol=2e-4)

    def test_the_same_seed_gives_the_same_weights(self, labelled, tiny_checkpoint):
        config = AdaptationConfig(epochs=2, gene_dropout=0.5, seed=3)
        one, two = (adapt(tiny_checkpoint, labelled, "type", shots=2, config=config) for _ in range(2))
        for (name, first), second in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
            assert torch.equal(first, second), name

    def test_the_best_weights_are_kept_and_training_ends_early(self, labelled, tiny_checkpoint):
        config = AdaptationConfig(
            head="classes", epochs=60, learning_rate=0.3, gene_dropout=0.0, held_out=0.3, patience=2
        )
        adapted = adapt(tiny_checkpoint, labelled, "type", config=config)
        assert len(adapted.losses) < 60
        assert len(adapted.losses) == int(np.argmin(adapted.losses)) + 3
        _, watched = read_labels(labelled, "type").held_out(0.3, config.seed)
        cells = adapted.annotator().annotate(labelled[watched.rows].copy())
        said = cells.obsm["langcell_probabilities"].to_numpy()[np.arange(len(watched)), watched.truth]
        assert -np.log(said).mean() == pytest.approx(min(adapted.losses), abs=1e-4)

    @pytest.mark.long
    def test_several_labels_per_cell(self, swapped, tmp_path):
        config = AdaptationConfig(**{**QUICK, "head": "classes", "balanced": True})
        adapt(MINI, swapped, "pathways", config=config, **CELL_OPTIONS).save(tmp_path / "adapted")
        annotator = LangCellAnnotator.from_pretrained(adapter=tmp_path / "adapted")
        said = annotator.annotate(swapped.copy(), **CELL_OPTIONS).obsm["langcell_probabilities"] > 0.5
        assert (said.to_numpy() == swapped.obsm["pathways"].to_numpy()).mean() > 0.9

    def test_the_command_embeds_with_an_adapter(self, labelled, tiny_checkpoint, tmp_path):
        adapt(tiny_checkpoint, labelled, "type", config=AdaptationConfig(epochs=1)).save(tmp_path / "adapter")
        expected = LangCellAnnotator.from_pretrained(adapter=tmp_path / "adapter").embed(labelled.copy())
        labelled.write_h5ad(tmp_path / "cells.h5ad")
        command = ["embed", tmp_path / "cells.h5ad", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out.h5ad"]
        assert CliRunner().invoke(app, list(map(str, command))).exit_code == 0
        found = ad.read_h5ad(tmp_path / "out.h5ad")
        np.testing.assert_allclose(found.obsm["X_langcell"], expected.obsm["X_langcell"], atol=1e-5)
        plain = LangCellAnnotator.from_pretrained(tiny_checkpoint).embed(labelled.copy())
        assert np.abs(plain.obsm["X_langcell"] - expected.obsm["X_langcell"]).max() > 1e-3

    def test_own_descriptions_are_used_and_saved(self, labelled, tiny_checkpoint, tmp_path):
        cells = labelled.copy()
        cells.obs["mine"] = cells.obs["type"].astype(str).replace({"B cell": "cluster 7"})
        config = AdaptationConfig(epochs=2, matching=False)
        with pytest.raises(InputError, match="cluster 7"):
            adapt(tiny_checkpoint, cells, "mine", config=config)
        own = {"cluster 7": "cell type: a lymphocyte that is mine"}
        adapt(tiny_checkpoint, cells, "mine", descriptions=own, config=config).save(tmp_path / "adapted")
        run = LangCellAnnotator.from_pretrained(adapter=tmp_path / "adapted").annotate(cells).uns["langcell"]
        assert own["cluster 7"] in run["descriptions"]
        assert run["adapter"] == str(tmp_path / "adapted")

    def test_an_adapted_checkpoint_still_accepts_other_candidates(self, labelled, tiny_checkpoint):
        adapted = adapt(tiny_checkpoint, labelled, "type", config=AdaptationConfig(epochs=1, matching=False))
        found = adapted.annotator().annotate(labelled.copy(), ["T cell", "monocyte"])
        assert list(found.obsm["langcell_probabilities"].columns) == ["T cell", "monocyte"]

    def test_lora_adapts_the_documented_modules(self, labelled, tiny_checkpoint):
        config = AdaptationConfig(epochs=1, matching=False, adapt_texts=True)
        adapted = adapt(tiny_checkpoint, labelled, "type", shots=1, config=config)
        trained = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
        for part in ("cell_model.embeddings.word_embeddings", "cell_projection", "text_projection"):
            assert any(part in name for name in trained), part
        for part in (
            "cell_model.encoder.layer.1.attention.self.query",
            "text_model.encoder.layer.2.attention.self.value",
        ):
            assert any(part in name for name in trained), part
        assert not any("crossattention" in name or "matching_head" in name for name in trained), "no matching"


#: Process with transformers and peft alone.
SESSION = """
import json, sys
from pathlib import Path


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_langcell", "anndata", "cellxgene_ontology_guide"):
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NotInstalled())
import scipy.sparse as sp
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor

base, adapter, here = sys.argv[1], sys.argv[2], Path(sys.argv[3])
adaptation = json.loads((Path(adapter) / "adaptation.json").read_text())
processor = AutoProcessor.from_pretrained(base, trust_remote_code=True)
counts, genes = sp.load_npz(here / "counts.npz"), json.loads((here / "genes.json").read_text())
if adaptation["head"] == "classes":
    config = AutoConfig.from_pretrained(base, trust_remote_code=True).cell_config
    config.num_labels = len(adaptation["labels"])
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config, trust_remote_code=True)
    batch = dict(processor.feature_extractor(counts, gene_ids=genes, return_tensors="pt"))
    batch = {"input_ids": batch["cell_input_ids"], "attention_mask": batch["cell_attention_mask"]}
else:
    model = AutoModel.from_pretrained(base, trust_remote_code=True)
    batch = processor(
        cells=counts, gene_ids=genes, text=list(adaptation["labels"].values()), return_tensors="pt"
    )
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    out = model(**batch)
logits = out.logits if adaptation["head"] == "classes" else out.logits_per_cell
save_file({"probabilities": logits.softmax(dim=1)}, here / "found.safetensors")
"""


@pytest.mark.long
@pytest.mark.parametrize("head", ["descriptions", "classes"])
def test_transformers_and_peft_alone_predict_the_same(labelled, tiny_checkpoint, tmp_path, head):
    from safetensors.torch import load_file

    config = AdaptationConfig(head=head, epochs=4, learning_rate=1e-2, matching=False)
    adapted = adapt(tiny_checkpoint, labelled, "type", config=config)
    adapted.save(tmp_path / "adapter")
    expected = adapted.annotator().annotate(labelled.copy()).obsm["langcell_probabilities"].to_numpy()
    sp.save_npz(tmp_path / "counts.npz", labelled.X)
    (tmp_path / "genes.json").write_text(json.dumps(GENES))
    arguments = (tiny_checkpoint, tmp_path / "adapter", tmp_path)
    done = run_without_the_package("-c", SESSION, *arguments, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")["probabilities"].numpy()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def change_labels(label_of_row):
    def change(cells: ad.AnnData) -> None:
        cells.obs["type"] = [label_of_row(row) for row in range(cells.n_obs)]

    return change


class TestBadInput:
    @pytest.fixture
    def run(self, labelled, tiny_checkpoint, tmp_path):
        def invoke(change, *options):
            cells = labelled.copy()
            change(cells)
            cells.write_h5ad(tmp_path / "cells.h5ad")
            out = tmp_path / "out" / "adapter"
            arguments = ["adapt", tmp_path / "cells.h5ad", "--model", tiny_checkpoint, "--out", out]
            result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--epochs", "1", *options)])
            return result, out

        return invoke

    @pytest.mark.parametrize(
        ("change", "options", "said"),
        [
            (lambda cells: None, ("--label-key", "kind"), "No column 'kind' in obs"),
            (
                lambda cells: None,
                ("--label-key", "type", "--shots", "11"),
                "Fewer than 11 cells have the label 'B cell'",
            ),
            (change_labels(lambda row: "B cell"), ("--label-key", "type"), "holds 1 label"),
            (
                change_labels(lambda row: np.nan if row == 4 else f"t{row % 2}"),
                ("--label-key", "type"),
                "1 of 30 cells have no label",
            ),
            (change_labels(lambda row: f"cluster {row % 3}"), ("--label-key", "type"), "does not know 'cluster 0'"),
            (lambda cells: None, ("--label-key", "pathways"), "needs the head 'classes'"),
            (lambda cells: None, ("--label-key", "type", "--method", "some"), "Invalid value for '--method'"),
            (lambda cells: None, ("--label-key", "type", "--held-out", "0.99"), "cannot be held out"),
        ],
    )
    def test_one_clear_message_and_nothing_written(self, run, change, options, said):
        result, out = run(change, *options)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.stderr.split())
        assert "Traceback" not in result.output
        assert not out.parent.exists()

    def test_a_folder_in_use_is_left_alone(self, run, tmp_path):
        out = tmp_path / "out" / "adapter"
        out.mkdir(parents=True)
        (out / "mine.txt").write_text("mine")
        result, _ = run(lambda cells: None, "--label-key", "type")
        assert result.exit_code == 2
        assert [path.name for path in out.iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--device", "nowhere"), "The device 'nowhere' cannot be used"),
            (("--seed", "-1"), "must not be below 0"),
            (("--learning-rate", "-1"), "must be above 0"),
            (("--balanced",), "balanced is for the head 'classes'"),
            (("--head", "classes", "--adapt-texts"), "adapt_texts is for the head 'descriptions'"),
            (("--head", "prototypes", "--held-out", "0.5"), "prototypes are not"),
        ],
    )
    def test_options_that_are_invalid_or_unused(self, run, options, said):
        result, out = run(lambda cells: None, "--label-key", "type", *options)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.stderr.split())
        assert not out.parent.exists()

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            ({"a": ["yes"] * 30, "b": ["no"] * 30}, "must hold true or false for each label"),
            ({"a": [True, False] * 15, "b": [False] * 30}, "no cell has 'b'"),
            ({"a": [True, False] * 15, "b": [True] * 30}, "every cell has 'b'"),
        ],
    )
    def test_tables_that_nothing_can_be_learnt_from(self, labelled, table, said):
        labelled.obsm["sets"] = pd.DataFrame(table, index=labelled.obs_names)
        with pytest.raises(InputError, match=said):
            read_labels(labelled, "sets")

    def test_two_names_for_one_type(self, run, caplog):
        change = change_labels(lambda row: ("NK cell", "natural killer cell")[row % 2])
        result, _ = run(change, "--label-key", "type")
        assert result.exit_code == 2
        assert "have the same description" in " ".join(result.stderr.split())
        result, _ = run(change, "--label-key", "type", "--head", "classes", "--epochs", 1)
        assert result.exit_code == 0
        assert "'NK cell' and 'natural killer cell' are names of one type, but two classes here" in caplog.text

    def test_a_folder_that_cannot_be_written_is_refused_before_training(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("modeling_langcell.adaptation.adapt.fit", lambda *_, **__: pytest.fail("it was trained"))
        (tmp_path / "out").write_text("mine")
        result, _ = run(lambda cells: None, "--label-key", "type")
        assert result.exit_code == 2, result.output
        assert "cannot be written" in " ".join(result.stderr.split())

    @pytest.mark.parametrize("head", ["descriptions", "classes", "prototypes"])
    def test_an_incomplete_adapter_or_one_of_other_weights_is_refused(self, labelled, tiny_checkpoint, tmp_path, head):
        adapted = adapt(tiny_checkpoint, labelled, "type", config=AdaptationConfig(head=head, epochs=1))
        adapter = adapted.save(tmp_path / "adapter")
        torch.manual_seed(9)
        other = tmp_path / "other"
        LangCellModel(tiny_config()).save_pretrained(other)
        adapted.processor.save_pretrained(other)
        with pytest.raises(InputError, match="has different weights"):
            LangCellAnnotator.from_pretrained(other, adapter=adapter)
        files = [path for path in adapter.iterdir() if path.suffix == ".safetensors" or "adapter_config" in path.name]
        assert files
        for path in files:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(InputError, match=r"cannot be read|is damaged|does not fit"):
                LangCellAnnotator.from_pretrained(tiny_checkpoint, adapter=adapter)
            path.unlink()
            with pytest.raises(InputError, match=f"no {path.name}"):
                LangCellAnnotator.from_pretrained(tiny_checkpoint, adapter=adapter)
            path.write_bytes(whole)
        LangCellAnnotator.from_pretrained(tiny_checkpoint, adapter=adapter)

    def test_a_folder_without_an_adapter(self, labelled, tmp_path):
        with pytest.raises(InputError, match=r"adaptation\.json"):
            LangCellAnnotator.from_pretrained(adapter=tmp_path)


@pytest.mark.long
def test_an_adapter_of_the_shipped_checkpoint_names_it_without_a_path(tmp_path):
    """It holds no path of this machine, and loads without one."""
    adata = load_example()[:60].copy()
    adata.obs["type"] = ["B cell", "T cell"] * 30
    adapter = tmp_path / "adapter"
    config = AdaptationConfig(epochs=1)
    made = adapt(REPOSITORY / "hub_configs" / "langcell-mini", adata, "type", config=config, **CELL_OPTIONS)
    made.save(adapter)
    for path in adapter.iterdir():
        assert str(REPOSITORY).encode() not in path.read_bytes(), path.name
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "langcell-mini"
    expected, found = (
        annotator.annotate(adata.copy(), **CELL_OPTIONS).obsm["langcell_probabilities"].to_numpy()
        for annotator in (made.annotator(), LangCellAnnotator.from_pretrained(adapter=adapter))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    out = tmp_path / "example.h5ad"
    result = CliRunner().invoke(app, ["annotate", "--example", "--adapter", str(adapter), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert set(ad.read_h5ad(out).uns["langcell"]["labels"]) == {"B cell", "T cell"}


@pytest.mark.long
def test_the_command_adapts_and_annotates(swapped, tmp_path):
    cells, out = tmp_path / "cells.h5ad", tmp_path / "annotated.h5ad"
    swapped.write_h5ad(cells)
    reading = ("--use-raw", "--counts", "log1p")

    def run(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *reading)])
        assert done.exit_code == 0, done.output
        return done.output

    learning = ("--shots", "8", "--epochs", "8", "--learning-rate", "2e-3")
    said = run("adapt", cells, "--label-key", "swapped", *learning, "--out", tmp_path / "adapter")
    assert "8  monocyte" in said
    report = tmp_path / "report.html"
    asked = ("--adapter", tmp_path / "adapter", "--out", out, "--reference", "swapped", "--report", report)
    assert "Accuracy against swapped: 1.0" in run("annotate", cells, *asked)
    assert accuracy(ad.read_h5ad(out)) > 0.9
    assert str(tmp_path / "adapter") in report.read_text()


class TestMarkers:
    """An adapter keeps the genes of its labels, and weighs them less the more cells it has learnt from."""

    DESCRIPTIONS = {
        name: {"markers": [*GENES[10 * number : 10 * number + 3]], "absent": [GENES[10 * ((number + 1) % 3)]]}
        for number, name in enumerate(TYPES.values())
    }

    @pytest.fixture(scope="class")
    def weighing_checkpoint(self, tiny_checkpoint, tmp_path_factory):
        folder = tmp_path_factory.mktemp("weighing") / "model"
        shutil.copytree(tiny_checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"marker_weight": 6.0}))
        return folder

    @pytest.mark.parametrize("head", ["prototypes", "descriptions"])
    def test_a_saved_adapter_scores_with_its_genes(self, weighing_checkpoint, labelled, tmp_path, head):
        config = AdaptationConfig(head=head, epochs=1)
        how = {"descriptions": self.DESCRIPTIONS, "config": config, "device": "cpu"}
        adapted = adapt(weighing_checkpoint, labelled, "type", **how)
        assert adapted.adaptation.genes == self.DESCRIPTIONS
        adapted.save(tmp_path / "adapter")
        annotator = LangCellAnnotator.from_pretrained(weighing_checkpoint, adapter=tmp_path / "adapter", device="cpu")
        scores = annotator.annotate(labelled.copy()).obsm["langcell_probabilities"]
        pd.testing.assert_frame_equal(
            scores, adapted.annotator(device="cpu").annotate(labelled.copy()).obsm["langcell_probabilities"]
        )
        without = annotator.annotate(labelled.copy(), with_markers=False).obsm["langcell_probabilities"]
        assert without.to_numpy() == pytest.approx(
            annotator.annotate(labelled.copy(), marker_weight=0).obsm["langcell_probabilities"].to_numpy()
        )
        truth = pd.Categorical(labelled.obs["type"], categories=scores.columns).codes
        cells = np.arange(len(truth))
        assert scores.to_numpy()[cells, truth].mean() > without.to_numpy()[cells, truth].mean()

    def test_cells_to_learn_from_take_the_weight_of_markers(self, weighing_checkpoint, labelled):
        def weight(shots, **settings):
            config = AdaptationConfig(epochs=1, **settings)
            return adapt(weighing_checkpoint, labelled, "type", shots=shots, config=config).adaptation.marker_weight

        assert [weight(1), weight(3)] == [3.0, 1.5]
        assert weight(3, head="prototypes") == 6, "prototypes leave the descriptions less weight themselves"
        assert weight(3, marker_weight=2.0) == 2
        assert weight(3, head="classes") == 0

    def test_adapters_without_genes_are_read(self, weighing_checkpoint, labelled, tmp_path):
        adapt(weighing_checkpoint, labelled, "type", config=AdaptationConfig(head="prototypes")).save(tmp_path / "new")
        record = json.loads((tmp_path / "new" / "adaptation.json").read_text())
        older = {name: value for name, value in record.items() if name not in ("genes", "marker_weight")}
        (tmp_path / "new" / "adaptation.json").write_text(json.dumps(older))
        annotator = LangCellAnnotator.from_pretrained(weighing_checkpoint, adapter=tmp_path / "new", device="cpu")
        assert "marker_weight" not in annotator.annotate(labelled.copy()).uns["langcell"]

    @pytest.mark.parametrize("genes", [{"B cell": []}, {"B cell": {"markers": "MS4A1", "absent": []}}, {"B cell": {}}])
    def test_damaged_genes_are_refused(self, weighing_checkpoint, labelled, tmp_path, genes):
        adapt(weighing_checkpoint, labelled, "type", config=AdaptationConfig(head="prototypes")).save(tmp_path / "new")
        record = json.loads((tmp_path / "new" / "adaptation.json").read_text())
        (tmp_path / "new" / "adaptation.json").write_text(json.dumps(record | {"genes": genes}))
        with pytest.raises(InputError, match="cannot be read"):
            LangCellAnnotator.from_pretrained(weighing_checkpoint, adapter=tmp_path / "new", device="cpu")

    def test_settings_that_do_not_fit(self, weighing_checkpoint, labelled):
        with pytest.raises(InputError, match="not for the head 'classes'"):
            AdaptationConfig(head="classes", marker_weight=1)
        with pytest.raises(InputError, match="is not a weight"):
            AdaptationConfig(marker_weight=-1)
        with pytest.raises(InputError, match="'B cell' has several"):
            adapt(weighing_checkpoint, labelled, "type", descriptions={"B cell": ["one", "two"]})
