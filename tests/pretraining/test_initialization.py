# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Initialized towers compute what the checkpoints that they come from compute."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from modeling_langcell import InputError, LangCellModel
from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.initialization import initialize_text_projection
from modeling_langcell.pretraining.run import pretrain
from tests.support.tiny import GENES, SYMBOLS, WORDS, initialized


def test_the_text_tower_computes_the_same_as_its_encoder(tiny_studies, settings):
    model, processor = initialized(settings)
    bert = BertModel.from_pretrained(tiny_studies / "encoder", add_pooling_layer=False).eval()
    batch = processor(text=["b cell", "natural killer cell type"], return_tensors="pt")
    with torch.no_grad():
        ours = model.eval().text_model(**batch).last_hidden_state
        theirs = bert(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)


class TestGeneformer:
    """A masked-gene BERT over the corpus's genes, without a row for `<cls>`, as Geneformer's."""

    @pytest.fixture
    def geneformer(self, tmp_path, settings):
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=len(GENES) + 2, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=40, max_position_embeddings=20, hidden_act="relu",
        )  # fmt: skip
        BertForMaskedLM(config).save_pretrained(tmp_path / "geneformer")
        settings["model"]["cell_config"] = {}
        settings |= {"cell_tower": str(tmp_path / "geneformer"), "gene_names_from": None, "max_genes": 20}
        return BertModel.from_pretrained(tmp_path / "geneformer", add_pooling_layer=False).eval()

    def test_the_cell_tower_computes_the_same(self, geneformer, settings):
        model, _ = initialized(settings)
        ids = torch.randint(2, len(GENES) + 2, (5, 20))
        with torch.no_grad():
            ours = model.eval().cell_model(ids).last_hidden_state
            theirs = geneformer(ids).last_hidden_state
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        genes = model.cell_model.get_input_embeddings().weight
        assert len(genes) == len(GENES) + 3
        torch.testing.assert_close(genes[-1], genes[2:-1].mean(dim=0))

    @pytest.mark.parametrize("positions", [12, 32])
    def test_positions_are_truncated_or_extended(self, geneformer, settings, positions):
        settings["model"]["cell_config"] = {"max_position_embeddings": positions}
        settings["max_genes"] = positions
        model, _ = initialized(settings)
        ours = model.cell_model.embeddings.position_embeddings.weight
        theirs = (
            geneformer.embeddings.position_embeddings.weight + geneformer.embeddings.token_type_embeddings.weight[0]
        )
        assert len(ours) == positions
        torch.testing.assert_close(ours[:12], theirs[:12])
        assert (ours[20:] == ours[19:20]).all()
        pretrain(PretrainingConfig(**settings | {"steps": 1, "max_genes": positions}))

    def test_other_genes_are_refused(self, settings, tmp_path):
        config = BertConfig(vocab_size=99, hidden_size=24, num_hidden_layers=1, num_attention_heads=3)
        BertModel(config).save_pretrained(tmp_path / "other")
        settings["model"]["cell_config"] = {}
        settings["gene_names_from"] = None
        with pytest.raises(InputError, match=r"99 tokens, but the corpus has 43.*--vocabulary"):
            initialized(settings | {"cell_tower": str(tmp_path / "other")})

    def test_another_geometry_is_refused(self, geneformer, settings):
        settings["model"]["cell_config"] = {"hidden_size": 48}
        with pytest.raises(InputError, match="does not fit"):
            initialized(settings)

    def test_other_initializations_beside_it_are_refused(self, geneformer, settings):
        with pytest.raises(InputError, match="leave out"):
            initialized(settings | {"gene_average_start": True})


