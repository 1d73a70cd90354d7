# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""BERTs read as cell towers, and cell towers exported as BERTs: both compute the same, also without the package."""

import json
import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from typer.testing import CliRunner

from modeling_langcell import (
    InputError,
    LangCellCellModel,
    LangCellFeatureExtractor,
    LangCellForMaskedLM,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellModel,
    LangCellTextModel,
)
from modeling_langcell.checkpoint.builtin import resolve_checkpoint
from modeling_langcell.cli.main import app
from modeling_langcell.conversion.bert import GENES as GENES_FILE
from modeling_langcell.conversion.bert import export_cell_tower, fold_token_types, read_cell_tower
from tests.support.commands import run_without_the_package
from tests.support.paths import REPOSITORY
from tests.support.tiny import GENES, tiny_config

TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
VOCABULARY = len(GENES) + 3


def sharp(model, seed=0):
    """Returns the model in evaluation mode, with weights so large that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def geneformer_config(**settings) -> BertConfig:
    """Returns a small config like Geneformer's: no `<cls>`, and no default settings."""
    return BertConfig(
        vocab_size=VOCABULARY - 1, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=20, hidden_act="relu", layer_norm_eps=1e-7, hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.2, initializer_range=0.05, **settings,
    )  # fmt: skip


def padded_cells(vocab_size: int = VOCABULARY - 1) -> dict[str, torch.Tensor]:
    """Random ids of cells of 20, 3 and 11 genes."""
    ids = torch.randint(2, vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([20, 3, 11])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def assert_alike(tower, bert, batch) -> None:
    """With gradients, so that both take torch's products: oneDNN's round otherwise."""
    kept = batch["attention_mask"].bool()
    ours, theirs = tower(**batch), bert(**batch)
    torch.testing.assert_close(ours.last_hidden_state[kept], theirs.last_hidden_state[kept], atol=1e-6, rtol=1e-6)
    assert torch.equal(ours.pooler_output, ours.last_hidden_state[:, 0])
    assert ours.last_hidden_state[kept].std() > 0.05


def list_files(folder) -> list[tuple[str, int]]:
    """Returns the paths and sizes of a folder's files, to check that nothing was written."""
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))


# ---------------------------------------------------------------------- a BERT as a tower


