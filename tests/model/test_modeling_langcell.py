# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The networks: tests that all classes of the family share, then those of single classes."""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModel, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from modeling_langcell import (
    LangCellCellModel,
    LangCellForMaskedLM,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellModel,
    LangCellTextModel,
)
from modeling_langcell.model import modeling_langcell
from modeling_langcell.model.objectives import CellCellContrast, CellTextContrast, MaskedGeneModelling
from tests.support.tiny import tiny_config

CELLS, GENES, TEXTS, TOKENS = 3, 12, 4, 6
CELL_WIDTH, TEXT_WIDTH, SHARED_WIDTH, VOCABULARY, WORDS = 16, 24, 12, 43, 20


def sharp_config(**overrides):
    """A tiny config without dropout, whose weights are large enough for attention to be far from uniform."""
    sharp = {"initializer_range": 0.4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for tower in ("cell_config", "text_config"):
        overrides[tower] = sharp | overrides.get(tower, {})
    return tiny_config(**({"initializer_range": 0.4} | overrides))


def padded(rows: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([F.pad(row, (0, length - len(row))) for row in rows])
    return ids, (ids != 0).long()


def cell_inputs() -> dict[str, torch.Tensor]:
    """Three cells of 12, 7 and 9 genes, `<cls>` first."""
    random = torch.Generator().manual_seed(1)
    rows = [torch.randint(2, VOCABULARY - 1, (length,), generator=random) for length in (GENES, 7, 9)]
    for row in rows:
        row[0] = VOCABULARY - 1
    return dict(zip(("input_ids", "attention_mask"), padded(rows, GENES), strict=True))


def text_inputs() -> dict[str, torch.Tensor]:
    """Four texts of 6, 4, 5 and 3 tokens, `[CLS]` first."""
    random = torch.Generator().manual_seed(2)
    rows = [torch.randint(5, WORDS, (length,), generator=random) for length in (TOKENS, 4, 5, 3)]
    for row in rows:
        row[0] = 2
    return dict(zip(("input_ids", "attention_mask"), padded(rows, TOKENS), strict=True))


def joint_inputs() -> dict[str, torch.Tensor]:
    return {f"cell_{name}": tensor for name, tensor in cell_inputs().items()} | text_inputs()


@dataclasses.dataclass(frozen=True)
class ModelTester:
    """One class of the family: the config it takes, what it reads, and the shapes of what it gives."""

    model_class: type[PreTrainedModel]
    tower: str | None
    inputs: Callable[[], dict]
    shapes: dict[str, tuple[int, ...]]

    def config(self, make: Callable = sharp_config, **overrides):
        config = make(**overrides)
        return config if self.tower is None else getattr(config, self.tower)

    def model(self, config=None, **kwargs) -> PreTrainedModel:
        """Returns the model with the same random weights at every call, in evaluation mode."""
        torch.manual_seed(0)
        # A model writes its attention implementation into its config.
        config = copy.deepcopy(config) if config is not None else self.config()
        return self.model_class._from_config(config, **kwargs).eval()

    def run(self, model: PreTrainedModel, **kwargs):
        torch.manual_seed(0)  # Pre-training masks and draws at random.
        return model(**(self.inputs() | kwargs))

    def loss(self, model: PreTrainedModel) -> torch.Tensor:
        outputs = self.run(model)
        if "loss" in outputs:
            return outputs.loss
        states = outputs.last_hidden_state
        return (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(3))).sum()


def masked_gene_inputs():
    inputs = cell_inputs()
    labels = inputs["input_ids"].where(inputs["input_ids"] % 3 == 0, -100)
    return inputs | {"labels": labels}


FAMILY = (
    ModelTester(
        LangCellCellModel,
        "cell_config",
        cell_inputs,
        {"last_hidden_state": (CELLS, GENES, CELL_WIDTH), "pooler_output": (CELLS, CELL_WIDTH)},
    ),
    ModelTester(
        LangCellTextModel,
        "text_config",
        text_inputs,
        {"last_hidden_state": (TEXTS, TOKENS, TEXT_WIDTH), "pooler_output": (TEXTS, TEXT_WIDTH)},
    ),
    ModelTester(
        LangCellModel,
        None,
        lambda: joint_inputs() | {"return_matching": True, "labels": torch.tensor([0, 3, 1])},
        {
            "loss": (),
            "logits_per_cell": (CELLS, TEXTS),
            "logits_per_text": (TEXTS, CELLS),
            "matching_logits": (CELLS, TEXTS, 2),
            "cell_embeds": (CELLS, SHARED_WIDTH),
            "text_embeds": (TEXTS, SHARED_WIDTH),
        },
    ),
    ModelTester(
        LangCellForMaskedLM, "cell_config", masked_gene_inputs, {"loss": (), "logits": (CELLS, GENES, VOCABULARY)}
    ),
    ModelTester(
        LangCellForSequenceClassification,
        "cell_config",
        lambda: cell_inputs() | {"labels": torch.tensor([0, 1, 1])},
        {"loss": (), "logits": (CELLS, 2)},
    ),
    ModelTester(
        LangCellForPreTraining,
        None,
        lambda: joint_inputs() | {"text_index": torch.tensor([0, 3, 1])},
        {
            "loss": (),
            "masked_gene_loss": (),
            "cell_cell_loss": (),
            "cell_text_loss": (),
            "matching_loss": (),
            "logits_per_cell": (CELLS, TEXTS),
        },
    ),
)
TESTERS = {tester.model_class: tester for tester in FAMILY}


@pytest.fixture(params=FAMILY, ids=lambda tester: tester.model_class.__name__)
def tester(request) -> ModelTester:
    return request.param


def assert_same(outputs, expected, names, tolerance=0.0):
    for name in names:
        torch.testing.assert_close(outputs[name], expected[name], atol=tolerance, rtol=0, msg=lambda m, n=name: n + m)


def assert_same_weights(model: nn.Module, expected: nn.Module):
    """Equal to the bit, dtype included."""
    weights, others = model.state_dict(), expected.state_dict()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype, name
        assert torch.equal(weight, others[name]), name


def scramble(model: nn.Module) -> nn.Module:
    """Gives every parameter, biases and norms too, values that no initialisation would give."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(2 + torch.rand(parameter.shape))
    return model


def assert_initialised(model: PreTrainedModel, names: set[str] | None = None):
    """Parameters (those in `names`, or all) are as after initialisation; each tower by its own `initializer_range`."""
    checked = 0
    assert not list(model.buffers())
    for name, parameter in model.named_parameters():
        if names is not None and name not in names:
            continue
        checked += 1
        owner, _, kind = name.rpartition(".")
        module = model.get_submodule(owner)
        assert torch.isfinite(parameter).all(), name
        if isinstance(module, nn.LayerNorm) or kind == "bias":
            assert (parameter == (kind == "weight")).all(), name
            continue
        if getattr(module, "padding_idx", None) is not None:
            assert (parameter[module.padding_idx] == 0).all(), name
            parameter = parameter[torch.arange(len(parameter)) != module.padding_idx]
        config = model.config
        for tower in ("cell_model", "text_model"):
            if name.startswith(tower):
                config = getattr(model, tower).config
        spread = config.initializer_range
        n = parameter.numel()
        assert abs(parameter.mean()) < 6 * spread / math.sqrt(n), name
        assert abs(parameter.std() / spread - 1) < 6 / math.sqrt(2 * n), name
    assert checked == (len(list(model.parameters())) if names is None else len(names))


class TestEveryModel:
    def test_shapes(self, tester):
        outputs = tester.run(tester.model())
        for name, shape in tester.shapes.items():
            assert outputs[name].shape == shape, name
            assert torch.isfinite(outputs[name]).all(), name

    def test_tuples(self, tester):
        model = tester.model()
        expected = tester.run(model).to_tuple()
        values = tester.run(model, return_dict=False)
        assert isinstance(values, tuple)
        assert len(values) == len(expected) >= len(tester.shapes)
        for value, name in zip(values, tester.shapes, strict=False):
            assert torch.equal(value, tester.run(model)[name])

    def test_tuples_by_config(self, tester):
        off = {"return_dict": False}
        config = tester.config(cell_config=off, text_config=off, return_dict=False)
        expected = tester.run(tester.model())
        for value, name in zip(tester.run(tester.model(config)), tester.shapes, strict=False):
            assert torch.equal(value, expected[name]), name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_round_trip(self, tester, dtype, tmp_path):
        model = tester.model().to(dtype)
        model.save_pretrained(tmp_path)
        again, report = tester.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert again.dtype == dtype
        assert not any(report.values()), report
        assert_same_weights(again, model)
        assert not again.training
        if dtype == torch.float32:
            assert_same(tester.run(again), tester.run(model), tester.shapes)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, tester, dtype, tmp_path):
        model = tester.model(tester.config(tiny_config))
        model.save_pretrained(tmp_path)
        half = tester.model_class.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in half.parameters()} == {dtype}
        outputs, expected = tester.run(half), tester.run(model)
        for name in tester.shapes:
            assert torch.isfinite(outputs[name]).all()
            torch.testing.assert_close(outputs[name].float(), expected[name], atol=0.3, rtol=0.1)

    def test_eager_equals_sdpa(self, tester, attention_calls):
        outputs = {}
        for implementation in ("eager", "sdpa"):
            attention_calls.clear()
            outputs[implementation] = tester.run(tester.model(attn_implementation=implementation))
            assert set(attention_calls) == {implementation}
        assert_same(outputs["sdpa"], outputs["eager"], tester.shapes, 1e-5)

    def test_flex_equals_sdpa(self, tester, attention_calls):
        expected = tester.run(tester.model(attn_implementation="sdpa"))
        attention_calls.clear()
        try:
            model = tester.model(attn_implementation="flex_attention")
        except ImportError as error:
            pytest.skip(f"the installed torch has no flex attention: {error}")
        # Not compiled: what is asked is the mask, and a compilation takes minutes on a CPU.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            outputs = tester.run(model)
        assert attention_calls["flex_attention"] > 0
        assert_same(outputs, expected, tester.shapes, 1e-5)

    def test_unknown_attention(self, tester):
        with pytest.raises(ValueError, match=r"nope.*not supported"):
            tester.model(attn_implementation="nope")

    @pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
    def test_flash_attention_is_supported(self, tester):
        with pytest.raises(ImportError, match=r"FlashAttention2 .* installed"):
            tester.model(attn_implementation="flash_attention_2")

    def test_trainer_divides_accumulated_losses(self, tester):
        # Without this word, Trainer takes the arguments that are passed on for a sign that the model does so.
        assert tester.model_class.accepts_loss_kwargs is False

    def test_gradient_checkpointing(self, tester):
        gradients, layer_calls = [], []
        for checkpointing in (False, True):
            model = tester.model().train()
            if checkpointing:
                (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
            calls: list[nn.Module] = []
            for module in model.modules():
                if isinstance(module, modeling_langcell.LangCellSelfAttention):
                    module.query.register_forward_hook(lambda module, args, out, calls=calls: calls.append(module))
            loss = tester.loss(model)
            in_forward = len(calls)
            loss.backward()
            layer_calls.append(len(calls) / in_forward)
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        # Every layer runs once, or once more in the backward pass.
        assert layer_calls == [1, 2]
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-6)
        assert max(gradient.abs().max() for gradient in gradients[0].values()) > 1e-3

    def test_initialised(self, tester):
        ranges = {"cell_config": {"initializer_range": 0.02}, "text_config": {"initializer_range": 0.03}}
        assert_initialised(tester.model(tester.config(tiny_config, initializer_range=0.05, **ranges)))

    def test_missing_weights_are_initialised(self, tester, tmp_path):
        config = tester.config(tiny_config, text_config={"initializer_range": 0.03}, initializer_range=0.05)
        model = scramble(tester.model(config))
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        for half in (0, 1):
            kept = dict(sorted(weights.items())[half::2])
            save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
            again, report = tester.model_class.from_pretrained(tmp_path, output_loading_info=True)
            assert report["missing_keys"] - {"lm_head.decoder.weight"} == weights.keys() - kept.keys()
            for name in kept:
                assert torch.equal(again.state_dict()[name], weights[name]), name
            assert_initialised(again, weights.keys() - kept.keys())
            if (head := again.get_output_embeddings()) is not None:
                assert head.weight is again.get_input_embeddings().weight

    def test_resized_embeddings(self, tester, tmp_path):
        model = scramble(tester.model())
        before = copy.deepcopy(model)
        rows = len(model.get_input_embeddings().weight)
        model.resize_token_embeddings(rows + 5)
        model.save_pretrained(tmp_path)
        for resized in (model, tester.model_class.from_pretrained(tmp_path)):
            embeddings = resized.get_input_embeddings()
            assert embeddings.num_embeddings == rows + 5
            assert torch.equal(embeddings.weight[:rows], before.get_input_embeddings().weight)
            if tester.tower is None:
                sizes = resized.config.cell_config.vocab_size, resized.config.text_config.vocab_size
                assert sizes == (VOCABULARY + 5, WORDS)
            else:
                assert resized.config.vocab_size == rows + 5
            if (head := resized.get_output_embeddings()) is not None:
                assert head.weight is embeddings.weight
                assert head.out_features == rows + 5
                assert torch.equal(head.bias[:rows], before.get_output_embeddings().bias)
        inputs = tester.inputs()
        ids = inputs[model.main_input_name]
        ids[0, 1] = rows + 4
        model(**inputs)

    def test_replaced_embeddings(self, tester):
        model = tester.model()
        embeddings = nn.Embedding(7, model.get_input_embeddings().embedding_dim)
        model.set_input_embeddings(embeddings)
        assert model.get_input_embeddings() is embeddings
        with pytest.raises(IndexError):
            tester.run(model)

    def test_too_long(self, tester):
        model = tester.model()
        inputs = tester.inputs()
        limit = getattr(model, "cell_model", model).config.max_position_embeddings
        prefix = model.main_input_name.removesuffix("input_ids")
        for name, length in ((f"{prefix}input_ids", limit + 1), (f"{prefix}attention_mask", limit + 1)):
            inputs[name] = F.pad(inputs[name], (0, length - inputs[name].shape[1]), value=1)
        with pytest.raises(ValueError, match=f"sequence of {limit + 1} is longer than .*{limit}.*max_length"):
            model(**inputs)


@pytest.fixture
def attention_calls(monkeypatch) -> Counter:
    """Counts the calls of each attention implementation."""
    calls: Counter = Counter()

    class Recorder:
        def get_interface(self, name, default):
            calls[name] += 1
            return ALL_ATTENTION_FUNCTIONS.get_interface(name, default)

    monkeypatch.setattr(modeling_langcell, "ALL_ATTENTION_FUNCTIONS", Recorder())
    return calls


def bert_with_weights_of(model: PreTrainedModel, **config) -> BertModel:
    """A BertModel whose token types, which the family does not have, are zero."""
    bert = BertModel(BertConfig(**(model.config.to_dict() | config)), add_pooling_layer=False).eval()
    report = bert.load_state_dict(model.state_dict(), strict=False)
    assert report.missing_keys == ["embeddings.token_type_embeddings.weight"]
    assert not report.unexpected_keys
    nn.init.zeros_(bert.embeddings.token_type_embeddings.weight)
    return bert


class TestTowers:
    def test_cell_tower_is_bert(self):
        """Same names, same numbers: BERT and Geneformer weights fit."""
        model = TESTERS[LangCellCellModel].model(attn_implementation="eager")
        bert = bert_with_weights_of(model)
        out, expected = model(**cell_inputs()), bert(**cell_inputs())
        torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("multimodal", [False, True])
    def test_text_tower_is_bert(self, multimodal):
        tester = TESTERS[LangCellTextModel]
        # BertModel reads cross-attention states of its own width only.
        model = tester.model(tester.config(cell_config={"hidden_size": TEXT_WIDTH}))
        bert = bert_with_weights_of(model, is_decoder=True, add_cross_attention=True, use_cache=False)
        inputs = text_inputs()
        if multimodal:
            cells = torch.randn(TEXTS, GENES, TEXT_WIDTH)
            mask = torch.arange(GENES) < torch.tensor([[12], [5], [9], [1]])
            inputs |= {"encoder_hidden_states": cells, "encoder_attention_mask": mask.long()}
        out, expected = model(**inputs), bert(**inputs, is_causal=False)
        torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("model_class", [LangCellCellModel, LangCellTextModel])
    def test_embeddings_in_place_of_ids(self, model_class):
        tester = TESTERS[model_class]
        model, inputs = tester.model(), tester.inputs()
        expected = model(**inputs)
        embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
        assert_same(model(inputs_embeds=embedded, **inputs), expected, tester.shapes)
        for nothing_or_both in ({}, {"input_ids": torch.ones(1, 3, dtype=torch.long), "inputs_embeds": embedded}):
            with pytest.raises(ValueError, match="exactly one"):
                model(**nothing_or_both)

    def test_cell_attentions_and_hidden_states(self):
        model = TESTERS[LangCellCellModel].model(attn_implementation="eager")
        inputs = cell_inputs()
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
        assert [a.shape for a in out.attentions] == [(CELLS, 2, GENES, GENES)] * 2
        assert [h.shape for h in out.hidden_states] == [(CELLS, GENES, CELL_WIDTH)] * 3
        assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
        assert torch.equal(out.hidden_states[0], model.embeddings(inputs["input_ids"]))
        for attention in out.attentions:
            torch.testing.assert_close(attention.sum(-1), torch.ones(CELLS, 2, GENES))
            assert (attention.transpose(1, 3)[inputs["attention_mask"] == 0] == 0).all()

    @pytest.mark.parametrize("model_class", [LangCellForMaskedLM, LangCellForSequenceClassification])
    def test_heads_pass_on_attentions_and_hidden_states(self, model_class):
        tester = TESTERS[model_class]
        out = tester.run(tester.model(attn_implementation="eager"), output_attentions=True, output_hidden_states=True)
        assert [a.shape for a in out.attentions] == [(CELLS, 2, GENES, GENES)] * 2
        assert [h.shape for h in out.hidden_states] == [(CELLS, GENES, CELL_WIDTH)] * 3

    def test_text_attentions_and_hidden_states(self):
        model = TESTERS[LangCellTextModel].model(attn_implementation="eager")
        inputs = text_inputs()
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
        assert [a.shape for a in out.attentions] == [(TEXTS, 3, TOKENS, TOKENS)] * 3
        assert [h.shape for h in out.hidden_states] == [(TEXTS, TOKENS, TEXT_WIDTH)] * 4
        assert not out.cross_attentions

    def test_cross_attentions(self):
        model = TESTERS[LangCellTextModel].model(attn_implementation="eager")
        mask = cell_inputs()["attention_mask"]
        states = torch.randn(CELLS, GENES, CELL_WIDTH)
        out = model(
            **text_inputs(),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            texts_per_cell=TEXTS,
            output_attentions=True,
            output_hidden_states=True,
        )
        pairs = CELLS * TEXTS
        assert [a.shape for a in out.cross_attentions] == [(CELLS, 3, TEXTS * TOKENS, GENES)] * 3
        assert [a.shape[0] for a in out.attentions] == [TEXTS, pairs, pairs]
        assert [h.shape[0] for h in out.hidden_states] == [TEXTS, pairs, pairs, pairs]
        for attention in out.cross_attentions:
            torch.testing.assert_close(attention.sum(-1), torch.ones(CELLS, 3, TEXTS * TOKENS))
            assert (attention.transpose(1, 3)[mask == 0] == 0).all()

    def test_sdpa_returns_no_attentions(self):
        model = TESTERS[LangCellCellModel].model(attn_implementation="sdpa")
        assert not model(**cell_inputs(), output_attentions=True).attentions

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_pooling_of_texts(self, pooling):
        tester = TESTERS[LangCellTextModel]
        model = tester.model(tester.config(text_config={"pooling": pooling}))
        inputs = text_inputs()
        out = model(**inputs)
        for text, mask in enumerate(inputs["attention_mask"].bool()):
            states = out.last_hidden_state[text, mask]
            expected = states[0] if pooling == "cls" else states.mean(dim=0)
            torch.testing.assert_close(out.pooler_output[text], expected, atol=1e-5, rtol=0)
            alone = model(inputs["input_ids"][text, mask][None]).pooler_output[0]
            torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)

    def test_multimodal_texts_are_pooled_by_cls(self):
        tester = TESTERS[LangCellTextModel]
        model = tester.model(tester.config(text_config={"pooling": "mean"}))
        out = model(**text_inputs(), encoder_hidden_states=torch.randn(CELLS, GENES, CELL_WIDTH), texts_per_cell=TEXTS)
        assert torch.equal(out.pooler_output, out.last_hidden_state[:, 0])

    @pytest.mark.parametrize("masked", [True, False])
    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("model_class", [LangCellCellModel, LangCellTextModel])
    def test_pooled_only_is_the_same_with_less_work(self, model_class, implementation, masked):
        tester = TESTERS[model_class]
        model, inputs = tester.model(attn_implementation=implementation), tester.inputs()
        if not masked:
            del inputs["attention_mask"]
        whole = model(**inputs)
        shapes = []
        model.encoder.layer[-1].output.dense.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[1]))
        pooled = model(**inputs, pooled_only=True)
        torch.testing.assert_close(pooled.pooler_output, whole.pooler_output, atol=1e-5, rtol=0)
        assert shapes == [1]
        assert pooled.last_hidden_state.shape[1] == 1

    def test_pooled_only_has_the_same_gradients(self):
        tester = TESTERS[LangCellCellModel]
        model = scramble(tester.model()).double()  # In float32 the rounding of such weights is another by the machine.
        found = []
        for only in (False, True):
            model.zero_grad()
            model(**tester.inputs(), pooled_only=only).pooler_output.square().sum().backward()
            found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        whole, pooled = found
        for name in whole:
            torch.testing.assert_close(pooled[name], whole[name], atol=1e-9, rtol=1e-9, msg=name)

    def test_pooled_only_through_adapters(self):
        adapted = get_peft_model(
            TESTERS[LangCellCellModel].model(),
            LoraConfig(target_modules=["key", "value"], init_lora_weights=False),
        ).eval()
        inputs = cell_inputs()
        whole = adapted(**inputs).pooler_output
        torch.testing.assert_close(adapted(**inputs, pooled_only=True).pooler_output, whole, atol=1e-5, rtol=0)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(**inputs, pooled_only=True).pooler_output, whole, atol=1e-3)

    def test_pooled_only_of_mean_pooled_texts(self):
        tester = TESTERS[LangCellTextModel]
        model = tester.model(tester.config(text_config={"pooling": "mean"}))
        assert_same(model(**text_inputs(), pooled_only=True), model(**text_inputs()), tester.shapes)

    def test_pooled_only_of_pairs(self):
        model = TESTERS[LangCellTextModel].model()
        cells = {
            "encoder_hidden_states": torch.randn(CELLS, GENES, CELL_WIDTH),
            "encoder_attention_mask": cell_inputs()["attention_mask"],
            "texts_per_cell": TEXTS,
        }
        whole, pooled = (model(**text_inputs(), **cells, pooled_only=only) for only in (False, True))
        assert pooled.last_hidden_state.shape == (CELLS * TEXTS, 1, TEXT_WIDTH)
        torch.testing.assert_close(pooled.pooler_output, whole.pooler_output, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("texts_per_cell", [None, 1, 3])
    def test_texts_that_do_not_divide(self, texts_per_cell):
        model = TESTERS[LangCellTextModel].model()
        with pytest.raises(ValueError, match="4 texts do not pair with 3 cells"):
            model(
                **text_inputs(),
                encoder_hidden_states=torch.randn(CELLS, GENES, CELL_WIDTH),
                texts_per_cell=texts_per_cell,
            )

    def test_compiles_without_graph_breaks(self):
        model = TESTERS[LangCellCellModel].model()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            assert_same(compiled(**cell_inputs()), model(**cell_inputs()), ["last_hidden_state"], 1e-6)


@pytest.fixture
def model() -> LangCellModel:
    return TESTERS[LangCellModel].model()


def rows_seen(module: nn.Module) -> list[int]:
    """Fills with the number of rows of each call of a module."""
    rows: list[int] = []
    module.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    return rows


class TestArguments:
    def test_unknown_ones_are_refused(self, tester):
        model = tester.model()
        with pytest.raises(TypeError, match=f"{tester.model_class.__name__} has no argument 'atention_mask': did you"):
            tester.run(model, atention_mask=None)
        with pytest.raises(TypeError, match="has no argument 'token_type_ids'"):
            tester.run(model, token_type_ids=None)

    @pytest.mark.parametrize("model_class", [LangCellCellModel, LangCellForMaskedLM, LangCellForSequenceClassification])
    def test_positions(self, model_class):
        model, inputs = TESTERS[model_class].model(), cell_inputs()
        positions = torch.arange(inputs["input_ids"].shape[1])
        expected = model(**inputs)[0]
        assert torch.equal(model(**inputs, position_ids=positions)[0], expected)
        assert (model(**inputs, position_ids=positions.flip(0))[0] - expected).abs().max() > 1e-3

    @pytest.mark.parametrize("model_class", [LangCellCellModel, LangCellForMaskedLM, LangCellForSequenceClassification])
    def test_cells_under_their_names_in_a_joint_batch(self, model_class):
        model, inputs = TESTERS[model_class].model(), cell_inputs()
        joint = {f"cell_{name}": tensor for name, tensor in inputs.items()}
        assert torch.equal(model(**joint)[0], model(**inputs)[0])
        with pytest.raises(TypeError, match=r"^input_ids and cell_input_ids are the same here: give one of them\.$"):
            model(**joint_inputs())


class TestResizing:
    @pytest.mark.parametrize("model_class", [LangCellForMaskedLM, LangCellForPreTraining])
    def test_cls_stays_cls(self, model_class, tmp_path):
        model = TESTERS[model_class].model()
        expected = TESTERS[model_class].run(model)
        model.resize_token_embeddings(VOCABULARY + 5)
        cell_config = getattr(model.config, "cell_config", model.config)
        assert (cell_config.vocab_size, cell_config.cls_token_id) == (VOCABULARY + 5, VOCABULARY - 1)
        model.save_pretrained(tmp_path)
        again = model_class.from_pretrained(tmp_path)
        if model_class is LangCellForMaskedLM:
            assert_same(
                {"logits": TESTERS[model_class].run(again).logits[..., :VOCABULARY]}, expected, ["logits"], 1e-5
            )
        else:
            masking = again.masked_gene_modelling
            ids = torch.arange(2, VOCABULARY + 5).repeat(50, 1)
            shown, labels = masking.corrupt(ids)
            assert (shown[:, VOCABULARY - 3 :] == ids[:, VOCABULARY - 3 :]).all(), "<cls> and what follows is no gene"
            assert labels.max() == VOCABULARY - 2


class TestJointModel:
    def test_similarity(self, model):
        out = model(**joint_inputs())
        for embeds in (out.cell_embeds, out.text_embeds):
            torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
        cosine = F.cosine_similarity(out.cell_embeds[:, None], out.text_embeds[None], dim=-1)
        torch.testing.assert_close(out.logits_per_cell, cosine / 0.05, atol=1e-4, rtol=0)
        assert torch.equal(out.logits_per_text, out.logits_per_cell.T)
        assert out.loss is None
        assert out.matching_logits is None

    def test_temperature(self):
        tester = TESTERS[LangCellModel]
        logits = [tester.run(tester.model(tester.config(temperature=t))).logits_per_cell for t in (0.05, 0.5)]
        torch.testing.assert_close(logits[0], 10 * logits[1])

    def test_contract(self, model):
        out = model(**joint_inputs(), return_matching=True)
        assert out.matching_logits.shape == (CELLS, TEXTS, 2)
        assert out.loss is None

    def test_features(self, model):
        inputs = joint_inputs()
        out = model(**inputs)
        cells = model.get_cell_features(
            cell_input_ids=inputs["cell_input_ids"], cell_attention_mask=inputs["cell_attention_mask"]
        )
        texts = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        torch.testing.assert_close(cells.pooler_output, out.cell_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(texts.pooler_output, out.text_embeds, atol=1e-5, rtol=0)
        assert_same(cells, out.cell_model_output, ["last_hidden_state"], 1e-5)
        assert_same(texts, out.text_model_output, ["last_hidden_state"], 1e-5)

    @pytest.mark.parametrize("pooled_only", [False, True])
    def test_features_keep_what_the_towers_return(self, pooled_only):
        model = TESTERS[LangCellModel].model(attn_implementation="eager")
        options = {"output_hidden_states": True, "output_attentions": True, "pooled_only": pooled_only}
        for read, inputs, layers, width in (
            (model.get_cell_features, cell_inputs(), 2, CELL_WIDTH),
            (model.get_text_features, text_inputs(), 3, TEXT_WIDTH),
        ):
            found = read(*inputs.values(), **options)
            assert len(found.hidden_states) == layers + 1
            assert len(found.attentions) == layers
            length = 1 if pooled_only else inputs["input_ids"].shape[1]
            assert found.last_hidden_state.shape == (*inputs["input_ids"].shape[:1], length, width)
            torch.testing.assert_close(found.pooler_output, read(*inputs.values()).pooler_output, atol=1e-5, rtol=0)
            as_tuple = read(*inputs.values(), return_dict=False)
            assert torch.equal(as_tuple[1], read(*inputs.values()).pooler_output)
            with pytest.raises(TypeError, match="no argument 'output_attention': did you mean 'output_attentions'"):
                read(*inputs.values(), output_attention=True)

    def test_cross_attentions(self):
        model = TESTERS[LangCellModel].model(attn_implementation="eager")
        assert model(**joint_inputs()).matching_model_output is None
        quick = model(**joint_inputs(), return_matching=True)
        assert quick.matching_model_output.last_hidden_state.shape == (CELLS * TEXTS, 1, TEXT_WIDTH)
        out = model(**joint_inputs(), return_matching=True, output_attentions=True)
        assert_same(out, quick, ["matching_logits"], 1e-5)
        attentions = out.matching_model_output.cross_attentions
        assert [one.shape for one in attentions] == [(CELLS, 3, TEXTS * TOKENS, GENES)] * 3
        hidden = joint_inputs()["cell_attention_mask"][:, None, None] == 0
        for one in attentions:
            torch.testing.assert_close(one.sum(dim=-1), torch.ones(one.shape[:-1]))
            assert not one.masked_select(hidden).any()

    def test_projections_are_of_the_pooled_states(self, model):
        out = model(**joint_inputs())
        cells = model.cell_projection(out.cell_model_output.last_hidden_state[:, 0])
        texts = model.text_projection(out.text_model_output.pooler_output)
        torch.testing.assert_close(out.cell_embeds, cells / cells.norm(dim=-1, keepdim=True))
        torch.testing.assert_close(out.text_embeds, texts / texts.norm(dim=-1, keepdim=True))

    def test_loss(self, model):
        labels = torch.tensor([0, 3, 1])
        out = model(**joint_inputs(), labels=labels)
        similarity = -out.logits_per_cell.log_softmax(dim=1)[range(CELLS), labels].mean()
        torch.testing.assert_close(out.loss, similarity)
        out = model(**joint_inputs(), labels=labels, return_matching=True)
        match = out.matching_logits.softmax(dim=2)[:, :, 1]
        matching = -match.log_softmax(dim=1)[range(CELLS), labels].mean()
        torch.testing.assert_close(out.loss, similarity + matching)

    def test_without_masks(self, model):
        inputs = joint_inputs()
        inputs["cell_attention_mask"] = torch.ones_like(inputs["cell_attention_mask"])
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        expected = model(**inputs, return_matching=True)
        out = model(cell_input_ids=inputs["cell_input_ids"], input_ids=inputs["input_ids"], return_matching=True)
        assert_same(out, expected, ["logits_per_cell", "matching_logits"], 1e-5)

    def test_cells_without_texts(self, model):
        with pytest.raises(ValueError, match="get_cell_features"):
            model(**{name: tensor for name, tensor in joint_inputs().items() if name.startswith("cell")})

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_a_cell_is_the_same_in_every_batch(self, implementation):
        model = TESTERS[LangCellModel].model(attn_implementation=implementation)

        def embed(*inputs):
            return model.get_cell_features(*inputs).pooler_output

        ids, mask = cell_inputs().values()
        expected = embed(ids, mask)
        order = torch.tensor([2, 0, 1])
        views = {
            "other order": embed(ids[order], mask[order])[order.argsort()],
            "padded further": embed(F.pad(ids, (0, 20)), F.pad(mask, (0, 20))),
            "other padding": embed(ids.masked_fill(mask == 0, 7), mask),
            "alone": torch.cat([embed(ids[i : i + 1], mask[i : i + 1]) for i in range(CELLS)]),
            "alone and unpadded": torch.cat([embed(ids[i][mask[i] == 1][None]) for i in range(CELLS)]),
        }
        for name, embeds in views.items():
            torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0, msg=lambda m, n=name: n + m)
        # The cells themselves are far apart, and order within a cell matters.
        assert torch.pdist(expected).min() > 0.1
        swapped = ids[:, [0, 2, 1, *range(3, GENES)]]
        assert (embed(swapped, mask) - expected).norm(dim=1).min() > 0.01

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_matching_grid_is_one_pair_at_a_time(self, implementation):
        model = TESTERS[LangCellModel].model(attn_implementation=implementation)
        inputs = joint_inputs()
        grid = model(**inputs, return_matching=True).matching_logits
        assert grid.flatten(0, 1).std(dim=0).min() > 0.1
        for cell in range(CELLS):
            cell_kept = inputs["cell_attention_mask"][cell] == 1
            for text in range(TEXTS):
                kept = inputs["attention_mask"][text] == 1
                pair = model(
                    cell_input_ids=inputs["cell_input_ids"][cell, cell_kept][None],
                    input_ids=inputs["input_ids"][text, kept][None],
                    return_matching=True,
                ).matching_logits
                torch.testing.assert_close(pair[0, 0], grid[cell, text], atol=1e-5, rtol=0)

    def test_matching_reads_the_cls_state(self, model):
        """The head reads the state of the text after it has read the cell, not of the text alone."""
        inputs = joint_inputs()
        states = torch.randn(CELLS, GENES, CELL_WIDTH)
        mask = inputs["cell_attention_mask"]
        grid = model.get_matching_logits(states, mask, inputs["input_ids"], inputs["attention_mask"])
        for cell in range(CELLS):
            read = model.text_model(
                **text_inputs(),
                encoder_hidden_states=states[[cell] * TEXTS],
                encoder_attention_mask=mask[[cell] * TEXTS],
            )
            expected = model.matching_head(read.last_hidden_state[:, 0])
            torch.testing.assert_close(grid[cell], expected, atol=1e-5, rtol=0)

    def test_matching_in_every_order_of_texts(self, model):
        inputs = joint_inputs()
        grid = model(**inputs, return_matching=True).matching_logits
        for order in ([3, 2, 1, 0], [1, 0, 3, 2], [2, 0]):
            inputs |= {name: text_inputs()[name][order] for name in ("input_ids", "attention_mask")}
            reordered = model(**inputs, return_matching=True).matching_logits
            torch.testing.assert_close(reordered, grid[:, order], atol=1e-5, rtol=0)

    def test_texts_of_each_cell(self, model):
        """`texts_per_cell` below the number of texts: block `i` of texts is read against cell `i`."""
        ids, mask = cell_inputs().values()
        states = model.cell_model(ids, mask).last_hidden_state
        texts = text_inputs()
        grid = model.get_matching_logits(states, mask, **texts)
        own = torch.tensor([[3, 0], [1, 2], [0, 1]])
        blocks = {name: tensor[own.flatten()] for name, tensor in texts.items()}
        pairs = model.get_matching_logits(states, mask, **blocks, texts_per_cell=2)
        assert pairs.shape == (CELLS, 2, 2)
        torch.testing.assert_close(pairs, grid[torch.arange(CELLS)[:, None], own], atol=1e-5, rtol=0)

    def test_work_of_matching(self, model):
        """Keys and values of a cell are computed once, and texts become pairs only where they meet a cell."""
        layers = model.text_model.encoder.layer
        keys = [rows_seen(layer.crossattention.self.key) for layer in layers]
        values = [rows_seen(layer.crossattention.self.value) for layer in layers]
        self_attention = [rows_seen(layer.attention.self.query) for layer in layers]
        inputs = joint_inputs()
        states = torch.randn(CELLS, GENES, CELL_WIDTH)
        model.get_matching_logits(states, None, inputs["input_ids"], inputs["attention_mask"])
        assert keys == values == [[CELLS]] * 3
        assert self_attention == [[TEXTS], [CELLS * TEXTS], [CELLS * TEXTS]]

    def test_attention_of_each_tower(self, model, attention_calls, tmp_path):
        model.save_pretrained(tmp_path)
        towers = {"cell_config": "eager", "text_config": "sdpa"}
        mixed = LangCellModel.from_pretrained(tmp_path, attn_implementation=towers)
        out = mixed(**joint_inputs(), output_attentions=True)
        assert attention_calls == {"eager": 2, "sdpa": 3}
        assert len(out.cell_model_output.attentions) == 2
        assert not out.text_model_output.attentions
        mixed.set_attn_implementation({"cell_config": "sdpa", "text_config": "eager"})
        out = mixed(**joint_inputs(), output_attentions=True)
        assert not out.cell_model_output.attentions
        assert len(out.text_model_output.attentions) == 3

    def test_cross_attention_stays_on_sdpa(self, attention_calls):
        model = TESTERS[LangCellModel].model(attn_implementation="flex_attention")
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(**joint_inputs(), return_matching=True)
        # Two cell layers, three text layers alone and three in pairs; the latter three also look at the cells, and the
        # last of them reads for `[CLS]` alone, without a kernel.
        assert attention_calls == {"flex_attention": 2 + 3 + 2, "sdpa": 3}


@pytest.fixture(scope="module", params=[LangCellForPreTraining, LangCellModel], ids=lambda c: c.__name__)
def joint_checkpoint(request, tmp_path_factory) -> tuple[Path, PreTrainedModel]:
    """A folder of a joint model with scrambled weights, and that model."""
    model = scramble(TESTERS[request.param].model())
    folder = tmp_path_factory.mktemp(request.param.__name__)
    model.save_pretrained(folder)
    return folder, model


class TestCheckpoints:
    def test_cell_tower(self, joint_checkpoint):
        folder, model = joint_checkpoint
        tower = LangCellCellModel.from_pretrained(folder)
        assert tower.config.model_type == "langcell_cell"
        assert_same_weights(tower, model.cell_model)

    def test_text_tower(self, joint_checkpoint):
        folder, model = joint_checkpoint
        tower = LangCellTextModel.from_pretrained(folder)
        assert tower.config.model_type == "langcell_text"
        assert_same_weights(tower, model.text_model)

    def test_masked_gene_modelling(self, joint_checkpoint):
        folder, model = joint_checkpoint
        head, report = LangCellForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert_same_weights(head.cell_model, model.cell_model)
        if isinstance(model, LangCellForPreTraining):
            assert_same_weights(head.lm_head, model.lm_head)
            assert not report["missing_keys"]
        else:
            assert {name.split(".")[0] for name in report["missing_keys"]} == {"lm_head"}
            assert_initialised(head, report["missing_keys"])

    def test_classification(self, joint_checkpoint):
        folder, model = joint_checkpoint
        classifier, report = LangCellForSequenceClassification.from_pretrained(
            folder, num_labels=3, output_loading_info=True
        )
        assert_same_weights(classifier.cell_model, model.cell_model)
        assert classifier.classifier.out_features == classifier.config.num_labels == 3
        assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
        assert_initialised(classifier, report["missing_keys"])

    def test_joint_model(self, joint_checkpoint):
        folder, model = joint_checkpoint
        joint, report = LangCellModel.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in joint.state_dict().items())

    def test_pretraining(self, joint_checkpoint):
        folder, model = joint_checkpoint
        pretraining, report = LangCellForPreTraining.from_pretrained(folder, output_loading_info=True)
        assert not report["unexpected_keys"]
        weights = pretraining.state_dict()
        assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
        assert_initialised(pretraining, report["missing_keys"])

    def test_heads_on_a_saved_cell_tower(self, joint_checkpoint, tmp_path):
        _, model = joint_checkpoint
        model.cell_model.save_pretrained(tmp_path)
        for head in (LangCellForMaskedLM, LangCellForSequenceClassification):
            loaded, report = head.from_pretrained(tmp_path, output_loading_info=True)
            assert_same_weights(loaded.cell_model, model.cell_model)
            assert not report["unexpected_keys"]
            assert_initialised(loaded, report["missing_keys"])

    def test_padding_stays_zero(self, tmp_path):
        TESTERS[LangCellModel].model().save_pretrained(tmp_path)
        for model_class in (LangCellForMaskedLM, LangCellForPreTraining):
            embeddings = model_class.from_pretrained(tmp_path).get_input_embeddings().weight
            assert (embeddings[0] == 0).all()
            assert (embeddings[1:] != 0).any(dim=1).all()


@pytest.mark.parametrize("model_class", [LangCellForMaskedLM, LangCellForPreTraining])
class TestTiedHead:
    def test_shared(self, model_class, tmp_path):
        model = TESTERS[model_class].model()
        model.save_pretrained(tmp_path)
        assert "lm_head.decoder.weight" not in load_file(tmp_path / "model.safetensors")
        for tied in (model, model_class.from_pretrained(tmp_path), copy.deepcopy(model)):
            assert tied.lm_head.decoder.weight is tied.cell_model.embeddings.word_embeddings.weight

    def test_not_shared_on_request(self, model_class, tmp_path):
        tester = TESTERS[model_class]
        model = scramble(tester.model(tester.config(cell_config={"tie_word_embeddings": False})))
        assert model.lm_head.decoder.weight is not model.cell_model.embeddings.word_embeddings.weight
        model.save_pretrained(tmp_path)
        assert_same_weights(model_class.from_pretrained(tmp_path), model)

    def test_gradient_of_both_uses(self, model_class):
        tester = TESTERS[model_class]
        model = tester.model().train()
        tester.loss(model).backward()
        unseen = torch.ones(VOCABULARY, dtype=torch.bool)
        unseen[tester.inputs()[model.main_input_name].unique()] = False
        gradient = model.get_input_embeddings().weight.grad
        # Genes that no cell of the batch has are still pushed away from as predictions.
        assert unseen.sum() > 10
        assert (gradient[unseen].abs().sum(dim=1) > 0).all()


class TestAutoClasses:
    @pytest.mark.parametrize("model_class", [LangCellCellModel, LangCellTextModel, LangCellModel])
    def test_auto_model(self, model_class, tmp_path):
        model = TESTERS[model_class].model()
        model.save_pretrained(tmp_path)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is model_class.config_class
        assert type(AutoModel.from_config(config)) is model_class
        loaded = AutoModel.from_pretrained(tmp_path)
        assert type(loaded) is model_class
        assert_same_weights(loaded, model)

    @pytest.mark.parametrize(
        ("auto", "model_class"),
        [
            (AutoModelForMaskedLM, LangCellForMaskedLM),
            (AutoModelForSequenceClassification, LangCellForSequenceClassification),
            (AutoModelForPreTraining, LangCellForPreTraining),
        ],
    )
    def test_auto_heads(self, auto, model_class, tmp_path):
        model = TESTERS[model_class].model()
        model.save_pretrained(tmp_path)
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is model_class
        assert_same_weights(loaded, model)
        assert type(AutoModel.from_pretrained(tmp_path)).__name__ in ("LangCellCellModel", "LangCellModel")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_heads_of_a_joint_checkpoint(self, dtype, tmp_path):
        """They load its cell tower, and are from then on models with a cell tower's config."""
        joint = TESTERS[LangCellForPreTraining].model().to(dtype)
        joint.save_pretrained(tmp_path / "joint")
        masked, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "joint", output_loading_info=True)
        assert type(masked) is LangCellForMaskedLM
        assert not report["missing_keys"]
        assert masked.dtype == dtype
        assert torch.equal(masked.lm_head.dense.weight, joint.lm_head.dense.weight)
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "joint", num_labels=5)
        assert type(classifier) is LangCellForSequenceClassification
        assert_same_weights(classifier.cell_model, joint.cell_model)
        assert classifier.classifier.out_features == 5
        classifier.save_pretrained(tmp_path / "classifier")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
        assert_same_weights(again, classifier)
        config = AutoConfig.from_pretrained(tmp_path / "joint", num_labels=3)
        assert AutoModelForSequenceClassification.from_config(config).config.num_labels == 3
        assert type(AutoModelForMaskedLM.from_config(config).config) is type(config.cell_config)


