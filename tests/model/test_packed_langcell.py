# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Inference without padding: same results as with padding, and no more work than needed."""

import re
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DataCollatorWithFlattening
from transformers.activations import GELUActivation

from modeling_langcell import LangCellModel, kernels
from modeling_langcell.eval.benchmarks.operations import (
    count_operations,
    operations_of_cells,
    operations_of_pairs,
    operations_of_texts,
)
from modeling_langcell.model import packed_langcell
from modeling_langcell.model.packed_langcell import PackedSequences, attend, dense, is_plain, means, runs
from modeling_langcell.model.token_budget import TokenBudget
from modeling_langcell.model.zero_shot import DescriptionScorer
from tests.support.paths import REPOSITORY
from tests.support.tiny import tiny_config

CELLS, TEXTS = [7, 20, 20, 1, 33], [3, 5, 5, 9]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LangCellModel(tiny_config(initializer_range=0.5)).eval()


def random_ids(lengths, vocabulary, seed=0):
    """Ids laid end to end, and padded with their mask."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(2, vocabulary, (length,), generator=generator) for length in lengths]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in sequences], batch_first=True)
    return torch.cat(sequences)[None], padded, mask


class TestPackedSequences:
    def test_offsets_and_positions(self):
        packed = PackedSequences([2, 1, 3])
        assert packed.offsets == [0, 2, 3, 6]
        assert packed.first.tolist() == [0, 2, 3]
        assert packed.positions.tolist() == [0, 1, 0, 0, 1, 2]
        assert (packed.tokens, len(packed)) == (6, 3)
        assert packed.attention["cu_seq_lens_q"].tolist() == packed.offsets
        assert packed.attention["max_length_k"] == 3

    def test_runs_are_neighbours_of_one_length(self):
        starts = PackedSequences([2, 2, 1, 2]).cumulative
        assert [run.tolist() for run in runs(torch.arange(7), starts)] == [[[0, 1], [2, 3]], [[4]], [[5, 6]]]

    def test_means(self):
        found = means(torch.tensor([[2.0], [1.0], [2.0], [6.0]]), PackedSequences([1, 3]).cumulative)
        assert found.tolist() == [[2.0], [3.0]]


class TestAttention:
    #: Lengths of queries and keys: few, equal neighbours, one token, and enough for products of their own.
    LENGTHS = [(3, 5), (3, 5), (1, 7), (400, 300), (2, 2)]

    def expected(self, query, key, value):
        """Reference: attends in one sequence after the other."""
        found, query_start, key_start = [], 0, 0
        for n_queries, n_keys in self.LENGTHS:
            q = query[query_start : query_start + n_queries].transpose(0, 1)
            k, v = (part[key_start : key_start + n_keys].transpose(0, 1) for part in (key, value))
            weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
            found.append((weights @ v).transpose(0, 1))
            query_start, key_start = query_start + n_queries, key_start + n_keys
        return torch.cat(found)

    @pytest.fixture
    def given(self):
        generator = torch.Generator().manual_seed(0)
        queries, keys = (PackedSequences(lengths) for lengths in zip(*self.LENGTHS, strict=True))
        shapes = [(queries.tokens, 2, 8), (keys.tokens, 2, 8), (keys.tokens, 2, 8)]
        states = [torch.randn(shape, generator=generator) for shape in shapes]
        return states, (queries.cumulative, keys.cumulative, max(queries.lengths), max(keys.lengths))

    @pytest.mark.parametrize("gradients", [False, True])
    @pytest.mark.parametrize("kernel", [None, kernels.attention])
    def test_equals_attention_of_each_sequence(self, given, gradients, kernel, monkeypatch):
        monkeypatch.setattr(packed_langcell.kernels, "attention", kernel)
        monkeypatch.setattr(kernels, "_is_intel", lambda: False)
        states, starts = given
        with torch.set_grad_enabled(gradients):
            found = attend(*states, *starts)
        torch.testing.assert_close(found, self.expected(*states), atol=1e-5, rtol=0)

    def test_padding_changes_nothing(self, given):
        states, starts = given
        found = packed_langcell._attend_padded(*states, *starts, 0.0)
        torch.testing.assert_close(found, self.expected(*states), atol=1e-5, rtol=0)

    def test_gradients_pass(self, given):
        states, starts = given
        inputs = [part.clone().requires_grad_() for part in states]
        found = torch.autograd.grad(attend(*inputs, *starts).square().sum(), inputs)
        expected = torch.autograd.grad(self.expected(*inputs).square().sum(), inputs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    def test_weights_are_dropped(self, given):
        states, starts = given
        torch.manual_seed(0)
        dropped = torch.stack([attend(*states, *starts, dropout=0.5) for _ in range(200)])
        torch.testing.assert_close(dropped.mean(dim=0), self.expected(*states), atol=0.6, rtol=0)
        assert dropped.std(dim=0).mean() > 0.1

    @pytest.mark.parametrize(("processor", "expected"), [("AMD EPYC", True), ("Intel Xeon", False), ("", True)])
    def test_products_are_used_except_on_intel(self, processor, expected, monkeypatch):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor}, raising=False)
        assert kernels._is_intel.__wrapped__() != expected

    def test_long_sequences_use_products(self, given, monkeypatch):
        """Makes sure that the comparison above covers both kernels."""
        states, starts = given
        monkeypatch.setattr(kernels, "_is_intel", lambda: False)
        monkeypatch.setattr(kernels, "_has_avx512", lambda: True)
        with torch.no_grad():
            if not kernels.takes_onednn(*states[:2]):
                pytest.skip("torch has no oneDNN here")
        seen = []
        by_products = kernels._attend_by_products
        monkeypatch.setattr(kernels, "_attend_by_products", lambda *a: (seen.append(len(a[0])), by_products(*a)))
        with torch.no_grad():
            attend(*states, *starts)
        assert seen == [400]

    def test_cuda_uses_one_kernel_for_all_sequences(self, given, monkeypatch):
        """Replaces the kernel, which needs a GPU, and checks that it gets the arguments that torch documents."""
        states, starts = given

        class OnCuda(torch.Tensor):
            is_cuda = True

        def varlen(query, key, value, query_starts, key_starts, longest_query, longest_key):
            assert query_starts.dtype == key_starts.dtype == torch.int32
            assert query_starts.diff().tolist() == [queries for queries, _ in self.LENGTHS]
            assert key_starts.diff().tolist() == [keys for _, keys in self.LENGTHS]
            assert (longest_query, longest_key) == (400, 300)
            return query

        monkeypatch.setattr(packed_langcell, "varlen_attn", varlen)
        half = [part.half().as_subclass(OnCuda) for part in states]
        assert attend(*half, *starts) is half[0]


class TestKernels:
    """Private operators of torch are used only where they are there and give what the standard ones give."""

    @pytest.fixture(autouse=True)
    def untried(self, monkeypatch):
        monkeypatch.setattr(kernels, "_has_avx512", lambda: True)
        kernels._onednn_works.cache_clear()
        yield
        kernels._onednn_works.cache_clear()

    def test_the_package_adds_them(self):
        assert packed_langcell.kernels == packed_langcell.Kernels(kernels.linear, kernels.attention)

    @pytest.mark.parametrize("fault", ["missing", "wrong", "not a number"])
    @torch.no_grad()
    def test_an_operator_that_does_not_work_is_left_out(self, fault, monkeypatch, caplog):
        def multiply(states, weight, bias, *rest):
            if fault == "missing":
                raise AttributeError("no such operator")
            product = F.linear(states, weight, bias)
            return product * (1.01 if fault == "wrong" else torch.nan)

        multiply.binary = lambda states, more, weight, bias, name: F.linear(states, weight, bias) + more
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", multiply)
        layer, states = nn.Linear(16, 24), torch.randn(5, 16)
        with caplog.at_level("INFO", "modeling_langcell.kernels"):
            assert torch.equal(dense(layer, states), layer(states))
            dense(layer, states)
        assert len(caplog.records) == 1, "it is tried once"
        assert "oneDNN's matrix products" in caplog.text

    def test_the_files_of_a_checkpoint_use_public_operators_alone(self):
        for file in (REPOSITORY / "modeling_langcell" / "model").glob("*.py"):
            assert not re.search(r"torch\.ops\.|torch\._[a-z]", file.read_text()), file.name


class TestDense:
    @pytest.fixture(autouse=True, params=["oneDNN", "torch"])
    def kernel(self, request, monkeypatch):
        """Both ways of a CPU, whichever this one takes."""
        monkeypatch.setattr(kernels, "_has_avx512", lambda: request.param == "oneDNN")

    @pytest.fixture
    def layer(self):
        torch.manual_seed(0)
        return nn.Linear(16, 24)

    @pytest.mark.parametrize("activation", [None, nn.ReLU(), GELUActivation(), nn.Tanh()])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_equals_the_layer(self, layer, activation, dtype):
        layer, states = layer.to(dtype), torch.randn(2, 5, 16, dtype=dtype)
        with torch.no_grad():
            expected = layer(states) if activation is None else activation(layer(states))
            found = dense(layer, states, activation)
        tolerance = 1e-5 if dtype != torch.bfloat16 else 0.02
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)

    def test_adds(self, layer):
        states, more = torch.randn(5, 16), torch.randn(5, 24)
        kept = more.clone()
        with torch.no_grad():
            torch.testing.assert_close(dense(layer, states, plus=more), layer(states) + kept, atol=1e-5, rtol=0)
        assert torch.equal(more, kept), "what is added is not written to"

    @pytest.mark.parametrize("activation", [None, nn.ReLU(), GELUActivation()])
    @torch.no_grad()
    def test_the_input_is_not_written_to(self, layer, activation):
        layer, states = nn.Linear(16, 16), torch.randn(5, 16)
        kept = states.clone()
        dense(layer, states, activation)
        dense(layer, states, plus=states)
        assert torch.equal(states, kept)

    def test_states_that_are_not_contiguous(self, layer):
        states = torch.randn(16, 5).T
        with torch.no_grad():
            torch.testing.assert_close(dense(layer, states), layer(states), atol=1e-5, rtol=0)

    def test_gradients_pass(self, layer):
        states = torch.randn(5, 16, requires_grad=True)
        dense(layer, states, nn.ReLU()).sum().backward()
        assert layer.weight.grad is not None
        assert states.grad is not None

    def test_hooks_and_other_layers_are_called(self, layer):
        seen = []
        with torch.no_grad():
            layer.register_forward_hook(lambda *_: seen.append(1))
            dense(layer, torch.randn(5, 16))

            class Adapted(nn.Linear):
                def forward(self, states):
                    seen.append(2)
                    return super().forward(states)

            dense(Adapted(16, 24), torch.randn(5, 16))
        assert seen == [1, 2]

    @pytest.mark.parametrize("kind", ["forward", "global hook", "backward hook", "meta", "subclass"])
    @torch.no_grad()
    def test_a_layer_that_does_more_than_multiply_is_not_plain(self, layer, kind):
        assert is_plain(layer)
        handle = None
        if kind == "forward":
            layer.forward = lambda states: states
        elif kind == "global hook":
            handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        elif kind == "backward hook":
            layer.register_full_backward_hook(lambda *_: None)
        elif kind == "meta":
            layer.to("meta")
        else:
            quantized = type("Quantized", (torch.Tensor,), {})
            layer.weight = nn.Parameter(layer.weight.detach().as_subclass(quantized))
        try:
            assert not is_plain(layer)
        finally:
            if handle is not None:
                handle.remove()

    def test_not_under_autocast(self, layer):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert dense(layer, torch.randn(5, 16)).dtype == torch.bfloat16


class TestTowers:
    @torch.no_grad()
    @pytest.mark.parametrize("pooled_only", [True, False])
    def test_cells(self, model, pooled_only):
        tower = model.cell_model
        ids, padded, mask = random_ids(CELLS, tower.config.vocab_size)
        expected = tower(padded, mask)
        found = tower(ids, pooled_only=pooled_only, **PackedSequences(CELLS).arguments)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
        if pooled_only:
            assert torch.equal(found.last_hidden_state[0], found.pooler_output)
        else:
            states = expected.last_hidden_state[mask == 1]
            torch.testing.assert_close(found.last_hidden_state[0], states, atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_transformers_collator_lays_cells_end_to_end(self, model):
        tower = model.cell_model
        _, padded, mask = random_ids(CELLS, tower.config.vocab_size)
        rows = [{"input_ids": ids[known == 1].tolist()} for ids, known in zip(padded, mask, strict=True)]
        batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")(rows)
        del batch["labels"]
        found = tower(**batch).pooler_output
        torch.testing.assert_close(found, tower(padded, mask).pooler_output, atol=1e-5, rtol=0)

    def test_gradients_are_those_of_padded_cells(self, model):
        tower = model.cell_model
        ids, padded, mask = random_ids(CELLS, tower.config.vocab_size)
        gradients = []
        for found in (tower(ids, **PackedSequences(CELLS).arguments), tower(padded, mask)):
            tower.zero_grad()
            found.pooler_output.square().sum().backward()
            gradients.append(tower.encoder.layer[0].attention.self.query.weight.grad.clone())
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_texts(self, pooling):
        torch.manual_seed(0)
        tower = LangCellModel(tiny_config(text_config={"pooling": pooling}, initializer_range=0.5)).eval().text_model
        ids, padded, mask = random_ids(TEXTS, tower.config.vocab_size)
        for pooled_only in (True, False):
            found = tower(ids, pooled_only=pooled_only, **PackedSequences(TEXTS).arguments).pooler_output
            torch.testing.assert_close(found, tower(padded, mask).pooler_output, atol=1e-5, rtol=0)

    @torch.no_grad()
    @pytest.mark.parametrize("layers", [1, 2, 3])
    @pytest.mark.parametrize("chosen", [[[0, 1, 2, 3]] * 5, [[3, 0], [1], [2, 1, 0], [2], [0, 3]]])
    def test_pairs(self, layers, chosen):
        torch.manual_seed(0)
        config = tiny_config(text_config={"num_hidden_layers": layers}, initializer_range=0.5)
        model = LangCellModel(config).eval()
        cell_ids, padded_cells, cell_mask = random_ids(CELLS, config.cell_config.vocab_size)
        text_ids, padded, mask = random_ids(TEXTS, config.text_config.vocab_size)
        cells = PackedSequences(CELLS)
        states = model.cell_model(cell_ids, **cells.arguments).last_hidden_state
        grid = model.get_matching_logits(model.cell_model(padded_cells, cell_mask)[0], cell_mask, padded, mask)
        expected = [grid[cell, text] for cell, of_cell in enumerate(chosen) for text in of_cell]
        found = model.match_packed(states, cells, text_ids, PackedSequences(TEXTS), chosen)
        torch.testing.assert_close(found, torch.stack(expected).softmax(dim=-1)[:, 1], atol=1e-5, rtol=0)
        assert grid.softmax(dim=-1)[..., 1].std() > 0.01

    def test_too_long_a_cell(self, model):
        with pytest.raises(ValueError, match="max_position_embeddings"):
            model.cell_model(torch.full((1, 65), 2), **PackedSequences([65]).arguments)
        model.cell_model(torch.full((1, 80), 2), **PackedSequences([40, 40]).arguments)

    @torch.no_grad()
    def test_half_precision(self, model):
        ids, _, _ = random_ids(CELLS, model.cell_model.config.vocab_size)
        packed = PackedSequences(CELLS).arguments
        expected = model.project_cells(model.cell_model(ids, **packed).pooler_output)
        model.to(torch.bfloat16)
        found = model.project_cells(model.cell_model(ids, **packed).pooler_output)
        assert F.cosine_similarity(found.float(), expected).min() > 0.99


class TestWork:
    """Work is counted, not timed: a change that makes exact scoring do more than needed fails here."""

    @pytest.fixture
    def scored(self, model, tiny_processor):
        """Work of scoring cells against texts of different lengths, and the minimum."""
        descriptions = {str(n): "cell type : " + "b " * n for n in range(1, 13)}
        ids, _, _ = random_ids(CELLS, model.config.cell_config.vocab_size)

        def count(shortlist=None, tokens=10_000, alpha=0.1):
            def work():
                scorer = DescriptionScorer(model, tiny_processor, descriptions, alpha, shortlist, TokenBudget(tokens))
                texts.extend(scorer.lengths)
                scorer(ids, PackedSequences(CELLS))

            texts: list[int] = []
            counted = count_operations(work)
            least = operations_of_cells(model.config, CELLS) + operations_of_texts(model.config, texts)
            return counted, least + operations_of_pairs(model.config, CELLS, texts, shortlist)

        return count

    def test_exact_scoring(self, scored):
        counted, least = scored()
        # Projections and heads are not counted in the least.
        assert least <= counted < 1.01 * least

    def test_one_text_at_a_time(self, scored):
        """Compares with computing the cells' keys and values, and the first layer, once for each text."""
        assert scored(tokens=1)[0] > 1.3 * scored()[0]

    def test_shortlist(self, scored):
        counted, least = scored(shortlist=3)
        # The least is that of texts of mean length.
        assert counted < 1.15 * least
        assert counted < 0.7 * scored()[0]

    def test_without_the_matching(self, scored):
        assert scored(alpha=1)[0] < 0.35 * scored()[0]

    @pytest.mark.parametrize("shortlist", [None, 16])
    def test_the_host_does_not_go_through_pairs_one_by_one(self, model, tiny_processor, shortlist):
        """A card would wait for it: with thousands of candidates a batch has hundreds of thousands of pairs."""
        ids, _, _ = random_ids(CELLS, model.config.cell_config.vocab_size)

        def lines(candidates):
            descriptions = {str(n): "cell type : " + "b " * (1 + n % 4) for n in range(candidates)}
            scorer = DescriptionScorer(model, tiny_processor, descriptions, 0.1, shortlist, TokenBudget(10**6))
            with torch.inference_mode():
                states, embeds = scorer.read(ids, PackedSequences(CELLS))
                compared = scorer.compare(embeds)
                return _lines_of_the_package(lambda: scorer.score(compared, states, PackedSequences(CELLS)))

        assert lines(200) < 1.1 * lines(40)


def _lines_of_the_package(work):
    """Counts the lines of the model's modules that run, comprehensions once for each item."""
    counted, before = 0, sys.gettrace()

    def trace(frame, event, argument):
        nonlocal counted
        if "modeling_langcell/model/" not in frame.f_code.co_filename:
            return None
        counted += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return counted