class TestRefusals:
    """A checkpoint that cannot be used is one message that names the field, before the folder is claimed."""

    @pytest.mark.parametrize("field", ["text_tower", "cell_tower", "start"])
    def test_missing_checkpoints(self, settings, field, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        changes = {"gene_names_from": None, field: str(tmp_path / "nowhere")}
        with pytest.raises(InputError, match=rf"{field}: .*nowhere.? (cannot be used|is not a folder)"):
            pretrain(PretrainingConfig(**settings | changes))
        assert not (tmp_path / "run" / "run.json").exists()

    def test_checkpoints_of_another_kind(self, settings, tiny_checkpoint, tiny_studies):
        with pytest.raises(InputError, match="a checkpoint of langcell, not of bert"):
            initialized(settings | {"text_tower": str(tiny_checkpoint)})
        with pytest.raises(InputError, match="a checkpoint of bert, not of langcell"):
            initialized(settings | {"start": str(tiny_studies / "encoder")})

    def test_incomplete_weights(self, settings, tmp_path):
        class Half(BertModel):
            def state_dict(self, *arguments, **options):
                whole = super().state_dict(*arguments, **options)
                return {name: weight for name, weight in whole.items() if "layer.1" not in name}

        config = BertConfig(vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
        half = Half(config, add_pooling_layer=False)
        half.save_pretrained(tmp_path / "half", state_dict=half.state_dict())
        with pytest.raises(InputError, match=r"lacks the weights encoder\.layer\.1"):
            initialized(settings | {"text_tower": str(tmp_path / "half")})

    @pytest.mark.parametrize(
        ("model", "says"),
        [
            ({"cell_txt_weight": 0}, "model has no setting cell_txt_weight"),
            ({"cell_config": {"hiden_size": 8}}, "model.cell_config has no setting hiden_size"),
            ({"cell_config": 7}, "model.cell_config must map"),
            ({"temperature": "hot"}, "model: .*cannot be used: .*temperature.*expected float"),
            ({"temperature": 0}, r"temperature \(0\) must be above 0"),
            ({"matching_weight": -1}, "matching_weight .* must not be below 0"),
            ({"masked_gene_probability": 2}, "masked_gene_probability .* must be from 0 to 1"),
            ({"cell_config": {"num_attention_heads": 3, "hidden_size": 16}}, "must be a multiple of"),
            ({"cell_config": {"hidden_act": "nope"}}, "model: .*cannot be used: .*nope"),
            ({"cell_config": {"max_position_embeddings": 8}}, "max_genes is 32, but the tower has 8 positions"),
        ],
    )
    def test_bad_settings_of_the_model(self, settings, model, says):
        with pytest.raises(InputError, match=says):
            initialized(settings | {"gene_names_from": None, "model": model})

    def test_names_of_other_genes(self, settings, tmp_path):
        (tmp_path / "genes").write_text("Symbol\tSynonyms\tdbXrefs\tdescription\nA\t-\tEnsembl:ENSG99\ta\n")
        with pytest.raises(InputError, match="none of the corpus's genes"):
            initialized(settings | {"gene_names_from": str(tmp_path / "genes")})


def test_a_continued_run_may_have_other_positions(settings, tmp_path):
    first = pretrain(PretrainingConfig(**settings | {"steps": 1}))
    more = settings | {"start": str(first), "output": str(tmp_path / "more"), "steps": 0, "max_genes": 2100}
    more["model"] = {"cell_config": {"max_position_embeddings": 2100}, "alpha": 0.7}
    longer = LangCellModel.from_pretrained(pretrain(PretrainingConfig(**more)))
    before = LangCellModel.from_pretrained(first)
    assert longer.config.alpha == 0.7
    assert longer.config.cell_config.max_position_embeddings == 2100
    ours, theirs = (model.cell_model.embeddings.position_embeddings.weight for model in (longer, before))
    assert torch.equal(ours[:2048], theirs)
    assert (ours[2048:] == theirs[-1]).all()
    assert torch.equal(longer.cell_projection.weight, before.cell_projection.weight)


def test_genes_without_a_name_keep_their_random_embeddings(settings, tmp_path):
    named = tmp_path / "genes"
    lines = [f"{s}\t-\tEnsembl:{g}\t{s} protein\n" for g, s in zip(GENES[:30], SYMBOLS[:30], strict=True)]
    named.write_text("Symbol\tSynonyms\tdbXrefs\tdescription\n" + "".join(lines))
    torch.manual_seed(5)
    plain, _ = initialized(settings | {"gene_names_from": None})
    torch.manual_seed(5)
    model, _ = initialized(settings | {"gene_names_from": str(named)})
    weight, random = (m.cell_model.get_input_embeddings().weight for m in (model, plain))
    ids = {gene: 2 + i for i, gene in enumerate(Corpus(settings["corpus"]).gene_vocabulary["ensembl_ids"])}
    known = [ids[gene] for gene in GENES[:30]]
    others = [ids[gene] for gene in GENES[30:]]
    assert torch.equal(weight[others], random[others])
    assert (weight[known] != random[known]).any(dim=1).all()


def test_gene_embeddings_are_initialized_from_names(settings):
    model, _ = initialized(settings)
    other, _ = initialized(settings)
    plain, _ = initialized(settings | {"gene_names_from": None})
    weight, again, random = (m.cell_model.get_input_embeddings().weight for m in (model, other, plain))
    torch.testing.assert_close(weight[2:-1], again[2:-1], atol=1e-4, rtol=0)
    assert not torch.allclose(weight[2:-1], random[2:-1], atol=1e-3)


def test_a_tower_initialized_as_an_average_of_its_genes(settings):
    """Its `<cls>` state follows the mean of the cell's gene states, unlike that of a random tower."""
    ids = torch.randint(2, 40, (20, 30))

    def agreement(**overrides):
        model, _ = initialized(settings | {"gene_names_from": None} | overrides)
        tower = model.cell_model.eval()
        with torch.no_grad():
            states, pooled = tower.embeddings(ids).mean(dim=1), tower(ids).pooler_output
        distances = torch.stack([torch.pdist(states), torch.pdist(pooled)])
        return torch.corrcoef(distances)[0, 1].item(), torch.pdist(pooled).mean().item()

    ids[:, 0] = 42
    (follows, apart), (_, hardly_apart) = agreement(gene_average_start=True), agreement()
    assert follows > 0.7
    assert apart > 3 * hardly_apart


def test_the_text_projection_keeps_the_differences_between_texts(settings):
    settings["model"]["projection_dim"] = 24
    model, _ = initialized(settings)
    pooled = torch.randn(40, 24) * torch.linspace(0.1, 2, 24) + 5
    initialize_text_projection(model, pooled)
    projected = model.text_projection(pooled)
    torch.testing.assert_close(projected.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(projected.norm(dim=1).mean(), torch.tensor(1.0))
    ratio = torch.pdist(projected) / torch.pdist(pooled)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize("whitening", [0.3, 1.0])
def test_whitening_makes_the_spreads_of_components_more_alike(settings, whitening):
    settings["model"]["projection_dim"] = 24
    model, _ = initialized(settings)
    pooled = torch.randn(60, 24) * torch.linspace(0.1, 2, 24) + 5
    spreads = []
    for power in (0.0, whitening):
        initialize_text_projection(model, pooled, power)
        projected = model.text_projection(pooled)
        torch.testing.assert_close(projected.norm(dim=1).mean(), torch.tensor(1.0))
        spreads.append(projected.std(dim=0) / projected.std(dim=0).max())
    torch.testing.assert_close(spreads[1], spreads[0] ** (1 - whitening), rtol=1e-3, atol=0)