class TestAdapters:
    @pytest.mark.parametrize("model_class", [LangCellModel, LangCellForSequenceClassification])
    def test_auto_peft_model(self, model_class, tmp_path):
        """An adapter with peft's own choice of modules loads with its base model."""
        TESTERS[model_class].model().save_pretrained(tmp_path / "base")
        model = get_peft_model(model_class.from_pretrained(tmp_path / "base"), LoraConfig(init_lora_weights=False))
        adapted = {name.split(".")[-1] for name, _ in model.named_modules() if hasattr(_, "lora_A")}
        assert adapted == {"query", "value"}
        model.save_pretrained(tmp_path / "adapter")
        again = AutoPeftModel.from_pretrained(tmp_path / "adapter")
        assert_same(TESTERS[model_class].run(again), TESTERS[model_class].run(model.eval()), ["loss"], 1e-5)


class TestMaskedGeneHead:
    def test_loss(self):
        tester = TESTERS[LangCellForMaskedLM]
        out, labels = tester.run(tester.model()), tester.inputs()["labels"]
        asked = labels != -100
        expected = -out.logits[asked].log_softmax(dim=-1)[range(asked.sum()), labels[asked]].mean()
        torch.testing.assert_close(out.loss, expected)

    def test_no_loss_without_labels(self):
        assert TESTERS[LangCellForMaskedLM].model()(**cell_inputs()).loss is None


