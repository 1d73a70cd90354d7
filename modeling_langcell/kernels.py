# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Kernels for inference that are faster than torch's standard ones: oneDNN's matrix products, which can do what follows
them in the same pass, and the attention of nested tensors on a GPU.

They are private operators of torch, which may change or go: each is compared with the standard way when it is first
needed, and left out where it fails or differs. That is why they are here, and not in the files of a checkpoint.
"""

import logging
import platform
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation

from .model.packed_langcell import is_aligned, kernels, pairs_of_runs

logger = logging.getLogger(__name__)


class _Activation(NamedTuple):
    """How an activation follows a matrix product: oneDNN's names of function and algorithm, and torch's own way."""

    fused: tuple[str, str]
    in_place: Callable[[torch.Tensor], torch.Tensor]


_ACTIVATIONS = {
    type(None): _Activation(("none", ""), lambda product: product),
    nn.ReLU: _Activation(("relu", ""), torch.relu_),
    GELUActivation: _Activation(("gelu", "none"), torch.ops.aten.gelu_),  # `F.gelu` has no form in place.
}
_QUERIES = 512  # Queries of a sequence that are computed at once, so that their scores fit into the CPU's cache.
_FEW_SCORES = 100_000  # Number of scores per head below which two matrix products cost more than they save.
#: The largest difference from the standard way, relative to the largest value, with which a kernel is used.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def add_kernels() -> None:
    """Lets the networks use the kernels."""
    kernels.linear, kernels.attention = linear, attention


def linear(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: nn.Module | None,
    plus: torch.Tensor | None,
) -> torch.Tensor | None:
    """
    Applies a linear layer, and an activation or a sum, in one pass or at least without another copy of the output; see
    `Kernels.linear`.
    """
    if type(activation) not in _ACTIVATIONS or (plus is not None and activation is not None):
        return None
    if takes_onednn(states, weight):
        name, algorithm = _ACTIVATIONS[type(activation)].fused
        try:
            if plus is not None:
                return torch.ops.mkldnn._linear_pointwise.binary(states, plus, weight, bias, "add")
            return torch.ops.mkldnn._linear_pointwise(states, weight, bias, name, [], algorithm)
        except RuntimeError:  # oneDNN lacks the memory for its code, or the product: the standard way tells which.
            return None
    if not _infers_on_cpu(states, weight) or (plus is not None and plus.dtype != states.dtype):
        return None
    product = F.linear(states, weight, bias)
    return _ACTIVATIONS[type(activation)].in_place(product) if plus is None else product.add_(plus)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest_query: int,
    longest_key: int,
) -> torch.Tensor | None:
    """
    Attends in single precision on a GPU, and in long sequences on a CPU with AVX-512 that is not Intel's; see
    `Kernels.attention`.
    """
    if query.is_cuda:
        if query.dtype != torch.float32 or not is_aligned(query) or not _nested_works(query.device):
            return None
        return _attend_nested(query, key, value, query_starts, key_starts, longest_query, longest_key)
    if longest_query * longest_key < _FEW_SCORES or _is_intel() or not takes_onednn(query, key):
        return None
    attended = torch.empty_like(query)
    for n, rows, columns in pairs_of_runs(query_starts, key_starts):
        _attend_in_run(n, query[rows], key[columns], value[columns], attended[rows])
    return attended


def _attend_nested(query, key, value, query_starts, key_starts, longest_query, longest_key):
    """Attends with torch's kernel for nested tensors, the only one that also takes single precision."""
    parts = (part[None] for part in (query, key, value))
    lengths = query_starts, key_starts, longest_query, longest_key
    no_dropout, no_mask = 0.0, 0
    return torch.ops.aten._efficient_attention_forward(
        *parts, None, *lengths, no_dropout, no_mask, compute_log_sumexp=query.requires_grad
    )[0][0]


def _attend_in_run(n, query, key, value, attended):
    """Attends in `n` sequences of one length, and writes the output to `attended`."""
    split = [part.unflatten(0, (n, -1)) for part in (query, key, value, attended)]
    if split[0].shape[1] * split[1].shape[1] < _FEW_SCORES:
        query, key, value = (part.transpose(1, 2) for part in split[:3])
        split[3].copy_(F.scaled_dot_product_attention(query, key, value).transpose(1, 2))
        return
    for one in zip(*split, strict=True):
        _attend_by_products(*one)