class TestRead:
    @pytest.fixture
    def geneformer(self, tmp_path):
        """A folder as Geneformer is published: a `BertForMaskedLM`."""
        sharp(BertForMaskedLM(geneformer_config())).save_pretrained(tmp_path / "geneformer")
        return tmp_path / "geneformer"

    def write_bin(self, folder, change=dict) -> None:
        """Its weights as older versions of transformers wrote them, and nothing beside."""
        state = load_file(folder / "model.safetensors")
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
        state["bert.embeddings.position_ids"] = torch.arange(20)[None]
        torch.save(change(state), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    @pytest.mark.parametrize(
        "kind", [BertForMaskedLM, BertModel, BertForSequenceClassification, BertForTokenClassification]
    )
    def test_it_computes_the_same(self, kind, tmp_path, caplog):
        sharp(kind(geneformer_config())).save_pretrained(tmp_path / "bert")
        bert = BertModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False)
        assert bert.embeddings.token_type_embeddings.weight.abs().max() > 0.1
        caplog.clear()
        tower = read_cell_tower(tmp_path / "bert")
        assert not caplog.records, "that heads are left out needs no report"
        assert type(tower) is LangCellCellModel
        assert not tower.training
        assert_alike(tower, bert, padded_cells())

    def test_without_a_pooler(self, tmp_path):
        bert = sharp(BertModel(geneformer_config(type_vocab_size=1), add_pooling_layer=False))
        bert.save_pretrained(tmp_path / "bert")
        assert_alike(read_cell_tower(str(tmp_path / "bert")), bert, padded_cells())

    @pytest.mark.parametrize("prefix", ["bert.", ""])
    def test_weights_of_older_versions(self, geneformer, prefix):
        bert = BertModel.from_pretrained(geneformer, add_pooling_layer=False)
        self.write_bin(geneformer, lambda state: {name.replace("bert.", prefix): w for name, w in state.items()})
        assert_alike(read_cell_tower(geneformer), bert, padded_cells())

    def test_half_precision_is_read_as_float32(self, geneformer):
        weights = {name: weight.half() for name, weight in load_file(geneformer / "model.safetensors").items()}
        save_file(weights, geneformer / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((geneformer / "config.json").read_text())
        (geneformer / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
        bert = BertModel.from_pretrained(geneformer, add_pooling_layer=False, dtype=torch.float32)
        tower = read_cell_tower(geneformer)
        assert tower.dtype == torch.float32
        assert_alike(tower, bert, padded_cells())

    def test_settings_are_kept(self, geneformer):
        config, bert = read_cell_tower(geneformer).config, geneformer_config()
        names = ("hidden_act", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")
        for name in (*names, "initializer_range", "max_position_embeddings", "pad_token_id"):
            assert getattr(config, name) == getattr(bert, name), name

    def test_cls_is_added_as_the_mean_of_the_genes(self, geneformer, gene_vocabulary):
        tower = read_cell_tower(geneformer)
        genes = tower.get_input_embeddings().weight
        extractor = LangCellFeatureExtractor(gene_vocabulary)
        assert len(genes) == tower.config.vocab_size == len(extractor) == VOCABULARY
        assert tower.config.cls_token_id == extractor.cls_token_id
        torch.testing.assert_close(genes[-1], genes[2:-1].mean(dim=0))
        asked = read_cell_tower(geneformer, vocab_size=len(extractor))
        assert torch.equal(asked.get_input_embeddings().weight, genes)

    def test_a_vocabulary_with_cls_is_kept(self, geneformer):
        tower = read_cell_tower(geneformer, vocab_size=VOCABULARY - 1)
        bert = BertModel.from_pretrained(geneformer, add_pooling_layer=False)
        assert torch.equal(tower.get_input_embeddings().weight, bert.embeddings.word_embeddings.weight)

    def test_it_can_be_saved_and_loaded(self, geneformer, tmp_path):
        tower = read_cell_tower(geneformer)
        tower.save_pretrained(tmp_path / "tower")
        again = AutoModel.from_pretrained(tmp_path / "tower")
        assert type(again) is LangCellCellModel
        assert_alike(again, BertModel.from_pretrained(geneformer, add_pooling_layer=False), padded_cells())

    def test_other_vocabularies_are_refused(self, geneformer):
        for vocab_size in (VOCABULARY - 2, VOCABULARY + 1):
            with pytest.raises(InputError, match=rf"geneformer has 42 tokens, not {vocab_size}"):
                read_cell_tower(geneformer, vocab_size=vocab_size)

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"model_type": "roberta"}, "a checkpoint of roberta, not of bert"),
            ({"position_embedding_type": "relative_key"}, "positions that are not absolute"),
            ({"is_decoder": True}, "is_decoder"),
            ({"num_hidden_layers": 3}, r"lacks the weights encoder\.layer\.2"),
            ({"hidden_size": 48}, "cannot be used"),
            ({"hidden_act": "nope"}, "cannot be used: .*nope"),
            ({"attn_implementation": "nobody/kernel"}, "names code from elsewhere"),
        ],
    )
    def test_configs_that_do_not_fit(self, geneformer, settings, says):
        config = json.loads((geneformer / "config.json").read_text())
        (geneformer / "config.json").write_text(json.dumps(config | settings))
        with pytest.raises(InputError, match=says):
            read_cell_tower(geneformer)

    @pytest.mark.parametrize("content", [b"{", b"[]"])
    def test_damaged_configs(self, geneformer, content):
        (geneformer / "config.json").write_bytes(content)
        with pytest.raises(InputError, match=r"geneformer.* (cannot be read|does not hold a JSON object)"):
            read_cell_tower(geneformer)

    @pytest.mark.parametrize("kept", [0, 50, 2000])
    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_damaged_weights(self, geneformer, name, kept):
        if name.endswith("bin"):
            self.write_bin(geneformer)
        weights = geneformer / name
        weights.write_bytes(weights.read_bytes()[:kept])
        with pytest.raises(InputError, match=r"geneformer.* (cannot be used|is damaged|is not a complete)"):
            read_cell_tower(geneformer)

    def test_weights_that_run_code(self, geneformer, tmp_path):
        marker = tmp_path / "marker"
        self.write_bin(geneformer, lambda state: state | {"bert.stray": MakeFolder(marker)})
        torch.load(geneformer / "pytorch_model.bin", weights_only=False)
        marker.rmdir()  # The file is live: a careless reader would have run it.
        with pytest.raises(InputError, match=r"geneformer.* (cannot be used|is damaged|is not a complete)"):
            read_cell_tower(geneformer)
        assert not marker.exists()

    def test_missing_checkpoints(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(InputError, match="nowhere cannot be used"):
            read_cell_tower(tmp_path / "nowhere")
        with pytest.raises(InputError, match="a checkpoint of no known kind, not of bert"):
            read_cell_tower(tmp_path)


def test_the_published_encoder_computes_the_recorded_states(shared, tmp_path):
    """Read by itself, and again after it was exported: as the published code read it."""
    expected = load_file(shared / "reference/expected.safetensors")
    batch = {name: expected[name] for name in ("input_ids", "attention_mask")}
    tower = read_cell_tower(shared / "reference/checkpoint/cell_bert", vocab_size=400)
    exported = BertModel.from_pretrained(export_cell_tower(tower, tmp_path / "encoder"))
    kept = batch["attention_mask"].bool()
    with torch.inference_mode():
        for encoder in (tower, exported):
            states = encoder(**batch).last_hidden_state[kept]
            torch.testing.assert_close(states, expected["cell_last_hidden_state"][kept], atol=1e-5, rtol=0)


class MakeFolder:
    """Pickles to a call of `os.mkdir`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_token_types_fold_into_positions():
    state = {"embeddings.position_embeddings.weight": torch.ones(3, 2), TOKEN_TYPES: torch.tensor([[1.0, 2], [9, 9]])}
    assert fold_token_types(state)["embeddings.position_embeddings.weight"].tolist() == [[2, 3]] * 3
    assert TOKEN_TYPES not in fold_token_types(state)
    assert TOKEN_TYPES in state  # It is not changed in place.
    without = {"embeddings.position_embeddings.weight": torch.ones(3, 2)}
    assert fold_token_types(without) == without


# ---------------------------------------------------------------------- a tower as a BERT


@pytest.fixture(scope="module")
def pretrained(tiny_processor, tmp_path_factory):
    """A joint model with the masked-gene head, and its checkpoint."""
    folder = tmp_path_factory.mktemp("pretrained") / "joint"
    model = sharp(LangCellForPreTraining(tiny_config()))
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return model, folder


@pytest.fixture
def batch(cells, tiny_processor) -> dict[str, torch.Tensor]:
    """The twelve cells, ranked."""
    ranked = tiny_processor.feature_extractor(cells, return_tensors="pt")
    assert not ranked["cell_attention_mask"].all()
    return {"input_ids": ranked["cell_input_ids"], "attention_mask": ranked["cell_attention_mask"]}


#: A session where the package cannot be imported: reads the folders of argv[1], writes their outputs there.
SESSION = """
import sys

sys.modules["modeling_langcell"] = None
try:
    import modeling_langcell
except ModuleNotFoundError:
    pass
else:
    sys.exit("The package is importable: this session would prove nothing.")

import json
from pathlib import Path
import torch
import transformers
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
batch = load_file(folder / "batch.safetensors")
outputs, loadings = {}, {}
for name, kind, options in json.loads((folder / "asked.json").read_text()):
    model, loading = getattr(transformers, kind).from_pretrained(folder / name, output_loading_info=True, **options)
    with torch.inference_mode():
        found = model(**batch)
    for output in ("last_hidden_state", "pooler_output", "logits"):
        if found.get(output) is not None:
            outputs[f"{name} {kind} {output}"] = found[output].contiguous()
    loadings[f"{name} {kind}"] = {key: sorted(loading[key]) for key in ("missing_keys", "unexpected_keys")}
    loadings[f"{name} {kind}"]["class"] = f"{type(model).__module__}.{type(model).__name__}"
save_file(outputs, folder / "outputs.safetensors")
(folder / "loadings.json").write_text(json.dumps(loadings))
"""


def test_a_fresh_process_without_the_package_computes_the_same(pretrained, batch, tmp_path):
    model, checkpoint = pretrained
    assert export_cell_tower(checkpoint, tmp_path / "encoder") == tmp_path / "encoder"
    export_cell_tower(checkpoint, tmp_path / "masked", masked_genes=True)
    untied = sharp(LangCellForMaskedLM(tiny_config(cell_config={"tie_word_embeddings": False}).cell_config))
    export_cell_tower(untied, tmp_path / "untied", masked_genes=True)
    asked = [
        ("encoder", "BertModel", {}),
        ("encoder", "AutoModel", {}),
        ("encoder", "BertForSequenceClassification", {}),
        ("masked", "BertForMaskedLM", {}),
        ("masked", "AutoModelForMaskedLM", {}),
        ("masked", "BertModel", {"add_pooling_layer": False}),
        ("untied", "BertForMaskedLM", {}),
    ]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    save_file(batch, tmp_path / "batch.safetensors")
    done = run_without_the_package("-I", "-c", SESSION, tmp_path, cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-4000:]

    loadings = json.loads((tmp_path / "loadings.json").read_text())
    assert all(found.pop("class").startswith("transformers.models.bert.") for found in loadings.values())
    new_head = loadings.pop("encoder BertForSequenceClassification")
    assert new_head == {"missing_keys": ["classifier.bias", "classifier.weight"], "unexpected_keys": []}
    beside = loadings.pop("masked BertModel")
    assert not beside["missing_keys"]
    assert all(key.startswith("cls.predictions.") for key in beside["unexpected_keys"])
    assert loadings.keys() == {
        "encoder BertModel", "encoder AutoModel", "masked BertForMaskedLM", "masked AutoModelForMaskedLM",
        "untied BertForMaskedLM",
    }  # fmt: skip
    assert all(found == {"missing_keys": [], "unexpected_keys": []} for found in loadings.values())

    outputs = load_file(tmp_path / "outputs.safetensors")
    with torch.inference_mode():
        states = model.cell_model(**batch).last_hidden_state
        logits = model.lm_head(states)
        untied_logits = untied(**batch).logits
    expected = {f"encoder {kind} last_hidden_state": states for kind in ("BertModel", "AutoModel")}
    expected |= {f"encoder {kind} pooler_output": states[:, 0].tanh() for kind in ("BertModel", "AutoModel")}
    expected |= {f"masked {kind} logits": logits for kind in ("BertForMaskedLM", "AutoModelForMaskedLM")}
    expected |= {"masked BertModel last_hidden_state": states, "untied BertForMaskedLM logits": untied_logits}
    outputs.pop("encoder BertForSequenceClassification logits")
    assert outputs.keys() == expected.keys()
    kept = batch["attention_mask"].bool()
    for name, output in outputs.items():
        rows = slice(None) if name.endswith("pooler_output") else kept
        torch.testing.assert_close(
            output[rows], expected[name][rows], atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert states[kept].std() > 0.05


def test_written_files(pretrained, tmp_path, gene_vocabulary):
    folder = export_cell_tower(pretrained[1], tmp_path / "encoder")
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", GENES_FILE, "README.md")
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [folder]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "who may read one file may read all"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["architectures"] == ["BertModel"]
    assert config["cls_token_id"] == VOCABULARY - 1
    assert "auto_map" not in config
    weights = load_file(folder / "model.safetensors")
    assert not weights[TOKEN_TYPES].any()
    tower = pretrained[0].cell_model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in tower.items())

    genes = pd.read_csv(folder / GENES_FILE, sep="\t")
    assert genes["token_id"].tolist() == list(range(VOCABULARY))
    assert genes["token"].tolist() == ["<pad>", "<mask>", *GENES, "<cls>"]
    assert genes["median"][2:-1].tolist() == gene_vocabulary["medians"]
    assert genes["median"][[0, 1, VOCABULARY - 1]].isna().all()
    assert genes["names"][2] == "GENE1|ALIAS1"


def test_the_card_shows_how_to_load_the_encoder(pretrained, tmp_path, monkeypatch):
    for masked_genes in (False, True):
        folder = export_cell_tower(pretrained[1], tmp_path / f"cells{masked_genes}", masked_genes=masked_genes)
        card = (folder / "README.md").read_text()
        assert GENES_FILE in card
        code = card.partition("```python\n")[2].partition("```")[0]
        loaded: dict = {}
        monkeypatch.chdir(tmp_path)
        exec(code, loaded)
        assert torch.equal(
            loaded["encoder"].embeddings.word_embeddings.weight, pretrained[0].get_input_embeddings().weight
        )


def test_a_gene_without_a_median_has_none_in_the_table(pretrained, tmp_path, gene_vocabulary):
    vocabulary = gene_vocabulary | {"medians": [None, *gene_vocabulary["medians"][1:]]}
    folder = export_cell_tower(pretrained[0], tmp_path / "encoder", extractor=LangCellFeatureExtractor(vocabulary))
    assert pd.read_csv(folder / GENES_FILE, sep="\t")["median"].isna().sum() == 4


def every_kind():
    config = tiny_config
    return {
        "joint": LangCellModel(config()),
        "pretraining": LangCellForPreTraining(config()),
        "cell": LangCellCellModel(config().cell_config),
        "masked": LangCellForMaskedLM(config().cell_config),
        "classifier": LangCellForSequenceClassification(config(cell_config={"num_labels": 3}).cell_config),
    }


@pytest.mark.parametrize("kind", every_kind())
def test_every_model_with_a_cell_tower(kind, batch, tmp_path):
    model = sharp(every_kind()[kind])
    model.save_pretrained(tmp_path / "model")
    tower = model if kind == "cell" else model.cell_model
    for given, output in ((model, tmp_path / "of-model"), (tmp_path / "model", tmp_path / "of-folder")):
        folder = export_cell_tower(given, output)
        assert not (folder / GENES_FILE).exists(), "nobody says what the ids mean"
        assert_alike(tower, BertModel.from_pretrained(folder), batch)


def test_an_exported_tower_is_read_back(pretrained, tmp_path):
    tower = pretrained[0].cell_model
    for masked_genes in (False, True):
        folder = export_cell_tower(pretrained[1], tmp_path / f"encoder{masked_genes}", masked_genes=masked_genes)
        again = read_cell_tower(folder)
        assert again.state_dict().keys() == tower.state_dict().keys()
        assert all(torch.equal(again.state_dict()[name], weight) for name, weight in tower.state_dict().items())
        assert again.config.vocab_size == VOCABULARY


def test_bfloat16_is_written_as_float32(tmp_path):
    model = sharp(LangCellModel(tiny_config())).to(torch.bfloat16)
    weights = load_file(export_cell_tower(model, tmp_path / "encoder") / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    words = model.get_input_embeddings().weight
    assert torch.equal(weights["embeddings.word_embeddings.weight"], words.float())
    assert model.dtype == words.dtype == torch.bfloat16


def test_the_random_state_is_unchanged(pretrained, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    export_cell_tower(pretrained[0], tmp_path / "encoder", masked_genes=True)
    assert torch.equal(torch.rand(1), expected)


def test_langcell_mini_on_real_cells(shared, tmp_path):
    """Cells are ranked by what the folder says alone, and read by BERT."""
    folder = export_cell_tower("langcell-mini", tmp_path / "encoder")
    bert = BertModel.from_pretrained(folder)
    tower = LangCellCellModel.from_pretrained(resolve_checkpoint("langcell-mini"), dtype=torch.float32)
    adata = ad.read_h5ad(shared / "data/validation/zheng68k_subset_pbmc.h5ad")[::20].copy()
    extractor = LangCellFeatureExtractor.from_pretrained(REPOSITORY / "hub_configs/langcell-mini")
    ranked = extractor(adata, gene_column="ensembl_id", return_tensors="pt")

    genes = pd.read_csv(folder / GENES_FILE, sep="\t", index_col="token", float_precision="round_trip")
    known = adata.var["ensembl_id"].isin(genes.index[genes["median"].notna()]).to_numpy()
    table = genes.loc[adata.var["ensembl_id"][known]]
    for counts, ids in zip(adata.X.toarray()[:, known], ranked["cell_input_ids"].tolist(), strict=True):
        values = counts / table["median"].to_numpy()
        order = np.lexsort((table["token_id"], -values))[: np.count_nonzero(counts)]
        row = [genes["token_id"]["<cls>"], *table["token_id"].iloc[order]][: bert.config.max_position_embeddings]
        assert row == [token_id for token_id in ids if token_id]

    batch = {"input_ids": ranked["cell_input_ids"], "attention_mask": ranked["cell_attention_mask"]}
    assert not batch["attention_mask"].all()
    assert_alike(tower, bert, batch)


# ---------------------------------------------------------------------- the tower as a plain encoder


def test_a_plain_encoder_is_saved_and_loaded(pretrained, batch, tmp_path):
    joint, checkpoint = pretrained
    bert = BertModel.from_pretrained(export_cell_tower(joint, tmp_path / "bert"))
    tower, loading = LangCellCellModel.from_pretrained(checkpoint, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tower.save_pretrained(tmp_path / "tower")
    assert json.loads((tmp_path / "tower" / "config.json").read_text())["model_type"] == "langcell_cell"
    assert {name.partition(".")[0] for name in load_file(tmp_path / "tower" / "model.safetensors")} == {
        *("embeddings", "encoder")
    }  # fmt: skip
    again, loading = AutoModel.from_pretrained(tmp_path / "tower", output_loading_info=True)
    assert type(again) is LangCellCellModel
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for loaded in (tower, again):
        assert_alike(loaded, bert, batch)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nowhere", "is not a folder here"),
        ("empty", "a checkpoint of no known kind, not of langcell or langcell_cell"),
        ("bert", "a checkpoint of bert, not of langcell or langcell_cell"),
        ("text", "a checkpoint of langcell_text, not of"),
        ("half", r"lacks the weights .*encoder\.layer\.1"),
        ("damaged", "damaged.* (cannot be used|is damaged)"),
    ],
)
@pytest.mark.parametrize("masked_genes", [False, True])
def test_unusable_checkpoints(given, says, masked_genes, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / given
    if given == "empty":
        folder.mkdir()
    elif given == "bert":
        BertModel(geneformer_config()).save_pretrained(folder)
    elif given == "text":
        LangCellTextModel(tiny_config().text_config).save_pretrained(folder)
    elif given in ("half", "damaged"):
        LangCellForMaskedLM(tiny_config().cell_config).save_pretrained(folder)
        weights = folder / "model.safetensors"
        if given == "half":
            kept = {name: weight for name, weight in load_file(weights).items() if "layer.1." not in name}
            save_file(kept, weights, metadata={"format": "pt"})
        else:
            weights.write_bytes(weights.read_bytes()[:-100])
    before = list_files(tmp_path)
    with pytest.raises(InputError, match=says):
        export_cell_tower(folder, tmp_path / "out", masked_genes=masked_genes)
    assert list_files(tmp_path) == before


def test_missing_masked_gene_head(tiny_checkpoint, tmp_path):
    with pytest.raises(InputError, match="tiny-langcell has no masked-gene head: leave out masked_genes"):
        export_cell_tower(tiny_checkpoint, tmp_path / "out", masked_genes=True)
    with pytest.raises(InputError, match="LangCellModel has no masked-gene head"):
        export_cell_tower(LangCellModel(tiny_config()), tmp_path / "out", masked_genes=True)
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused(tmp_path):
    adapted = LangCellModel(tiny_config())
    wrapped = get_peft_model(adapted, LoraConfig(target_modules=r"cell_model\..*\.query"))
    for model, says in (
        (LangCellTextModel(tiny_config().text_config), "A LangCellTextModel is not a LangCell model with a cell tower"),
        (nn.Linear(2, 2), "A Linear is no"),
        (wrapped, "A PeftModel is no"),
        (adapted, "merge its adapter"),
    ):
        with pytest.raises(InputError, match=says):
            export_cell_tower(model, tmp_path / "out")
    merged = wrapped.merge_and_unload()
    assert export_cell_tower(merged, tmp_path / "out").is_dir()


def test_an_extractor_of_other_genes(pretrained, tmp_path, gene_vocabulary):
    fewer = LangCellFeatureExtractor({name: column[:-1] for name, column in gene_vocabulary.items()})
    for model in pretrained:
        with pytest.raises(InputError, match="The extractor has 42 ids, but the cell tower has 43"):
            export_cell_tower(model, tmp_path / "out", extractor=fewer)
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_left_alone(pretrained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = list_files(tmp_path)
    with pytest.raises(InputError, match="already exists"):
        export_cell_tower(pretrained[1], tmp_path / "out")
    assert list_files(tmp_path) == before


def test_nothing_is_left_when_writing_fails(pretrained, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("modeling_langcell.conversion.bert._write_card", fail)
    with pytest.raises(InputError, match="cannot be written: no space left"):
        export_cell_tower(pretrained[1], tmp_path / "made" / "out")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- the command


def test_the_command(pretrained, tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "encoder"
    done = run(app, ["export", str(pretrained[1]), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"Encoder: {out}\n"
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]
    done = run(app, ["export", str(pretrained[1]), "--out", str(tmp_path / "masked"), "--masked-genes"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "masked" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]

    pretrained[0].cell_model.save_pretrained(tmp_path / "tower")
    done = run(app, ["export", str(tmp_path / "tower"), "--out", str(tmp_path / "bare")])
    assert done.exit_code == 0, done.output
    assert "does not define its ids" in done.stdout
    for model, says in ((tmp_path / "nowhere", "is not a folder here"), (pretrained[1], "already exists")):
        done = run(app, ["export", str(model), "--out", str(out if says == "already exists" else tmp_path / "new")])
        assert done.exit_code == 2
        assert says in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