class TestClassification:
    def model(self, **config):
        tester = TESTERS[LangCellForSequenceClassification]
        return tester.model(tester.config(cell_config=config))

    def test_logits_are_of_the_cls_state(self):
        model = self.model(num_labels=3)
        states = model.cell_model(**cell_inputs()).last_hidden_state[:, 0]
        torch.testing.assert_close(model(**cell_inputs()).logits, model.classifier(states))

    def test_single_label(self):
        model, labels = self.model(num_labels=4), torch.tensor([3, 0, 2])
        out = model(**cell_inputs(), labels=labels)
        torch.testing.assert_close(out.loss, -out.logits.log_softmax(dim=1)[range(CELLS), labels].mean())
        assert model.config.problem_type == "single_label_classification"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.long], ids=str)
    @pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
    def test_multi_label(self, problem_type, dtype):
        model = self.model(num_labels=4, problem_type=problem_type)
        labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
        out = model(**cell_inputs(), labels=labels.to(dtype))
        p = out.logits.sigmoid()
        expected = -torch.where(labels == 1, p, 1 - p).log().mean()
        torch.testing.assert_close(out.loss, expected)
        assert model.config.problem_type == "multi_label_classification"

    @pytest.mark.parametrize("shape", [(CELLS,), (CELLS, 1)])
    def test_regression(self, shape):
        model, labels = self.model(num_labels=1), torch.tensor([0.5, -1.0, 2.0])
        out = model(**cell_inputs(), labels=labels.reshape(shape))
        torch.testing.assert_close(out.loss, (out.logits[:, 0] - labels).square().mean())
        assert model.config.problem_type == "regression"

    def test_label_names_round_trip(self, tmp_path):
        names = {0: "B cell", 1: "T cell", 2: "monocyte"}
        model = self.model(id2label=names, label2id={name: label for label, name in names.items()})
        model.save_pretrained(tmp_path)
        again = LangCellForSequenceClassification.from_pretrained(tmp_path)
        assert again.config.id2label == names
        assert again.config.label2id["monocyte"] == 2
        assert again.classifier.out_features == again.config.num_labels == 3

    @pytest.mark.parametrize(("given", "expected"), [(None, 0.25), (0.5, 0.5), (0, 0)])
    def test_dropout_before_the_head(self, given, expected):
        model = self.model(hidden_dropout_prob=0.25, classifier_dropout=given)
        assert model.dropout.p == expected


