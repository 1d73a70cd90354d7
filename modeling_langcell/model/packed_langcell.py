# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Sequences without padding, and the kernels for them in inference: the results are those of the standard path, up to
rounding, for less work. Training, torch.compile and modules with hooks use the standard path.
"""

import logging
import platform
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate, groupby
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # It is missing before torch 2.10.
    varlen_attn = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

#: Activations that oneDNN can fuse with a matrix product, by its names of function and algorithm.
_FUSED_ACTIVATIONS = {type(None): ("none", ""), nn.ReLU: ("relu", ""), GELUActivation: ("gelu", "none")}
_QUERIES = 512  # Queries of a sequence that are computed at once, so that their scores fit into the CPU's cache.
_FEW_SCORES = 100_000  # Number of scores per head below which two matrix products cost more than they save.
#: Dtypes that the GPU's variable-length kernels take, and the bytes that the size of a head must be a multiple of.
_VARLEN_DTYPES, _VARLEN_ALIGNMENT = (torch.float16, torch.bfloat16, torch.float32), 16


class PackedSequences:
    """
    Sequences of different lengths, laid end to end.

    Args:
        lengths: Length of each sequence, on the host, where they decide which sequences are computed together.
        device: Device of the sequences' states.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu"):
        self.lengths = list(lengths)
        self.offsets = [0, *accumulate(self.lengths)]
        self.device = device

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Number of tokens of all the sequences together."""
        return self.offsets[-1]

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """`(sequences + 1,)` int32 offsets: the beginning of each sequence, and the end of the last."""
        return torch.tensor(self.offsets, dtype=torch.int32, device=self.device)

    @cached_property
    def first(self) -> torch.Tensor:
        """`(sequences,)` indices of the first tokens."""
        return self.cumulative[:-1].long()

    @cached_property
    def counts(self) -> torch.Tensor:
        """`(sequences,)` lengths, on the device of the states."""
        return torch.tensor(self.lengths, device=self.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """`(tokens,)` position of each token in its sequence."""
        return torch.arange(self.tokens, device=self.device) - self.first.repeat_interleave(self.counts)

    @cached_property
    def places(self) -> torch.Tensor:
        """`(tokens,)` index of each token after all sequences are padded to the longest, row after row."""
        rows = torch.arange(len(self), device=self.device).repeat_interleave(self.counts)
        return rows * max(self.lengths) + self.positions

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """Pads `(tokens, ...)` states with zeros to `(sequences, longest, ...)`."""
        padded = states.new_zeros(len(self) * max(self.lengths), *states.shape[1:])
        return padded.index_copy(0, self.places, states).unflatten(0, (len(self), -1))

    def mean(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the means of `(tokens, width)` states over each sequence, `(sequences, width)`."""
        return torch.stack([part.mean(dim=0) for part in states.split(self.lengths)])

    def runs(self, states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields runs of neighbours of one length as `(sequences, length, ...)` views of `(tokens, ...)` states."""
        first = 0
        for length, run in groupby(self.lengths):
            last = first + length * len(list(run))
            yield states[first:last].unflatten(0, (-1, length))
            first = last


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: PackedSequences, keys: PackedSequences
) -> torch.Tensor:
    """
    Computes softmax attention of each sequence of queries to the sequence of keys at the same place.

    Args:
        query: `(tokens of queries, heads, head_size)`.
        key, value: `(tokens of keys, heads, head_size)`.
        queries, keys: The sequences.

    Returns:
        `(tokens of queries, heads, head_size)`.
    """
    if (
        query.is_cuda
        and query.dtype in _VARLEN_DTYPES
        and query.shape[-1] * query.element_size() % _VARLEN_ALIGNMENT == 0
    ):
        longest = max(queries.lengths), max(keys.lengths)
        starts = queries.cumulative, keys.cumulative
        if query.dtype != torch.float32 and varlen_attn is not None:
            return varlen_attn(query, key, value, *starts, *longest)  # type: ignore[return-value]
        if query.dtype != torch.float32:
            _log_fallback("torch before 2.10 has no varlen_attn: attention runs on torch's kernel for nested tensors.")
        return _attend_nested(query, key, value, *starts, *longest)
    if query.device.type == "cpu":
        return _attend_one_by_one(query, key, value, queries, keys)
    _log_fallback(f"Attention runs on padded sequences: no other kernel for {query.dtype} on {query.device.type}.")
    return _attend_padded(query, key, value, queries, keys)


@cache
def _log_fallback(message: str) -> None:
    """Logs a message once in a process."""
    logger.info(message)


def _attend_nested(query, key, value, query_starts, key_starts, longest_query, longest_key):
    """Attends with torch's kernel for nested tensors, which also takes single precision."""
    parts = (part[None] for part in (query, key, value))
    lengths = query_starts, key_starts, longest_query, longest_key
    no_dropout, no_mask = 0.0, 0
    return torch.ops.aten._efficient_attention_forward(
        *parts, None, *lengths, no_dropout, no_mask, compute_log_sumexp=query.requires_grad
    )[0][0]


def _attend_padded(query, key, value, queries, keys):
    """
    Attends on padded sequences, for devices that gain more from many sequences at once than they lose from padding.
    """
    known = torch.ones(keys.tokens, dtype=torch.bool, device=query.device)
    query, key, value = (part.transpose(1, 2) for part in (queries.pad(query), keys.pad(key), keys.pad(value)))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys.pad(known)[:, None, None])
    return attended.transpose(1, 2).flatten(0, 1)[queries.places]


