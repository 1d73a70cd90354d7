# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Sequences without padding, and the kernels that inference computes them with: the same numbers as the plain way, up to
rounding, from less work. Whatever trains, is compiled or carries hooks goes the plain way.
"""

import platform
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

#: What oneDNN can apply to a product before it leaves the processor's registers, as it names function and algorithm.
_FUSED_ACTIVATIONS = {type(None): ("none", ""), nn.ReLU: ("relu", ""), GELUActivation: ("gelu", "none")}
_QUERIES = 512  # As many of a sequence's queries at once leave their scores in the processor's cache.
_FEW_SCORES = 100_000  # With fewer in a head, the calls of two products cost more than the products gain.
#: What a GPU's kernels for sequences of many lengths take, and the bytes that a head must be a multiple of for them.
_AT_ONCE, _ALIGNED = (torch.float16, torch.bfloat16, torch.float32), 16


class PackedSequences:
    """
    Sequences of different lengths, laid end to end.

    Args:
        lengths: Of each, on the host: what is computed together is decided by them.
        device: Where their states are.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu"):
        self.lengths = list(lengths)
        self.offsets = [0, *accumulate(self.lengths)]
        self.device = device

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Of all the sequences together."""
        return self.offsets[-1]

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """`(sequences + 1,)` int32: where each begins, and where the last ends."""
        return torch.tensor(self.offsets, dtype=torch.int32, device=self.device)

    @cached_property
    def first(self) -> torch.Tensor:
        """`(sequences,)` places of the first tokens."""
        return self.cumulative[:-1].long()

    @cached_property
    def counts(self) -> torch.Tensor:
        """`(sequences,)` their lengths, where their states are."""
        return torch.tensor(self.lengths, device=self.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """`(tokens,)` place of each token in its sequence."""
        return torch.arange(self.tokens, device=self.device) - self.first.repeat_interleave(self.counts)

    @cached_property
    def places(self) -> torch.Tensor:
        """`(tokens,)` place of each token where all sequences are padded to the longest, row after row."""
        rows = torch.arange(len(self), device=self.device).repeat_interleave(self.counts)
        return rows * max(self.lengths) + self.positions

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """`(tokens, ...)` to `(sequences, longest, ...)`, zeros where there is nothing."""
        padded = states.new_zeros(len(self) * max(self.lengths), *states.shape[1:])
        return padded.index_copy(0, self.places, states).unflatten(0, (len(self), -1))

    def mean(self, states: torch.Tensor) -> torch.Tensor:
        """`(tokens, width)` to the means of the sequences, `(sequences, width)`."""
        return torch.stack([part.mean(dim=0) for part in states.split(self.lengths)])

    def runs(self, states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Neighbours of one length as `(sequences, length, ...)` views of `(tokens, ...)` states."""
        first = 0
        for length, run in groupby(self.lengths):
            last = first + length * len(list(run))
            yield states[first:last].unflatten(0, (-1, length))
            first = last


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: PackedSequences, keys: PackedSequences
) -> torch.Tensor:
    """
    Softmax attention of each sequence of queries to the sequence of keys in the same place.

    Args:
        query: `(tokens of queries, heads, head_size)`.
        key, value: `(tokens of keys, heads, head_size)`.

    Returns:
        `(tokens of queries, heads, head_size)`.
    """
    if query.is_cuda and query.dtype in _AT_ONCE and query.shape[-1] * query.element_size() % _ALIGNED == 0:
        longest = max(queries.lengths), max(keys.lengths)
        starts = queries.cumulative, keys.cumulative
        if query.dtype != torch.float32 and varlen_attn is not None:
            return varlen_attn(query, key, value, *starts, *longest)  # type: ignore[return-value]
        return _attend_at_once(query, key, value, *starts, *longest)
    if query.device.type == "cpu":
        return _attend_one_by_one(query, key, value, queries, keys)
    return _attend_padded(query, key, value, queries, keys)


def _attend_at_once(query, key, value, query_starts, key_starts, longest_query, longest_key):
    """All sequences without padding, in single precision too, by the kernel that torch has for nested tensors."""
    parts = (part[None] for part in (query, key, value))
    lengths = query_starts, key_starts, longest_query, longest_key
    no_dropout, no_mask = 0.0, 0
    return torch.ops.aten._efficient_attention_forward(
        *parts, None, *lengths, no_dropout, no_mask, compute_log_sumexp=query.requires_grad
    )[0][0]


def _attend_padded(query, key, value, queries, keys):
    """For devices that gain more by many sequences at once than they lose by padding."""
    known = torch.ones(keys.tokens, dtype=torch.bool, device=query.device)
    query, key, value = (part.transpose(1, 2) for part in (queries.pad(query), keys.pad(key), keys.pad(value)))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keys.pad(known)[:, None, None])
    return attended.transpose(1, 2).flatten(0, 1)[queries.places]


def _attend_one_by_one(query, key, value, queries, keys):
    """For a processor of few cores, which a single sequence keeps busy."""
    attended = torch.empty_like(query)
    by_products = _BY_PRODUCTS and takes_onednn(query, key)
    first_query = first_key = 0
    for (n_queries, n_keys), run in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        n = len(list(run))
        if by_products and n_queries * n_keys >= _FEW_SCORES:
            for _ in range(n):
                asking, asked = slice(first_query, first_query + n_queries), slice(first_key, first_key + n_keys)
                _attend_by_products(query[asking], key[asked], value[asked], attended[asking])
                first_query, first_key = asking.stop, asked.stop
            continue
        asking, asked = slice(first_query, first_query + n * n_queries), slice(first_key, first_key + n * n_keys)
        parts = (part.unflatten(0, (n, -1)).transpose(1, 2) for part in (query[asking], key[asked], value[asked]))
        found = F.scaled_dot_product_attention(*parts)
        attended[asking] = found.transpose(1, 2).flatten(0, 1)
        first_query, first_key = asking.stop, asked.stop
    return attended


def _attend_by_products(query, key, value, attended):
    """
    One sequence, a head at a time, as two products of matrices: with oneDNN, whose products are the faster ones but on
    processors of Intel, this is ahead of torch's own kernel, whose products are MKL's.
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
    """What a linear layer makes of states, then activated, then added to something; in one pass where oneDNN has it."""
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
    """Adapters put something else in the place of a layer, and hooks beside it: only calling it does them justice."""
    return type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks


def takes_onednn(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """
    Whether a product is oneDNN's: of a processor, and of what is neither trained, nor cast on the way, nor compiled.
    torch gives such products in single precision to MKL, which has no AVX-512 for processors that are not Intel's.
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
    """Whether the processor is Intel's; of a torch that does not tell, only if Python knows."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "intel" in str(capabilities.get("cpu_name", platform.processor())).lower()


_ONEDNN_DTYPES = _onednn_dtypes()
_BY_PRODUCTS = not _is_intel()

__all__ = ["PackedSequences", "attend", "dense", "takes_onednn"]
