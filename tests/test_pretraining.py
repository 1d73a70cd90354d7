# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training from files to a checkpoint that annotates, on three tiny studies and a tiny sentence encoder."""

import gzip
import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import yaml
from torch.optim.swa_utils import AveragedModel
from transformers import BertConfig, BertModel, BertTokenizer

from modeling_langcell import InputError, LangCellAnnotator, LangCellModel
from modeling_langcell.batches import CellTextBatches, FrozenTexts
from modeling_langcell.corpus import Corpus, CorpusSettings, make_corpus
from modeling_langcell.gene_vocabulary import read_gene_info
from modeling_langcell.pretraining import PretrainingConfig, pretrain
from modeling_langcell.sources import find_sources
from modeling_langcell.tower_starts import start_model, start_text_projection

from .conftest import GENES, REPOSITORY, SYMBOLS, WORDS

TYPES = {"CL:0000236": "B cell", "CL:0000623": "natural killer cell", "CL:0000576": "monocyte"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of three studies in which a type's genes are expressed tenfold, and a random sentence encoder."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for study in range(3):
        term_ids = np.array([*TYPES, "unknown"])[rng.integers(0, 4, 40)]
        rates = np.full((40, len(GENES)), 0.5)
        for number, term_id in enumerate(TYPES):
            rates[term_ids == term_id, 10 * number : 10 * number + 10] *= 10
        obs = pd.DataFrame({"cell_type_ontology_term_id": term_ids}, index=[f"s{study}c{row}" for row in range(40)])
        counts = sp.csr_matrix(rng.poisson(rates).astype(np.float32))
        (folder / "train").mkdir(exist_ok=True)
        ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(folder / "train" / f"study{study}.h5ad")
    lines = ["#tax_id\tSymbol\tSynonyms\tdbXrefs\tdescription"]
    lines += [f"9606\t{s}\t-\tHGNC:1|Ensembl:{g}\t{s} protein" for g, s in zip(GENES, SYMBOLS, strict=True)]
    with gzip.open(folder / "gene_info.gz", "wt") as table:
        table.write("\n".join(lines) + "\n")
    encoder = folder / "encoder"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(encoder)
    (encoder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(encoder / "vocab.txt")).save_pretrained(encoder)
    settings = CorpusSettings(str(folder / "gene_info.gz"), min_cells=1, chunk_cells=32)
    make_corpus(find_sources([str(folder / "train")]), folder / "corpus", settings)
    return folder


@pytest.fixture
def settings(folder, tmp_path):
    return {
        "corpus": str(folder / "corpus"),
        "gene_names_from": str(folder / "gene_info.gz"),
        "text_tower": str(folder / "encoder"),
        "output": str(tmp_path / "run"),
        "max_genes": 32,
        "batch_size": 16,
        "steps": 4,
        "warmup_steps": 1,
        "learning_rate": 3e-3,
        "model": {
            "cell_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            },
            "text_config": {"pooling": "mean"},
            "projection_dim": 8,
        },
    }


def started(settings):
    """The model and processor that a run would train."""
    return start_model(PretrainingConfig(**settings), Corpus(settings["corpus"]).gene_vocabulary)


def test_gene_info_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match="gene_info"):
        read_gene_info(tmp_path / "table.tsv")
    with pytest.raises(InputError, match="No gene_info"):
        read_gene_info(tmp_path / "absent")


def test_the_text_tower_reads_as_the_encoder_it_started_from(folder, settings):
    model, processor = started(settings)
    bert = BertModel.from_pretrained(folder / "encoder", add_pooling_layer=False).eval()
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