def _attend_by_products(query, key, value, attended):
    """
    Attends in one sequence, head by head, with two of oneDNN's matrix products, which are faster than MKL's in torch's
    own kernel, except on Intel's CPUs.
    """
    multiply = torch.ops.mkldnn._linear_pointwise
    queries = (query * query.shape[-1] ** -0.5).transpose(0, 1).contiguous()
    keys, values = key.transpose(0, 1).contiguous(), value.permute(1, 2, 0).contiguous()
    for head in range(len(queries)):
        for rows in range(0, len(query), _QUERIES):
            scores = multiply(queries[head, rows : rows + _QUERIES], keys[head], None, "none", [], "")
            taken = multiply(scores.softmax(dim=-1), values[head], None, "none", [], "")
            attended[rows : rows + _QUERIES, head] = taken


def takes_onednn(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """
    Returns true if oneDNN computes a matrix product, and faster than torch, which uses MKL in single precision. On
    CPUs other than Intel's, MKL does without AVX-512. Without AVX-512 it is the faster one, with any activation.
    """
    return (
        _infers_on_cpu(states, weight)
        and states.dtype == weight.dtype
        and states.dtype in _TOLERANCE
        and (states.dtype != torch.float32 or _has_avx512())
        and _onednn_works(states.dtype)
    )


def _infers_on_cpu(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Returns true on a CPU, without gradients, autocast, tracing or compilation."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and states.device.type == weight.device.type == "cpu"
    )


def cpu_has_instructions(dtype: torch.dtype) -> bool:
    """Returns true if this CPU has instructions for a precision; also where torch cannot tell."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    try:
        return dtype not in supported or getattr(torch.ops.mkldnn, supported[dtype])()
    except (AttributeError, RuntimeError):  # Another torch, or one without oneDNN.
        return True


@cache
def _onednn_works(dtype: torch.dtype) -> bool:
    return _agrees("oneDNN's matrix products", _onednn_products(dtype), _TOLERANCE[dtype])


@cache
def _nested_works(device: torch.device) -> bool:
    return _agrees("torch's attention of nested tensors", _nested_attention(device), _TOLERANCE[torch.float32])


#: Pairs of what a kernel gives and what the standard way gives.
Outputs = Iterator[tuple[torch.Tensor, torch.Tensor]]


def _agrees(kernel: str, outputs: Outputs, tolerance: float) -> bool:
    """Returns true if a kernel is there and gives what the standard way gives; otherwise logs why it is left out."""
    try:
        with torch.inference_mode():
            differences = [float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in outputs]
    except Exception as error:  # Whatever a private operator of another torch does, the standard way remains.
        logger.info("%s cannot be used here (%s): the standard way is.", kernel, error)
        return False
    if not max(differences) <= tolerance:  # Also if it is not a number.
        logger.warning("%s differ from the standard way by %.2g: they are not used.", kernel, max(differences))
        return False
    return True


def _onednn_products(dtype: torch.dtype) -> Outputs:
    """Yields what oneDNN and torch make of a small example, in all the forms that are used."""
    if not cpu_has_instructions(dtype):
        raise RuntimeError("this CPU has no instructions for bfloat16")
    states, weight, more, bias = (part.to(dtype) for part in _random((2, 3, 32), (48, 32), (2, 3, 48), (48,)))
    multiply, product = torch.ops.mkldnn._linear_pointwise, F.linear(states, weight, bias)
    yield multiply(states, weight, bias, "none", [], ""), product
    yield multiply(states, weight, None, "none", [], ""), F.linear(states, weight)
    yield multiply(states, weight, bias, "relu", [], ""), product.relu()
    yield multiply(states, weight, bias, "gelu", [], "none"), F.gelu(product)
    yield multiply.binary(states, more, weight, bias, "add"), product + more


def _nested_attention(device: torch.device) -> Outputs:
    """Yields what the kernel for nested tensors and torch make of two small sequences."""
    query, key, value = (part.to(device) for part in _random((5, 2, 16), (7, 2, 16), (7, 2, 16)))
    starts = [torch.tensor(offsets, dtype=torch.int32, device=device) for offsets in ((0, 2, 5), (0, 4, 7))]
    found = _attend_nested(query, key, value, starts[0], starts[1], 3, 4)
    for _, rows, columns in pairs_of_runs(starts[0], starts[1]):
        q, k, v = (part.transpose(0, 1) for part in (query[rows], key[columns], value[columns]))
        yield found[rows], F.scaled_dot_product_attention(q, k, v).transpose(0, 1)


def _random(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Returns random numbers, always the same ones, without use of the program's own."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@cache
def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@cache
def _is_intel() -> bool:
    """Returns true on an Intel CPU, as far as torch, or else Python, can tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "intel" in str(capabilities.get("cpu_name", platform.processor())).lower()


__all__ = ["add_kernels", "attention", "cpu_has_instructions", "linear", "takes_onednn"]
