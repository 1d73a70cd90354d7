# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""On a GPU, if there is one: the same answers as on a CPU, nearly so in half precision, and training steps."""

import copy

import numpy as np
import pytest
import torch

from modeling_langcell import LangCellForPreTraining, LangCellModel
from modeling_langcell.annotation.annotator import LangCellAnnotator
from modeling_langcell.checkpoint.builtin import MINI
from modeling_langcell.io.h5ad import open_cells
from modeling_langcell.model.packed_langcell import PackedSequences
from modeling_langcell.model.token_budget import TokenBudget
from modeling_langcell.model.zero_shot import DescriptionScorer
from tests.support.tiny import tiny_config

from .test_packed_langcell import CELLS, TEXTS, random_ids

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

LABELS = ["B cell", "CD14-positive monocyte", "natural killer cell", "CD4-positive, alpha-beta T cell", "platelet"]
#: Heads as wide as a GPU's kernels take them.
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}


@pytest.fixture(scope="module")
def cells(shared):
    return open_cells(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad").to_memory()


@pytest.fixture(scope="module")
def annotated(cells):
    """By device, precision and alpha: scores, embeddings, and the best label."""
    known = {}

    def annotate(device: str, dtype: str, alpha: float):
        if (device, dtype, alpha) not in known:
            annotator = LangCellAnnotator.from_pretrained(MINI, device=device, dtype=dtype)
            known[device, dtype, alpha] = annotator.annotate(cells.copy(), LABELS, alpha=alpha)
        return known[device, dtype, alpha]

    return annotate


def model(size=64):
    torch.manual_seed(0)
    tower = WIDE | {"hidden_size": size}
    return LangCellModel(tiny_config(cell_config=tower, text_config=tower, initializer_range=0.3)).eval()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_answers_equal_a_cpus(annotated, alpha):
    expected, found = annotated("cpu", "float32", alpha), annotated("cuda", "float32", alpha)
    for name in ("langcell_probabilities", "X_langcell"):
        difference = np.abs(np.asarray(found.obsm[name]) - np.asarray(expected.obsm[name])).max()
        print(f"alpha {alpha}, {name}: largest difference {difference:.2g}")
        assert difference < 1e-4
    same = (found.obs["langcell_cell_type"].astype(str) == expected.obs["langcell_cell_type"].astype(str)).mean()
    print(f"alpha {alpha}, float32: same answer for {same:.2%} of {len(found)} cells")
    assert same > 0.999


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_half_precision_is_close(annotated, dtype, alpha):
    expected, found = annotated("cpu", "float32", alpha), annotated("cuda", dtype, alpha)
    same = (found.obs["langcell_cell_type"].astype(str) == expected.obs["langcell_cell_type"].astype(str)).mean()
    print(f"alpha {alpha}, {dtype}: same answer for {same:.2%} of {len(found)} cells")
    assert same > (0.95 if dtype == "bfloat16" else 0.99)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1), ("float16", 0.01)])
