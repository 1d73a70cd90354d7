# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training from files to a checkpoint that annotates, on three tiny studies and a tiny sentence encoder."""

import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
import torch
import yaml
from torch.optim.swa_utils import AveragedModel
from transformers import BertModel

from modeling_langcell import InputError, LangCellAnnotator, LangCellModel
from modeling_langcell.batches import FrozenTexts
from modeling_langcell.corpus import Corpus
from modeling_langcell.gene_vocabulary import read_gene_info
from modeling_langcell.pretraining import pretrain
from modeling_langcell.pretraining_config import PretrainingConfig
from modeling_langcell.tower_starts import start_model, start_text_projection

from .conftest import REPOSITORY, TYPES


def started(settings):
    """The model and processor that a run would train."""
    return start_model(PretrainingConfig(**settings), Corpus(settings["corpus"]).gene_vocabulary)


def test_gene_info_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match="gene_info"):
        read_gene_info(tmp_path / "table.tsv")
    with pytest.raises(InputError, match="No gene_info"):
        read_gene_info(tmp_path / "absent")


def test_the_text_tower_reads_as_the_encoder_it_started_from(tiny_studies, settings):
    model, processor = started(settings)
    bert = BertModel.from_pretrained(tiny_studies / "encoder", add_pooling_layer=False).eval()
    batch = processor(text=["b cell", "natural killer cell type"], return_tensors="pt")
    with torch.no_grad():
        ours = model.eval().text_model(**batch).last_hidden_state
        theirs = bert(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)


def test_gene_embeddings_start_from_names(settings):
    model, _ = started(settings)
    other, _ = started(settings)
    plain, _ = started(settings | {"gene_names_from": None})
    weight, again, random = (m.cell_model.get_input_embeddings().weight for m in (model, other, plain))
    torch.testing.assert_close(weight[2:-1], again[2:-1], atol=1e-4, rtol=0)
    assert not torch.allclose(weight[2:-1], random[2:-1], atol=1e-3)


def test_a_tower_that_starts_as_an_average_of_its_genes(settings):
    """Its `<cls>` state follows the mean of the cell's gene states, which that of a random start hardly does."""
    ids = torch.randint(2, 40, (20, 30))

    def agreement(**overrides):
        model, _ = started(settings | {"gene_names_from": None} | overrides)
        tower = model.cell_model.eval()
        with torch.no_grad():
            states, pooled = tower.embeddings(ids).mean(dim=1), tower(ids).pooler_output
        distances = torch.stack([torch.pdist(states), torch.pdist(pooled)])
        return torch.corrcoef(distances)[0, 1].item(), torch.pdist(pooled).mean().item()

    ids[:, 0] = 42
    (follows, apart), (_, hardly_apart) = agreement(gene_average_start=True), agreement()
    assert follows > 0.7
    assert apart > 3 * hardly_apart


def test_a_frozen_tower_reads_every_wording_once(settings):
    model, processor = started(settings)
    frozen = FrozenTexts(model.eval(), processor, max_tokens=16)
    read = []
    model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    pooled = frozen(["b cell", "t cell"])
    again = frozen(["t cell", "monocyte", "b cell"])
    assert read == [1, 1, 1]
    assert torch.equal(again[[2, 0]], pooled)
    assert torch.equal(FrozenTexts(model, processor, max_tokens=16)(["t cell"])[0], pooled[1]), (
        "whatever was read before"
    )
    batch = processor(text=["monocyte"], return_tensors="pt")
    torch.testing.assert_close(again[1], model.text_model(**batch).pooler_output[0], atol=1e-5, rtol=0)


