# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Inference without padding: same results as with padding, and no more work than needed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation

from modeling_langcell import LangCellModel
from modeling_langcell.eval.benchmarks.operations import (
    count_operations,
    operations_of_cells,
    operations_of_pairs,
    operations_of_texts,
)
from modeling_langcell.model import packed_langcell
from modeling_langcell.model.packed_langcell import PackedSequences, attend, dense, takes_onednn
from modeling_langcell.model.token_budget import TokenBudget
from modeling_langcell.model.zero_shot import DescriptionScorer
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
    return torch.cat(sequences), padded, mask


class TestPackedSequences:
    def test_offsets_and_positions(self):
        packed = PackedSequences([2, 1, 3])
        assert packed.offsets == [0, 2, 3, 6]
        assert packed.first.tolist() == [0, 2, 3]
        assert packed.positions.tolist() == [0, 1, 0, 0, 1, 2]
        assert (packed.tokens, len(packed)) == (6, 3)
        assert packed.pad(torch.arange(1, 7)).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]

    def test_runs_are_neighbours_of_one_length(self):
        packed = PackedSequences([2, 2, 1, 2])
        runs = [run.tolist() for run in packed.runs(torch.arange(7))]
        assert runs == [[[0, 1], [2, 3]], [[4]], [[5, 6]]]

    def test_means(self):
        means = PackedSequences([1, 3]).mean(torch.tensor([[2.0], [1.0], [2.0], [6.0]]))
        assert means.tolist() == [[2.0], [3.0]]


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
        return [torch.randn(shape, generator=generator) for shape in shapes], queries, keys

    @pytest.mark.parametrize("way", ["attend", "_attend_padded", "_attend_one_by_one"])
    @pytest.mark.parametrize("gradients", [False, True])
    @pytest.mark.parametrize("by_products", [False, True])
    def test_equals_attention_of_each_sequence(self, given, way, gradients, by_products, monkeypatch):
        monkeypatch.setattr(packed_langcell, "_BY_PRODUCTS", by_products)
        states, queries, keys = given
        with torch.set_grad_enabled(gradients):
            found = getattr(packed_langcell, way)(*states, queries, keys)
        torch.testing.assert_close(found, self.expected(*states), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("processor", "expected"), [("AMD EPYC", True), ("Intel Xeon", False), ("", True)])
    def test_products_are_used_except_on_intel(self, processor, expected, monkeypatch):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor}, raising=False)
        assert packed_langcell._is_intel() != expected

    def test_long_sequences_use_products(self, given, monkeypatch):
        """Makes sure that the comparison above covers both kernels."""
        monkeypatch.setattr(packed_langcell, "_BY_PRODUCTS", True)
        with torch.no_grad():
            if not takes_onednn(*given[0][:2]):
                pytest.skip("torch has no oneDNN here")
        seen = []
        by_products = packed_langcell._attend_by_products
        monkeypatch.setattr(
            packed_langcell, "_attend_by_products", lambda *a: (seen.append(len(a[0])), by_products(*a))
        )
        with torch.no_grad():
            attend(*given[0], *given[1:])
        assert seen == [400]

    def test_cuda_uses_one_kernel_for_all_sequences(self, given, monkeypatch):
        """Replaces the kernel, which needs a GPU, and checks that it gets the arguments that torch documents."""
        states, queries, keys = given

        class OnCuda(torch.Tensor):
            is_cuda = True

        def varlen(query, key, value, query_starts, key_starts, longest_query, longest_key):
            assert query_starts.dtype == key_starts.dtype == torch.int32
            assert (query_starts.tolist(), key_starts.tolist()) == (queries.offsets, keys.offsets)
            assert (longest_query, longest_key) == (400, 300)
            return query

        monkeypatch.setattr(packed_langcell, "varlen_attn", varlen)
        half = [part.half().as_subclass(OnCuda) for part in states]
        assert attend(*half, queries, keys) is half[0]


class TestDense:
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
        states, pooled = tower.read_packed(ids, PackedSequences(CELLS), pooled_only)
        torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)
        if not pooled_only:
            torch.testing.assert_close(states, expected.last_hidden_state[mask == 1], atol=1e-5, rtol=0)

    @torch.no_grad()
    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_texts(self, pooling):
        torch.manual_seed(0)
        tower = LangCellModel(tiny_config(text_config={"pooling": pooling}, initializer_range=0.5)).eval().text_model
        ids, padded, mask = random_ids(TEXTS, tower.config.vocab_size)
        found = tower.read_packed(ids, PackedSequences(TEXTS))
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
        states, _ = model.cell_model.read_packed(cell_ids, cells)
        grid = model.get_matching_logits(model.cell_model(padded_cells, cell_mask)[0], cell_mask, padded, mask)
        expected = [grid[cell, text] for cell, of_cell in enumerate(chosen) for text in of_cell]
        found = model.match_packed(states, cells, text_ids, PackedSequences(TEXTS), chosen)
        torch.testing.assert_close(found, torch.stack(expected).softmax(dim=-1)[:, 1], atol=1e-5, rtol=0)
        assert grid.softmax(dim=-1)[..., 1].std() > 0.01

    def test_too_long_a_cell(self, model):
        with pytest.raises(ValueError, match="max_position_embeddings"):
            model.cell_model.read_packed(torch.full((65,), 2), PackedSequences([65]))
        model.cell_model.read_packed(torch.full((80,), 2), PackedSequences([40, 40]))

    @torch.no_grad()
    def test_half_precision(self, model):
        ids, _, _ = random_ids(CELLS, model.cell_model.config.vocab_size)
        expected = model.project_cells(model.cell_model.read_packed(ids, PackedSequences(CELLS))[1])
        model.to(torch.bfloat16)
        found = model.project_cells(model.cell_model.read_packed(ids, PackedSequences(CELLS))[1])
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