@pytest.mark.parametrize("size", [64, 24], ids=["aligned", "not aligned"])
def test_packed_equals_padded(size, dtype, tolerance):
    of_cpu = model(size)
    ids, padded, mask = random_ids(CELLS, of_cpu.config.cell_config.vocab_size)
    texts, padded_texts, text_mask = random_ids(TEXTS, of_cpu.config.text_config.vocab_size, seed=1)
    out = of_cpu(padded, mask, padded_texts, text_mask, return_matching=True)

    on_gpu = copy.deepcopy(of_cpu).to("cuda", getattr(torch, dtype))
    packed, packed_texts = PackedSequences(CELLS, "cuda"), PackedSequences(TEXTS, "cuda")
    ids, texts = ids.cuda(), texts.cuda()
    cells = on_gpu.cell_model(ids, **packed.arguments)
    alone = on_gpu.cell_model(ids, pooled_only=True, **packed.arguments)
    chosen = [range(len(TEXTS))] * len(CELLS)
    pairs = on_gpu.match_packed(cells.last_hidden_state, packed, texts, packed_texts, chosen)
    for found in (cells.pooler_output, alone.pooler_output):
        torch.testing.assert_close(on_gpu.project_cells(found).float().cpu(), out.cell_embeds, atol=tolerance, rtol=0)
    embeds = on_gpu.project_texts(on_gpu.text_model(texts, pooled_only=True, **packed_texts.arguments).pooler_output)
    torch.testing.assert_close(embeds.float().cpu(), out.text_embeds, atol=tolerance, rtol=0)
    expected = out.matching_logits.softmax(dim=-1)[..., 1].flatten()
    assert expected.std() > 0.01
    torch.testing.assert_close(pairs.cpu(), expected, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_every_attention(attention):
    of_cpu = model()
    _, padded, mask = random_ids(CELLS, of_cpu.config.cell_config.vocab_size)
    _, texts, text_mask = random_ids(TEXTS, of_cpu.config.text_config.vocab_size, seed=1)
    expected = of_cpu(padded, mask, texts, text_mask, return_matching=True)
    on_gpu = copy.deepcopy(of_cpu).cuda()
    on_gpu.set_attn_implementation(attention)
    inputs = [tensor.cuda() for tensor in (padded, mask, texts, text_mask)]
    found = on_gpu(*inputs, return_matching=True)
    # flex_attention's kernel multiplies in TF32.
    tolerance = 1e-2 if attention == "flex_attention" else 1e-4
    for name in ("cell_embeds", "text_embeds", "matching_logits"):
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=tolerance, rtol=tolerance)


def test_training_steps():
    """The loss falls with all four objectives in mixed precision, with padding and dropout."""
    torch.manual_seed(0)
    trained = LangCellForPreTraining(tiny_config(cell_config=WIDE, text_config=WIDE)).cuda().train()
    _, ids, mask = random_ids(CELLS, trained.config.cell_config.vocab_size - 1)
    _, texts, text_mask = random_ids(TEXTS, trained.config.text_config.vocab_size, seed=1)
    batch = {"cell_input_ids": ids, "cell_attention_mask": mask, "input_ids": texts, "attention_mask": text_mask}
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    batch["text_index"] = torch.tensor([0, 1, 2, 3, 0], device="cuda")
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3, fused=True)
    losses = []
    for _ in range(60):
        with torch.autocast("cuda", torch.bfloat16):
            out = trained(**batch)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss.detach()))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_the_budget_is_halved_when_memory_runs_out():
    """A budget far above the GPU's memory is halved until it fits, with the same results."""
    budget, read = TokenBudget(1 << 40), []

    def embed(rows: list[int]) -> float:
        torch.empty(len(rows), 1 << 30, device="cuda")  # A gigabyte and more each.
        read.append(len(rows))
        return float(sum(rows))

    free = torch.cuda.mem_get_info()[0] >> 30
    rows = list(range(free))
    found = list(budget.spend(rows, lambda _: 1, embed))
    assert [row for block, _ in found for row in block] == rows
    assert sum(total for _, total in found) == sum(rows)
    assert max(read) < free
    assert budget.tokens < 1 << 40


def test_a_scorers_budget_fits(tiny_processor):
    """The default budget depends on the GPU's memory."""
    tiny = LangCellModel(tiny_config(cell_config=WIDE, text_config=WIDE)).eval().cuda()
    scorer = DescriptionScorer(tiny, tiny_processor, {"a": "a b cell .", "b": "a t cell ."}, 0.5)
    assert scorer.budget.tokens == 262_144
    scored = scorer(torch.full((1, 9), 3, device="cuda"), PackedSequences([4, 5], "cuda"))
    assert scored.scores.is_cuda
    torch.testing.assert_close(scored.scores.sum(dim=1).cpu(), torch.ones(2))