def test_the_text_projection_starts_from_what_sets_texts_apart(settings):
    settings["model"]["projection_dim"] = 24
    model, _ = started(settings)
    pooled = torch.randn(40, 24) * torch.linspace(0.1, 2, 24) + 5
    start_text_projection(model, pooled)
    projected = model.text_projection(pooled)
    torch.testing.assert_close(projected.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(projected.norm(dim=1).mean(), torch.tensor(1.0))
    ratio = torch.pdist(projected) / torch.pdist(pooled)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_what_is_saved_is_the_average(settings, monkeypatch):
    seen = []
    update = AveragedModel.update_parameters

    def remember(averaged, model):
        update(averaged, model)
        seen.append(model.cell_projection.weight.detach().clone())

    monkeypatch.setattr(AveragedModel, "update_parameters", remember)
    output = pretrain(PretrainingConfig(**settings | {"steps": 3, "averaging": 0.75}))
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.75 * expected + 0.25 * weight
    assert not torch.allclose(expected, seen[-1])
    torch.testing.assert_close(LangCellModel.from_pretrained(output).cell_projection.weight.data, expected)


def test_a_frozen_text_projection_stays(settings, tmp_path):
    settings |= {"train_text_projection": False, "train_text_tower": False, "steps": 2}
    first = LangCellModel.from_pretrained(pretrain(PretrainingConfig(**settings)))
    more = settings | {"learning_rate": 0.1, "output": str(tmp_path / "more")}
    second = LangCellModel.from_pretrained(pretrain(PretrainingConfig(**more)))
    assert torch.equal(first.text_projection.weight, second.text_projection.weight)
    assert not torch.equal(first.cell_projection.weight, second.cell_projection.weight)


def test_a_run_learns_and_its_checkpoint_annotates(settings, tiny_studies):
    settings |= {"steps": 300, "train_text_tower": False, "gene_dropout": 0.1, "ancestor_share": 0.0}
    settings["saved_dtype"] = "float16"
    settings["model"] |= {"masked_gene_weight": 0, "cell_cell_weight": 0, "matching_weight": 0}
    output = pretrain(PretrainingConfig(**settings))
    losses = [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in losses] == list(range(1, 301))
    text_loss = [entry["cell_text_loss"] for entry in losses]
    assert np.mean(text_loss[-10:]) < 0.5 * np.mean(text_loss[:5])
    (run,) = json.loads((output / "training.json").read_text())["runs"]
    assert run["config"]["steps"] == 300

    annotator = LangCellAnnotator.from_pretrained(output)
    assert type(annotator.model) is LangCellModel
    held_out = ad.read_h5ad(tiny_studies / "train" / "study0.h5ad")
    held_out = held_out[held_out.obs["cell_type_ontology_term_id"].isin(list(TYPES)).to_numpy()].copy()
    annotator.annotate(held_out, list(TYPES.values()), alpha=1.0)
    truth = held_out.obs["cell_type_ontology_term_id"].map(TYPES).astype(str)
    assert (held_out.obs["langcell_cell_type"].astype(str) == truth).mean() > 0.7


def test_a_second_run_goes_on_from_the_first(settings, tmp_path):
    first = pretrain(PretrainingConfig(**settings))
    more = settings | {"start": str(first), "output": str(tmp_path / "more"), "train_text_tower": False}
    more |= {"train_cell_tower": False, "model": {"matching_weight": 0.5}}
    second = pretrain(PretrainingConfig(**more))
    before, after = LangCellModel.from_pretrained(first), LangCellModel.from_pretrained(second)
    assert after.config.matching_weight == 0.5
    runs = json.loads((second / "training.json").read_text())["runs"]
    assert [run["config"]["start"] for run in runs] == [None, str(first)]
    changed = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    assert changed, "something is trained"
    assert not [name for name in changed if name.startswith("cell_model.")]
    assert not [name for name in changed if name.startswith("text_model.") and ".crossattention." not in name]


@pytest.mark.parametrize(
    ("values", "overrides", "says"),
    [
        ({"corpus": "x"}, [], "output must be set"),
        ({"corpus": "x", "output": "y", "stepz": 3}, [], "unknown field"),
        ({"corpus": "x", "output": "y", "steps": "many"}, [], "steps must be a whole number"),
        ({"corpus": "x", "output": "y", "steps": 1.5}, [], "steps must be a whole number"),
        ({"corpus": "x", "output": "y", "learning_rate": "fast"}, [], "learning_rate must be a number"),
        ({"corpus": "x", "output": "y", "compile": 1}, [], "compile must be true or false"),
        ({"corpus": "x", "output": "y", "schedule": "flat"}, [], "schedule must be one of cosine, linear"),
        ({"corpus": "x", "output": "y", "accumulation": 0}, [], "accumulation must be at least 1"),
        ({"corpus": "x", "output": "y", "weight_decay": -1}, [], "weight_decay must be at least 0"),
        ({"corpus": "x", "output": "y", "panel_share": 1.5}, [], "panel_share must be between 0 and 1"),
        ({"corpus": "x", "output": "y"}, ["steps"], "key=value"),
        ({"corpus": "x", "output": "y"}, [], "holds no corpus"),
    ],
)
def test_train_py_refuses_bad_configurations(tmp_path, values, overrides, says):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=says):
        pretrain(PretrainingConfig.from_yaml(tmp_path / "c.yaml", overrides))


def test_overrides_reach_into_the_model(tmp_path):
    (tmp_path / "c.yaml").write_text("corpus: a\noutput: b\nmodel: {temperature: 0.1}\n")
    config = PretrainingConfig.from_yaml(tmp_path / "c.yaml", ["steps=7", "model.temperature=0.07"])
    assert (config.steps, config.model["temperature"]) == (7, 0.07)


def test_train_py_as_a_process(settings, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    script = str(REPOSITORY / "train.py")
    run = subprocess.run([sys.executable, script, str(tmp_path / "c.yaml"), "steps=2"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"Checkpoint: {settings['output']}" in run.stdout
    run = subprocess.run([sys.executable, script, str(tmp_path / "no.yaml")], capture_output=True, text=True)
    assert run.returncode == 2
    assert "No configuration" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_shipped_configurations_are_readable():
    for path in sorted((REPOSITORY / "hub_configs" / "pretraining").glob("*.yaml")):
        PretrainingConfig.from_yaml(path)