class TestBatches:
    @pytest.fixture
    def batches(self, settings):
        config = PretrainingConfig(**settings)
        _, processor = started(settings)
        return CellTextBatches(Corpus(settings["corpus"]), processor, config)

    def test_unknown_cells_are_left_out(self, batches):
        assert set(batches.term_ids) == set(TYPES)
        assert len(batches.labelled) == len(batches.term_ids) < len(batches.corpus)

    def test_texts_are_distinct_and_own_texts_never_neutral(self, batches):
        for _, batch in zip(range(20), batches, strict=False):
            cells, texts = batch["neutral"].shape
            assert batch["cell_input_ids"].shape[0] == cells == 16
            assert batch["input_ids"].shape[0] == texts == len(torch.unique(batch["text_index"]))
            assert not batch["neutral"][torch.arange(cells), batch["text_index"]].any()

    def test_an_ancestor_is_neutral_and_a_stranger_is_not(self, batches, monkeypatch):
        rows = np.array(
            [int(np.flatnonzero(batches.term_ids == term)[0]) for term in ("CL:0000236", "CL:0000236", "CL:0000576")]
        )
        drawn = iter(["CL:0000236", "CL:0000542", "CL:0000576"])  # B cell; again, as lymphocyte; monocyte
        monkeypatch.setattr(batches, "_describing_term", lambda _: next(drawn))
        batch = batches.batch(rows)
        terms = sorted({"CL:0000236", "CL:0000542", "CL:0000576"})
        b_cell, lymphocyte, monocyte = (terms.index(t) for t in ("CL:0000236", "CL:0000542", "CL:0000576"))
        assert batch["text_index"].tolist() == [b_cell, lymphocyte, monocyte]
        assert batch["neutral"][0].tolist() == [t == lymphocyte for t in range(3)]
        assert batch["neutral"][1].tolist() == [t == b_cell for t in range(3)]
        assert not batch["neutral"][2].any()

    def test_gene_dropout_keeps_the_order_and_cls(self, batches):
        ids, mask = batches._cells(np.arange(10))
        lengths = []
        for row in range(10):
            whole = batches.corpus.token_ids(batches.labelled[[row]])[0].tolist()
            seen = ids[row][mask[row] == 1].tolist()
            assert seen[0] == whole[0] == batches.processor.feature_extractor.cls_token_id
            position = iter(whole)
            assert all(gene in position for gene in seen), "what is left stands in its old order"
            lengths.append(len(seen) / len(whole))
        assert min(lengths) < 0.9

    def test_a_cell_on_another_panel_shows_only_its_genes(self, settings, batches):
        config = PretrainingConfig(**settings | {"panel_share": 1.0, "gene_dropout": 0.0, "max_genes": 64})
        half = np.arange(2, 2 + len(GENES) // 2)
        twin = CellTextBatches(batches.corpus, batches.processor, config)
        twin.measured = np.isin(np.arange(43), half)[None]
        assert not np.isin(twin._cells(np.arange(5))[0][:, 1:], half).all(), "too few genes left: shown whole"
        twin.fewest_genes = 1
        ids, mask = twin._cells(np.arange(5))
        assert np.isin(ids[:, 1:][mask[:, 1:] == 1], half).all()
        assert mask.sum() > 5

    def test_siblings_are_wrong_for_every_cell(self, settings, batches):
        config = PretrainingConfig(**settings | {"sibling_texts": 3, "ancestor_share": 0.0})
        batches = CellTextBatches(batches.corpus, batches.processor, config)
        for _, batch in zip(range(10), batches, strict=False):
            own = torch.unique(batch["text_index"])
            extra = len(batch["wordings"]) - len(own)
            assert own.tolist() == list(range(len(own))), "texts of the batch's cells come first"
            assert 0 < extra <= 3
            assert not batch["neutral"][:, len(own) :].all(dim=0).any()

    def test_wordings_are_all_that_a_batch_can_say(self, settings, batches):
        said = {wording for _, batch in zip(range(20), batches, strict=False) for wording in batch["wordings"]}
        assert said <= set(batches.wordings)

    def test_the_same_seed_draws_the_same(self, settings, batches):
        config = PretrainingConfig(**settings)
        twin = CellTextBatches(batches.corpus, batches.processor, config)
        first, second = next(iter(batches)), next(iter(twin))
        assert first.pop("wordings") == second.pop("wordings")
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_frozen_tower_reads_every_wording_once(settings):
    model, processor = started(settings)
    frozen = FrozenTexts(model.eval(), processor, max_tokens=16)
    read = []
    model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    pooled = frozen(["b cell", "t cell"])
    again = frozen(["t cell", "monocyte", "b cell"])
    assert read == [2, 1]
    assert torch.equal(again[[2, 0]], pooled)
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


def test_a_run_learns_and_its_checkpoint_annotates(settings, folder):
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
    held_out = ad.read_h5ad(folder / "train" / "study0.h5ad")
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
        ({"corpus": "x", "output": "y", "steps": "many"}, [], "steps must be a number"),
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
