# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The token budget: bounded by memory, halved when it runs out, with nothing lost or done twice."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from modeling_langcell import InputError, LangCellAnnotator, LangCellConfig, LangCellModel
from modeling_langcell.model.token_budget import TokenBudget
from tests.support.commands import run_python
from tests.support.tiny import tiny_config

LENGTHS = [9, 7, 7, 5, 2, 1]


def spend(budget, holds, error=None):
    """Reads items on a device that holds a number of positions; returns the blocks read, those tried, and results."""
    asked = []

    def read(block):
        asked.append(block)
        if sum(LENGTHS[item] for item in block) > holds:
            raise error or torch.OutOfMemoryError("CUDA out of memory.")
        return [LENGTHS[item] for item in block]

    found = list(budget.spend(range(len(LENGTHS)), LENGTHS.__getitem__, read))
    return [block for block, _ in found], asked, [read for _, read in found]


def test_blocks_hold_what_fits_and_at_least_one_item():
    assert list(TokenBudget(14).blocks(range(6), LENGTHS)) == [[0], [1, 2], [3, 4, 5]]
    assert list(TokenBudget(1).blocks("abc", [5, 5, 5])) == [["a"], ["b"], ["c"]]
    assert list(TokenBudget(1).blocks([], [])) == []


@pytest.mark.parametrize("tokens", [1, 7, 14, 22, 1000])
@pytest.mark.parametrize("lengths", [LENGTHS, [5, 5, 5], [100, 1, 100], []])
def test_slices_are_the_blocks(tokens, lengths):
    budget = TokenBudget(tokens)
    found = [[*range(len(lengths))[part]] for part in budget.slices(np.array(lengths, dtype=int))]
    assert found == list(budget.blocks(range(len(lengths)), lengths))


def test_a_budget_of_zero_is_refused():
    with pytest.raises(InputError, match="batch_tokens=0"):
        TokenBudget(0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_and_goes_on(error, caplog):
    budget = TokenBudget(1000)
    blocks, asked, found = spend(budget, 16, error)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 6
    assert caplog.messages[-1] == "Memory ran out with 31 positions at once: continuing with 15."
    assert [item for block in blocks for item in block] == [0, 1, 2, 3, 4, 5], "all, in order, once"
    assert found == [[LENGTHS[item] for item in block] for block in blocks]
    assert budget.tokens == 15, "1000, 500, ..., 31 (holds all), 15"
    assert len(asked) - len(blocks) == 6, "what was read is not read again"


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError, match="shapes"):
        spend(TokenBudget(1000), 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_cell_that_does_not_fit():
    with pytest.raises(InputError, match="not enough memory"):
        spend(TokenBudget(1000), 8)


def test_is_chosen_from_free_memory(monkeypatch):
    model = LangCellModel(tiny_config())
    monkeypatch.setattr("modeling_langcell.model.token_budget._free_memory", lambda device: None)
    enough = TokenBudget.for_model(model).tokens
    for free, tokens in ((10**12, enough), (0, 64), (2 * 100 * 4 * (10 * 24 + 2 * 48), 100)):
        monkeypatch.setattr("modeling_langcell.model.token_budget._free_memory", lambda device, free=free: free)
        assert TokenBudget.for_model(model).tokens == tokens
    assert TokenBudget.for_model(model.bfloat16()).tokens == 200


def test_a_small_network_reads_more_at_once(monkeypatch):
    monkeypatch.setattr("modeling_langcell.model.token_budget._free_memory", lambda device: None)
    small, base = LangCellModel(tiny_config()), LangCellModel(LangCellConfig()).to("meta")
    base_tokens = 4096
    monkeypatch.setattr("modeling_langcell.model.token_budget.execution_device", lambda model: torch.device("cpu"))
    assert TokenBudget.for_model(base).tokens == TokenBudget.for_model(base, reuses_memory=True).tokens == base_tokens
    assert base_tokens < TokenBudget.for_model(small).tokens < TokenBudget.for_model(small, reuses_memory=True).tokens


def test_the_text_tower_gets_no_more_than_for_itself():
    annotator = LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")
    scorer = annotator.scorer(["B cell", "T cell"]).by_description
    of_texts = TokenBudget.for_model(annotator.model.text_model).tokens
    assert scorer._text_budget.tokens == of_texts < scorer.budget.tokens


#: Allocates and frees a few large blocks many times, and prints how often the kernel had to give a page.
BATCHES = """
import resource, sys, torch
from modeling_langcell.annotation.device import reuse_memory

if sys.argv[1] == "reused":
    assert reuse_memory()
for batch in range(30):
    if batch == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    states = torch.ones(65_536, 256)
    more = states + 1
    del states, more
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps memory when it is asked to")
def test_the_memory_of_a_batch_is_reused():
    """In fresh processes, because libraries and other tests use memory, too."""
    faults = {
        way: int(subprocess.run([sys.executable, "-c", BATCHES, way], check=True, capture_output=True).stdout)
        for way in ("fresh", "reused")
    }
    assert faults["reused"] < faults["fresh"] / 10


#: Cells of a model wide enough for memory to matter, read where the kernel gives no more than 300 MB.
SCARCE = """
import resource, torch
from pathlib import Path
from tests.support.tiny import tiny_config
from modeling_langcell import LangCellModel
from modeling_langcell.model.packed_langcell import PackedSequences
from modeling_langcell.model.token_budget import TokenBudget

torch.manual_seed(0)
torch.set_num_threads(1)
wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
model = LangCellModel(tiny_config(cell_config=wide)).eval().cell_model
cells = torch.randint(2, 40, (3000, 50))

def read(rows):
    with torch.inference_mode():
        packed = PackedSequences([50] * len(rows)).arguments
        return model(cells[rows].flatten()[None], pooled_only=True, **packed).pooler_output

def all_of(budget):
    return torch.cat([found for _, found in budget.spend(range(3000), lambda row: 50, read)])

expected = all_of(TokenBudget(2000))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))
scarce = TokenBudget(150_000)
torch.testing.assert_close(all_of(scarce), expected, atol=1e-5, rtol=0)
print(scarce.tokens)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are the kernel's")
def test_memory_that_really_runs_out():
    done = run_python("-c", SCARCE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150_000
