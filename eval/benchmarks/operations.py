# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Counts of operations: those that a computation takes, those that annotation needs, and the device's rate."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_backward_flop_count, sdpa_flop_count

from modeling_langcell import LangCellConfig
from modeling_langcell.model.packed_langcell import dense


def _attend(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attend_backward(gradient, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _linear(states, *others, **_) -> int:
    # An addend comes before the weights and a bias after them.
    weight = [shape for shape in others if shape is not None and len(shape) == 2 and shape[1] == states[-1]][-1]
    return mm_flop((torch.Size(states[:-1]).numel(), states[-1]), weight[::-1])


#: Kernels that torch's counter leaves out: attention on a CPU, and oneDNN's products.
_CPU_KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attend,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attend_backward,
    torch.ops.mkldnn._linear_pointwise: _linear,
}


def count_operations(work: Callable[[], Any]) -> float:
    """Counts the operations of matrix products and attention."""
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_KERNELS)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        work()
    return counter.get_total_flops()


class _NoModules(nullcontext):
    """
    Stands for torch's tracker of modules, whose hooks on every module would turn off what reads weights without a call.
    """

    parents = frozenset({"Global"})


# The fewest operations that are known to suffice for annotation: every gene goes through every layer of its tower; a
# cell's keys and values are computed once per layer; the part of a text that depends on it alone is computed once, the
# rest once per pair; the last layer computes `[CLS]` alone, whose attention works on the states directly.


def operations_of_cells(config: LangCellConfig, cells: Sequence[int]) -> float:
    """Returns the operations of encoding cells with these numbers of genes, all last states included."""
    cell = config.cell_config
    width, wide = cell.hidden_size, cell.intermediate_size
    a_layer = sum(cells) * (4 * width**2 + 2 * width * wide) + 2 * width * sum(length**2 for length in cells)
    return 2.0 * cell.num_hidden_layers * a_layer


def operations_of_texts(config: LangCellConfig, texts: Sequence[int]) -> float:
    """Returns the operations of embedding texts with these numbers of tokens."""
    text = config.text_config
    width, wide = text.hidden_size, text.intermediate_size
    a_layer = sum(texts) * (4 * width**2 + 2 * width * wide) + 2 * width * sum(length**2 for length in texts)
    last = len(texts) * (4 * width**2 + 2 * width * wide) + 2 * text.num_attention_heads * width * sum(texts)
    return 2.0 * ((text.num_hidden_layers - 1) * a_layer + last)


def operations_of_pairs(
    config: LangCellConfig, cells: Sequence[int], texts: Sequence[int], chosen: int | None = None
) -> float:
    """Returns the operations of matching all cells with all texts, or each cell with `chosen` texts of mean length."""
    text = config.text_config
    width, layers = text.hidden_size, text.num_hidden_layers
    ahead = 2 * width * text.intermediate_size
    texts_per_cell = len(texts) if chosen is None else chosen
    share = texts_per_cell / len(texts)
    pairs, words = len(cells) * texts_per_cell, len(cells) * sum(texts) * share
    squares = 2 * width * sum(length**2 for length in texts)
    met = 2 * width * sum(cells) / len(cells)  # Attention of one token to a cell of mean length.
    work = 2.0 * layers * sum(cells) * config.cell_config.hidden_size * width
    work += sum(texts) * 5 * width**2 + squares + words * (width**2 + met + ahead)
    work += (layers - 2) * (words * (6 * width**2 + met + ahead) + len(cells) * share * squares)
    first = 4 * width**2 + 2 * text.num_attention_heads * width * sum(texts) / len(texts)
    return 2.0 * (work + pairs * (first + 2 * width**2 + met + ahead))


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measures the operations per second of large matrix products with the package's own dense layer."""
    side = 8192 if device.type == "cuda" else 1024
    layer = torch.nn.Linear(side, side, device=device, dtype=dtype)
    states = torch.randn(side, side, device=device, dtype=dtype)
    with torch.no_grad():
        dense(layer, states)
        times: list[float] = []
        while sum(times) < seconds:
            times.append(time_of(lambda: dense(layer, states), device))
    return 2 * side**3 / sorted(times)[len(times) // 2]


def time_of(work: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds of a computation, on a GPU until it is finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


__all__ = [
    "count_operations",
    "matrix_rate",
    "operations_of_cells",
    "operations_of_pairs",
    "operations_of_texts",
    "time_of",
]
