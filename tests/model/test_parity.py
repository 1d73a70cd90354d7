# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Parity with the recorded behaviour of the published inference code, and with `transformers.BertModel`."""

import copy
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from modeling_langcell import LangCellAnnotator, LangCellFeatureExtractor, LangCellModel
from modeling_langcell.conversion.bert import fold_token_types
from modeling_langcell.conversion.published import convert, read_gene_vocabulary
from tests.support.tiny import tiny_config

#: What fp32 arithmetic in another order may change; a cosine divided by the temperature is 20 times as large.
TOLERANCE = 1e-5
SIMILARITY_TOLERANCE = 1e-4


def disagreements(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns the largest difference for every tensor outside of its tolerance."""
    wrong = {}
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        difference = (found[name] - tensor).abs().max().item()
        if not difference <= (SIMILARITY_TOLERANCE if name == "similarity" else TOLERANCE):  # NaN is wrong too
            wrong[name] = difference
    return wrong


# ---------------------------------------------------------------------- the recorded run


def gene_dictionaries(folder) -> dict:
    return {
        "token_dictionary": folder / "token_dictionary.pkl",
        "gene_medians": folder / "gene_median_dictionary.pkl",
        "gene_names": folder / "gene_name_id_dict.pkl",
    }


@pytest.fixture(scope="module")
def converted(shared, tmp_path_factory):
    """Model and processor of the recorded checkpoint, converted and loaded."""
    reference = shared / "reference"
    output = tmp_path_factory.mktemp("parity") / "converted"
    genes = gene_dictionaries(reference / "genes")
    convert(reference / "checkpoint", **genes, text_vocab=reference / "vocab.txt", output=output)
    return AutoModel.from_pretrained(output), AutoProcessor.from_pretrained(output)


@pytest.fixture(scope="module")
def inputs(shared):
    return json.loads((shared / "reference/inputs.json").read_text())


@pytest.fixture(scope="module")
def expected(shared):
    """The recorded tensors; hidden states of padding have no meaning and are zeroed."""
    tensors = load_file(shared / "reference/expected.safetensors")
    tensors["cell_last_hidden_state"] *= tensors["attention_mask"].unsqueeze(-1)
    return tensors


@pytest.fixture(scope="module")
def recorded_cells(converted, inputs):
    """An AnnData whose cells rank like the recorded ones: a count is the median times one plus the genes after it."""
    vocabulary = converted[1].feature_extractor.gene_vocabulary
    medians = vocabulary["medians"]
    values = sp.lil_matrix((len(inputs["cells_without_cls"]), len(medians)))
    for cell, ids in enumerate(inputs["cells_without_cls"]):
        for rank, token_id in enumerate(ids):
            values[cell, token_id - 2] = medians[token_id - 2] * (len(ids) - rank)
    return ad.AnnData(values.tocsr(), var=pd.DataFrame(index=vocabulary["ensembl_ids"]))


@torch.inference_mode()
def run(model, processor, cells, texts) -> dict[str, torch.Tensor]:
    """Outputs of the published code, under their recorded names."""
    batch = processor(cells=cells, text=texts, counts="normalized", return_tensors="pt")
    outputs = model(**batch, return_matching=True)
    hidden = outputs.cell_model_output.last_hidden_state * batch["cell_attention_mask"].unsqueeze(-1)
    match = outputs.matching_logits.softmax(dim=-1)[..., 1]
    annotator = LangCellAnnotator(model, processor, device="cpu")
    blends = {}
    for name, alpha in {"alpha_0_1": 0.1, "mean": 0.5}.items():
        annotated = annotator.annotate(
            cells.copy(), {str(row): text for row, text in enumerate(texts)}, alpha=alpha, counts="normalized"
        )
        blends[name] = torch.tensor(annotated.obsm["langcell_probabilities"].to_numpy())
    return blends | {
        "input_ids": batch["cell_input_ids"],
        "attention_mask": batch["cell_attention_mask"],
        "cell_last_hidden_state": hidden,
        "cell_cls_hidden": outputs.cell_model_output.pooler_output,
        "cell_embeds": outputs.cell_embeds,
        "text_embeds": outputs.text_embeds,
        "similarity": outputs.logits_per_cell,
        "similarity_probs": outputs.logits_per_cell.softmax(dim=-1),
        "ctm_logits": outputs.matching_logits,
        "ctm_match_prob": match,
        "ctm_probs": match.softmax(dim=-1),
    }


def test_texts_are_tokenized_as_recorded(converted, inputs):
    assert converted[1](text=inputs["texts"])["input_ids"] != inputs["text_input_ids"]  # They are padded,
    unpadded = converted[1](text=inputs["texts"], text_kwargs={"padding": False})["input_ids"]
    assert unpadded == inputs["text_input_ids"]


def test_every_recorded_tensor_is_reproduced(converted, recorded_cells, inputs, expected):
    assert len(expected) == 13
    assert disagreements(run(*converted, recorded_cells, inputs["texts"]), expected) == {}


_SIMILARITY = {"similarity", "similarity_probs", "alpha_0_1", "mean"}
_MATCHING = {"ctm_logits", "ctm_match_prob"}


@pytest.mark.parametrize(
    ("parameter", "amount", "moved"),
    [
        (
            "cell_model.embeddings.LayerNorm.bias",
            1e-2,
            {"cell_last_hidden_state", "cell_cls_hidden", "cell_embeds", "ctm_probs"} | _SIMILARITY | _MATCHING,
        ),
        ("text_model.embeddings.LayerNorm.bias", 1e-2, {"text_embeds"} | _SIMILARITY | _MATCHING),
        ("text_model.encoder.layer.2.crossattention.self.value.weight", 5e-2, {"ctm_probs", "alpha_0_1"} | _MATCHING),
        ("cell_projection.weight", 1e-2, {"cell_embeds"} | _SIMILARITY),
        ("text_projection.weight", 1e-2, {"text_embeds"} | _SIMILARITY),
        ("matching_head.bias", 1e-3, _MATCHING),
    ],
)
def test_a_small_change_of_one_weight_is_noticed(converted, recorded_cells, inputs, expected, parameter, amount, moved):
    model, processor = converted
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_parameter(parameter).flatten()[0] += amount
    assert moved <= set(disagreements(run(model, processor, recorded_cells, inputs["texts"]), expected))


def test_the_tolerances_are_not_loosened(expected):
    assert TOLERANCE <= 1e-5
    assert SIMILARITY_TOLERANCE <= 1e-4
    for name, tensor in expected.items():
        for error in (2e-4, float("nan")) if tensor.is_floating_point() else (1,):
            wrong = tensor.clone()
            wrong.flatten()[-1] += error
            assert set(disagreements(expected | {name: wrong}, expected)) == {name}


def test_real_cells_rank_as_recorded(shared):
    recorded = json.loads((shared / "reference/ranked_cells.json").read_text())["cells"]
    folder = gene_dictionaries(shared / "reference/geneformer")
    extractor = LangCellFeatureExtractor(read_gene_vocabulary(*folder.values()))
    adata = ad.read_h5ad(shared / "data/train/pbmc_facs_zheng.h5ad")[::97]
    assert adata.obs_names.tolist() == list(recorded)
    ranked = extractor.rank(adata, gene_column="ensembl_id", max_length=len(extractor))
    medians = np.array([np.nan, np.nan, *extractor.gene_vocabulary["medians"]])
    column_of = {2 + row: gene for row, gene in enumerate(extractor.gene_vocabulary["ensembl_ids"])}
    for cell, (counts, theirs) in enumerate(zip(adata.X.toarray(), recorded.values(), strict=True)):
        cls, *ours = ranked[cell].tolist()
        assert cls == extractor.cls_token_id == 25426
        assert sorted(ours) == sorted(theirs)
        # Only genes of equal value may have changed places.
        counts = dict(zip(adata.var["ensembl_id"], counts, strict=True))
        value = {token_id: counts[column_of[token_id]] / medians[token_id] for token_id in theirs}
        np.testing.assert_allclose([value[i] for i in ours], [value[i] for i in theirs], rtol=1e-9)


# ---------------------------------------------------------------------- BertModel


def published_geometry(**geometry) -> BertConfig:
    """A BertConfig with the geometry of `tiny_config`, without dropout."""
    return BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_cache=False, **geometry)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def towers(request):
    """A random LangCellModel, and the two BertModels that its towers come from."""
    generator = torch.Generator().manual_seed(0)
    # BertModel's cross-attention knows one width alone, so here both towers have it.
    config = tiny_config(cell_config={"hidden_size": 24, "num_attention_heads": 3, "hidden_act": "relu"})
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    keys += ("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id")
    cell, text = (
        published_geometry(**{key: getattr(tower, key) for key in keys})
        for tower in (config.cell_config, config.text_config)
    )
    text.is_decoder = text.add_cross_attention = True
    berts = [BertModel._from_config(c, attn_implementation="eager", add_pooling_layer=False) for c in (cell, text)]
    for bert in berts:
        for parameter in bert.parameters():  # Large enough that attention is far from uniform.
            parameter.data.normal_(0, 0.5, generator=generator)
    model = LangCellModel._from_config(config, attn_implementation=request.param).eval()
    model.cell_model.load_state_dict(fold_token_types(berts[0].state_dict()))
    model.text_model.load_state_dict(fold_token_types(berts[1].state_dict()))
    for head in (model.cell_projection, model.text_projection, model.matching_head):
        head.weight.data.normal_(0, 0.5, generator=generator)
    return model, *(bert.eval() for bert in berts)


def padded(lengths: list[int], vocab_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Random ids, and a mask with the given number of tokens in each row."""
    ids = torch.randint(2, vocab_size, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [[30, 4, 1, 17], [6, 6]])
def test_the_cell_tower_is_bert(towers, lengths):
    model, bert, _ = towers
    cells = padded(lengths, model.config.cell_config.vocab_size, seed=1)
    ours, theirs = model.cell_model(**cells).last_hidden_state, bert(**cells).last_hidden_state
    kept = cells["attention_mask"].bool()
    torch.testing.assert_close(ours[kept], theirs[kept], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [[9, 3, 12], [7, 7, 7]])
@pytest.mark.parametrize("mode", ["text-only", "multimodal"])
def test_the_text_tower_is_bert(towers, mode, lengths):
    model, _, bert = towers
    texts = padded(lengths, model.config.text_config.vocab_size, seed=2)
    cells = {}
    if mode == "multimodal":
        states = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(3))
        cells = {"encoder_hidden_states": states, "encoder_attention_mask": padded([8, 2, 5], 9, 0)["attention_mask"]}
    ours = model.text_model(**texts, **cells).last_hidden_state
    # A BertModel with cross-attention has to be a decoder; is_causal=False makes it look both ways nonetheless.
    theirs = bert(**texts, **cells, is_causal=False).last_hidden_state
    kept = texts["attention_mask"].bool()
    torch.testing.assert_close(ours[kept], theirs[kept], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_all_pairs_at_once_equal_one_pair_at_a_time(towers):
    model, cell_bert, text_bert = towers
    cells = padded([30, 4, 17], model.config.cell_config.vocab_size, seed=4)
    texts = padded([9, 3, 12, 5], model.config.text_config.vocab_size, seed=5)
    grid = model(cells["input_ids"], cells["attention_mask"], **texts, return_matching=True)
    assert grid.matching_logits.shape == (3, 4, 2)
    for i in range(3):
        cell = cell_bert(cells["input_ids"][[i], : cells["attention_mask"][i].sum()]).last_hidden_state
        cell_embed = F.normalize(model.cell_projection(cell[0, 0]), dim=0)
        for j in range(4):
            ids = texts["input_ids"][[j], : texts["attention_mask"][j].sum()]
            alone = text_bert(ids, is_causal=False).last_hidden_state
            read = text_bert(ids, encoder_hidden_states=cell, is_causal=False).last_hidden_state
            text_embed = F.normalize(model.text_projection(alone[0, 0]), dim=0)
            found = {
                "cell_embeds": grid.cell_embeds[i],
                "text_embeds": grid.text_embeds[j],
                "similarity": grid.logits_per_cell[i, j],
                "ctm_logits": grid.matching_logits[i, j],
            }
            expected = {
                "cell_embeds": cell_embed,
                "text_embeds": text_embed,
                "similarity": cell_embed @ text_embed / 0.05,
                "ctm_logits": model.matching_head(read[0, 0]),
            }
            assert disagreements(found, expected) == {}