WEIGHTS = ("masked_gene_weight", "cell_cell_weight", "cell_text_weight", "matching_weight")


def pretraining_model(**overrides) -> LangCellForPreTraining:
    tester = TESTERS[LangCellForPreTraining]
    return tester.model(tester.config(**overrides))


def run_pretraining(model, **overrides):
    return TESTERS[LangCellForPreTraining].run(model, **overrides)


class TestPreTraining:
    def test_loss_is_the_weighted_sum(self):
        weights = dict(zip(WEIGHTS, (0.5, 2.0, 3.0, 0.25), strict=True))
        out = run_pretraining(pretraining_model(**weights))
        terms = [weight * out[name.replace("weight", "loss")] for name, weight in weights.items()]
        torch.testing.assert_close(out.loss, sum(terms))
        assert all(term > 0 for term in terms)

    @pytest.mark.parametrize("off", WEIGHTS)
    def test_weight_zero_is_not_computed(self, off):
        model = pretraining_model(**{off: 0})
        cell_rows = rows_seen(model.cell_model.encoder.layer[0])
        text_rows = rows_seen(model.text_model.encoder.layer[0])
        scored = rows_seen(model.lm_head)
        out = run_pretraining(model)
        for weight in WEIGHTS:
            assert (getattr(out, weight.replace("weight", "loss")) is None) == (weight == off)
        views = 3 - (off in ("masked_gene_weight", "cell_cell_weight"))
        assert cell_rows == [views * CELLS]
        # Texts alone; then two texts a cell, and one.
        assert text_rows == ([TEXTS] if off == "matching_weight" else [TEXTS, 2 * CELLS, CELLS])
        assert len(scored) == (off != "masked_gene_weight")

    def test_cells_alone(self):
        model = pretraining_model(cell_text_weight=0, matching_weight=0)
        text_rows = rows_seen(model.text_model.encoder.layer[0])
        ids, mask = cell_inputs().values()
        out = model(cell_input_ids=ids, cell_attention_mask=mask)
        torch.testing.assert_close(out.loss, out.masked_gene_loss + out.cell_cell_loss)
        assert out.logits_per_cell is None
        assert not text_rows

    def test_texts_are_needed(self):
        ids, mask = cell_inputs().values()
        with pytest.raises(ValueError, match="need input_ids and text_index"):
            pretraining_model()(cell_input_ids=ids, cell_attention_mask=mask)

    def test_one_text_a_cell(self):
        """Equal descriptions are one text, as with `text_index`."""
        model = pretraining_model(masked_gene_weight=0)
        given = {"negative_draws": torch.rand(CELLS, 2)}
        text_index = torch.tensor([1, 3, 1])
        texts = {name: tensor[text_index] for name, tensor in text_inputs().items()}
        distinct = {name: tensor[[1, 3]] for name, tensor in text_inputs().items()}
        out = run_pretraining(model, **given, **texts, text_index=None)
        for order in ([0, 1], [1, 0]):
            indexed = {name: tensor[order] for name, tensor in distinct.items()}
            places = torch.tensor([order.index(place) for place in (0, 1, 0)])
            expected = run_pretraining(model, **given, **indexed, text_index=places)
            for name in ("cell_cell_loss", "cell_text_loss", "matching_loss", "loss"):
                torch.testing.assert_close(out[name], expected[name], atol=1e-5, rtol=0)
        assert out.logits_per_cell.shape == (CELLS, 2)

    @pytest.mark.parametrize("text_index", [[0, 1], [0, 1, 2, 3]])
    def test_text_index_fits_the_cells(self, text_index):
        with pytest.raises(ValueError, match=f"text_index is of {len(text_index)} cells, but there are {CELLS}"):
            run_pretraining(pretraining_model(), text_index=torch.tensor(text_index))

    def test_evaluation_draws_the_same(self):
        model = pretraining_model()
        inputs = TESTERS[LangCellForPreTraining].inputs()
        first, second = (model(**inputs) for _ in range(2))
        assert_same(first, second, TESTERS[LangCellForPreTraining].shapes, 0)
        model.train()
        assert model(**inputs).loss != model(**inputs).loss

    def test_logits_alone(self):
        model = pretraining_model()
        scored = rows_seen(model.lm_head)
        out = model(**joint_inputs(), return_loss=False)
        expected = LangCellModel.forward(model, **joint_inputs()).logits_per_cell
        torch.testing.assert_close(out.logits_per_cell, expected)
        assert list(out) == ["logits_per_cell"]
        assert not scored

    def test_known_texts_are_not_read_again(self):
        model = pretraining_model(masked_gene_weight=0, cell_cell_weight=0, matching_weight=0)
        expected = run_pretraining(model).loss
        inputs = TESTERS[LangCellForPreTraining].inputs()
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        pooled = model.text_model(ids, mask).pooler_output
        text_rows = rows_seen(model.text_model.encoder.layer[0])
        torch.testing.assert_close(model(**inputs, text_pooled=pooled).loss, expected)
        assert not text_rows
        model.config.matching_weight = 1
        with pytest.raises(ValueError, match="need input_ids"):
            model(**inputs, text_pooled=pooled)

    def test_no_objective(self):
        assert run_pretraining(pretraining_model(**dict.fromkeys(WEIGHTS, 0))).loss is None

    def test_masked_gene_loss(self, monkeypatch):
        model = pretraining_model()
        ids, mask = cell_inputs().values()
        shown, labels = MaskedGeneModelling(VOCABULARY, probability=0.5).corrupt(ids)
        monkeypatch.setattr(model.masked_gene_modelling, "corrupt", lambda ids: (shown, labels))
        alone = TESTERS[LangCellForMaskedLM].model()
        alone.load_state_dict({name: model.state_dict()[name] for name in alone.state_dict()})
        expected = alone(shown, mask, labels=labels).loss
        torch.testing.assert_close(run_pretraining(model).masked_gene_loss, expected, atol=1e-5, rtol=0)

    def test_masking_follows_the_config(self):
        model = pretraining_model(masked_gene_probability=1.0, cell_config={"mask_token_id": 5})
        shown, labels = model.masked_gene_modelling.corrupt(torch.full((50, 50), 9))
        assert (labels == 9).all()
        assert 0.7 < (shown == 5).float().mean() < 0.9

    def test_cell_cell_loss(self, monkeypatch):
        model = pretraining_model(cell_cell_temperature=0.1)
        views = []
        loss = model.cell_cell_contrast.forward
        monkeypatch.setattr(model.cell_cell_contrast, "forward", lambda *v: views.append(v) or loss(*v))
        out = run_pretraining(model)
        pooled = model.cell_model(**cell_inputs()).pooler_output
        torch.testing.assert_close(views[0], (pooled, pooled), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.cell_cell_loss, CellCellContrast(0.1)(pooled, pooled), atol=1e-5, rtol=0)

    def test_views_differ_by_dropout(self, monkeypatch):
        model = pretraining_model(cell_config={"hidden_dropout_prob": 0.2}).train()
        views = []
        monkeypatch.setattr(model.cell_cell_contrast, "forward", lambda *v: views.append(v) or v[0].sum())
        run_pretraining(model)
        assert (views[0][0] - views[0][1]).abs().max() > 0.1

    def test_cell_text_loss(self):
        model = pretraining_model()
        text_index, ignored_pairs = torch.tensor([0, 3, 1]), torch.zeros(CELLS, TEXTS, dtype=torch.bool)
        ignored_pairs[1, 0] = True
        out = run_pretraining(model, text_index=text_index, ignored_pairs=ignored_pairs)
        logits = LangCellModel.forward(model, **joint_inputs()).logits_per_cell
        torch.testing.assert_close(out.logits_per_cell, logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.cell_text_loss, CellTextContrast()(logits, text_index, ignored_pairs))

    def test_matching_loss(self, monkeypatch):
        model = pretraining_model()
        text_index = torch.tensor([0, 3, 0])
        wrong_text, wrong_cell = torch.tensor([2, 1, 3]), torch.tensor([1, 2, 1])
        usable = torch.tensor([True, True, False])
        monkeypatch.setattr(model.cell_text_matching, "draw_negatives", lambda *_: (wrong_text, wrong_cell, usable))
        out = run_pretraining(model, text_index=text_index)
        grid = LangCellModel.forward(model, **joint_inputs(), return_matching=True).matching_logits.log_softmax(-1)
        losses = []
        for cell in range(CELLS):
            own = text_index[cell]
            losses.append(-grid[cell, own, 1])
            if usable[cell]:
                losses += [-grid[cell, wrong_text[cell], 0], -grid[wrong_cell[cell], own, 0]]
        torch.testing.assert_close(out.matching_loss, torch.stack(losses).mean(), atol=1e-5, rtol=0)

    def test_without_masks(self):
        model = pretraining_model()
        full = {name: torch.ones_like(joint_inputs()[name]) for name in ("cell_attention_mask", "attention_mask")}
        expected = run_pretraining(model, **full)
        out = run_pretraining(model, **dict.fromkeys(full))
        assert_same(out, expected, TESTERS[LangCellForPreTraining].shapes, 1e-5)

    def test_padding_changes_nothing(self, monkeypatch):
        model = pretraining_model(masked_gene_weight=0)  # Masking draws by position, so padding would change the draw.
        draw = (torch.tensor([1, 0, 2]), torch.tensor([2, 2, 0]), torch.ones(CELLS, dtype=torch.bool))
        monkeypatch.setattr(model.cell_text_matching, "draw_negatives", lambda *_: draw)
        further = {name: F.pad(tensor, (0, 5)) for name, tensor in joint_inputs().items()}
        assert_same(
            run_pretraining(model, **further),
            run_pretraining(model),
            ["loss", "cell_cell_loss", "cell_text_loss", "matching_loss"],
            1e-4,
        )

    @pytest.mark.parametrize("length_groups", [1, 2])
    @pytest.mark.parametrize("column", [0, 4], ids=["left", "middle"])
    def test_padding_on_any_side(self, column, length_groups):
        """The losses are those of the same cells padded at their end, whatever the padding holds."""
        model, inputs = pretraining_model(), joint_inputs()
        shown, labels = MaskedGeneModelling(VOCABULARY, probability=0.5).corrupt(inputs["cell_input_ids"])
        given = {"cell_input_ids": inputs["cell_input_ids"], "cell_attention_mask": inputs["cell_attention_mask"]}
        given |= {"masked_input_ids": shown, "masked_gene_targets": labels}
        draws = {"negative_draws": torch.rand(CELLS, 2), "length_groups": length_groups}
        padding = torch.full((CELLS, 3), 5)
        moved = {
            name: torch.cat([rows[:, :column], padding * (name != "cell_attention_mask"), rows[:, column:]], dim=1)
            for name, rows in given.items()
        }
        assert_same(
            run_pretraining(model, **moved, **draws),
            run_pretraining(model, **given, **draws),
            TESTERS[LangCellForPreTraining].shapes,
            1e-4,
        )

    @pytest.mark.parametrize("length_groups", [2, 3, 9])
    def test_length_groups_change_nothing(self, length_groups):
        """Cells of 7, 4 and 6 genes: groups by length are not in the order of the batch."""
        model = pretraining_model()
        ids, mask = cell_inputs().values()
        mask = torch.arange(ids.shape[1]) < torch.tensor([7, 4, 6])[:, None]
        given = {"cell_input_ids": ids * mask, "cell_attention_mask": mask.long()}
        shown, labels = MaskedGeneModelling(VOCABULARY, probability=0.5).corrupt(given["cell_input_ids"])
        given |= {"masked_input_ids": shown, "masked_gene_targets": labels, "negative_draws": torch.rand(CELLS, 2)}
        expected = run_pretraining(model, **given)
        assert_same(
            run_pretraining(model, **given, length_groups=length_groups),
            expected,
            TESTERS[LangCellForPreTraining].shapes,
            1e-4,
        )
        rows = rows_seen(model.cell_model.encoder.layer[0])
        run_pretraining(model, **given, length_groups=length_groups)
        assert len(rows) == min(length_groups, CELLS)

    def test_random_numbers_can_be_given(self):
        model = pretraining_model()
        shown, labels = MaskedGeneModelling(VOCABULARY, probability=0.5).corrupt(cell_inputs()["input_ids"])
        given = {"masked_input_ids": shown, "masked_gene_targets": labels, "negative_draws": torch.rand(CELLS, 2)}
        first, second = (run_pretraining(model, **given) for _ in range(2))
        assert_same(first, second, TESTERS[LangCellForPreTraining].shapes, 0)
        expected = TESTERS[LangCellForMaskedLM].model()
        expected.load_state_dict({name: model.state_dict()[name] for name in expected.state_dict()})
        loss = expected(shown, cell_inputs()["attention_mask"], labels=labels).loss
        torch.testing.assert_close(first.masked_gene_loss, loss, atol=1e-5, rtol=0)

    def test_every_parameter_learns(self):
        model = pretraining_model().train()
        run_pretraining(model).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            # A bias of the keys moves all scores of a query alike, which a softmax does not see.
            assert name.endswith("self.key.bias") or parameter.grad.abs().max() > 1e-6, name

    def test_a_few_steps_lower_the_loss(self):
        torch.manual_seed(0)
        model = LangCellForPreTraining(tiny_config()).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(20):
            out = run_pretraining(model)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(out.loss.item())
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] < 0.8 * losses[0]

    def test_cells_that_share_one_description(self):
        """There are no negatives: the loss and its gradients stay finite."""
        model = pretraining_model().train()
        texts = {name: tensor[:1] for name, tensor in text_inputs().items()}
        out = run_pretraining(model, **texts, text_index=torch.zeros(CELLS, dtype=torch.long))
        assert out.cell_text_loss == 0
        out.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_one_cell(self):
        model = pretraining_model().train()
        inputs = {name: tensor[:1] for name, tensor in joint_inputs().items()}
        out = run_pretraining(model, **inputs, text_index=torch.zeros(1, dtype=torch.long))
        out.loss.backward()
        assert torch.isfinite(out.loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