def _attend_one_by_one(query, key, value, queries, keys):
    """Attends run by run, for a CPU with few cores, which a single sequence keeps busy."""
    attended = torch.empty_like(query)
    by_products = _BY_PRODUCTS and takes_onednn(query, key)
    first_query = first_key = 0
    for (n_queries, n_keys), run in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        n = len(list(run))
        if by_products and n_queries * n_keys >= _FEW_SCORES:
            for _ in range(n):
                rows, columns = slice(first_query, first_query + n_queries), slice(first_key, first_key + n_keys)
                _attend_by_products(query[rows], key[columns], value[columns], attended[rows])
                first_query, first_key = rows.stop, columns.stop
            continue
        rows, columns = slice(first_query, first_query + n * n_queries), slice(first_key, first_key + n * n_keys)
        parts = (part.unflatten(0, (n, -1)).transpose(1, 2) for part in (query[rows], key[columns], value[columns]))
        found = F.scaled_dot_product_attention(*parts)
        attended[rows] = found.transpose(1, 2).flatten(0, 1)
        first_query, first_key = rows.stop, columns.stop
    return attended


def _attend_by_products(query, key, value, attended):
    """
    Attends in one sequence, head by head, with two matrix products. Except on Intel CPUs, they are
    oneDNN's, which are faster than MKL's in torch's own kernel.
    """
    multiply = torch.ops.mkldnn._linear_pointwise
    queries = (query * query.shape[-1] ** -0.5).transpose(0, 1).contiguous()
    keys, values = key.transpose(0, 1).contiguous(), value.permute(1, 2, 0).contiguous()
    for head in range(len(queries)):
        for rows in range(0, len(query), _QUERIES):
            scores = multiply(queries[head, rows : rows + _QUERIES], keys[head], None, "none", [], "")
            taken = multiply(scores.softmax(dim=-1), values[head], None, "none", [], "")
            attended[rows : rows + _QUERIES, head] = taken


def dense(
    linear: nn.Module, states: torch.Tensor, activation: nn.Module | None = None, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """Applies a linear layer, then an activation, then adds `plus`; in one pass where oneDNN can fuse them."""
    fused = _FUSED_ACTIVATIONS.get(type(activation))
    one_pass = plus is None or activation is None
    if fused is not None and one_pass and _is_plain(linear) and takes_onednn(states, linear.weight):
        if plus is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(states, plus, linear.weight, linear.bias, "add")
        name, algorithm = fused
        return torch.ops.mkldnn._linear_pointwise(states, linear.weight, linear.bias, name, [], algorithm)
    states = linear(states)
    states = states if activation is None else activation(states)
    return states if plus is None else states + plus


def _is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Returns true for a layer without adapters or hooks, which would be bypassed if its weights were used directly."""
    return type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks


def takes_onednn(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """
    Returns true if oneDNN can compute a matrix product: on a CPU, without gradients, autocast or compilation. torch
    itself would use MKL in single precision, which has no AVX-512 on CPUs other than Intel's.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and states.device.type == "cpu"
        and states.dtype == weight.dtype
        and states.dtype in _ONEDNN_DTYPES
    )


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


def _is_intel() -> bool:
    """Returns true on an Intel CPU, as far as torch, or else Python, can tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "intel" in str(capabilities.get("cpu_name", platform.processor())).lower()


_ONEDNN_DTYPES = _onednn_dtypes()
if not _ONEDNN_DTYPES:
    logger.info("torch has no fused oneDNN products here: linear layers use its standard ones.")
_BY_PRODUCTS = not _is_intel()

__all__ = ["PackedSequences", "attend", "dense", "takes_onednn"]
