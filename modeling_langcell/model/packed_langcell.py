# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Sequences without padding, laid end to end: the results are those of padded sequences, up to rounding, for less work.

A published checkpoint carries this file, so it uses only torch's public operators. The installed package adds faster
ones, as `kernels`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # It is missing before torch 2.10.
    varlen_attn = None  # type: ignore[assignment]

#: Dtypes that the GPU's variable-length kernel takes, and the bytes that the size of a head must be a multiple of.
_VARLEN_DTYPES, VARLEN_ALIGNMENT = (torch.float16, torch.bfloat16), 16


@dataclass
class Kernels:
    """
    Faster forms of operations. Each returns None for arguments that it does not take, which then go the standard way.

    Args:
        linear: Function of a linear layer's input, weight and bias, of an activation or None, and of what is added or
            None; returns the output.
        attention: Function of queries, keys and values `(tokens, heads, head_size)`, of the int32 offsets of their
            sequences, and of the lengths of the longest; returns the output of `attend`.
    """

    linear: Callable[..., torch.Tensor | None] | None = None
    attention: Callable[..., torch.Tensor | None] | None = None


#: The kernels in use: none, unless the installed package has added its own.
kernels = Kernels()


class PackedSequences:
    """
    Sequences of different lengths, laid end to end.

    Args:
        lengths: Length of each sequence, on the host, where they decide which sequences are computed together. On the
            host there may be hundreds of thousands of them: a card waits for whatever is done to each in turn.
        device: Device of the sequences' states.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, device: torch.device | str = "cpu"):
        self.sizes = np.asarray(lengths, dtype=np.int64)
        self.device = device

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def lengths(self) -> list[int]:
        """Length of each sequence."""
        return self.sizes.tolist()

    @cached_property
    def ends(self) -> np.ndarray:
        """`(sequences + 1,)` the beginning of each sequence, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    @cached_property
    def offsets(self) -> list[int]:
        """The beginning of each sequence, and the end of the last."""
        return self.ends.tolist()

    @property
    def tokens(self) -> int:
        """Number of tokens of all the sequences together."""
        return int(self.ends[-1])

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """`(sequences + 1,)` int32 offsets: the beginning of each sequence, and the end of the last."""
        return torch.from_numpy(self.ends.astype(np.int32)).to(self.device)

    @cached_property
    def first(self) -> torch.Tensor:
        """`(sequences,)` indices of the first tokens."""
        return self.cumulative[:-1].long()

    @property
    def attention(self) -> dict[str, Any]:
        """The arguments by which transformers tells attention where each of the sequences of a row begins."""
        starts, longest = self.cumulative, int(self.sizes.max())
        return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of a tower's `forward` for the sequences: those of attention, and positions."""
        return {"position_ids": self.positions[None], **self.attention}

    @cached_property
    def counts(self) -> torch.Tensor:
        """`(sequences,)` lengths, on the device of the states."""
        return torch.from_numpy(self.sizes).to(self.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """`(tokens,)` position of each token in its sequence."""
        return torch.arange(self.tokens, device=self.device) - self.repeat(self.first)

    def repeat(self, values: torch.Tensor) -> torch.Tensor:
        """Returns `(tokens,)` values, of `(sequences,)` ones, without waiting for a device to say how many they are."""
        return values.repeat_interleave(self.counts, output_size=self.tokens)


@dataclass
class PackedPairs:
    """
    Texts and cells laid end to end, of which each text attends to a cell.

    Args:
        queries: One sequence for each cell, with the tokens of all its texts.
        cells: The cells.
        copies: `(tokens of all cells' texts,)` tokens of the hidden states, where cells share texts.
    """

    queries: PackedSequences
    cells: PackedSequences
    copies: torch.Tensor | None

    @property
    def attention(self) -> dict[str, Any]:
        """The same as `PackedSequences.attention`, of queries to keys."""
        of_cells = self.cells.attention
        keys = {name: of_cells[name] for name in ("cu_seq_lens_k", "max_length_k")}
        return {**self.queries.attention, **keys}


def first_tokens(states: torch.Tensor, starts: torch.Tensor | None) -> torch.Tensor:
    """
    Returns the state of each sequence's first token: `(rows, 1, width)` of padded rows, or `(1, sequences, width)` of
    sequences laid end to end, which begin at `starts`.
    """
    return states[:, :1] if starts is None else states[:, starts[:-1].long()]


def runs(states: torch.Tensor, starts: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields runs of neighbours of one length as `(sequences, length, ...)` views of `(tokens, ...)` states."""
    first = 0
    for length, run in groupby(_lengths(starts)):
        last = first + length * len(list(run))
        yield states[first:last].unflatten(0, (-1, length))
        first = last


def means(states: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Returns the means of `(tokens, width)` states over each sequence, `(sequences, width)`."""
    return torch.stack([part.mean(dim=0) for part in states.split(_lengths(starts))])


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attends by transformers' attention interface, with `(1, heads, tokens, head_size)` states of sequences laid end to
    end; returns `(1, tokens, heads, head_size)`. Each sequence of queries attends to the sequence of keys at the same
    place.
    """
    query, key, value = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    attended = attend(query, key, value, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, dropout)
    return attended.unsqueeze(0), None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Computes softmax attention of each sequence of queries to the sequence of keys at the same place.

    Args:
        query: `(tokens of queries, heads, head_size)`.
        key, value: `(tokens of keys, heads, head_size)`.
        query_starts, key_starts: `(sequences + 1,)` int32 offsets: the beginning of each sequence, and the last end.
        longest_query, longest_key: Lengths of the longest sequences.
        dropout: Share of the attention weights to drop.

    Returns:
        `(tokens of queries, heads, head_size)`.
    """
    starts = query_starts, key_starts, longest_query, longest_key
    if not dropout:
        if kernels.attention is not None and (found := kernels.attention(query, key, value, *starts)) is not None:
            return found
        if varlen_attn is not None and query.is_cuda and query.dtype in _VARLEN_DTYPES and is_aligned(query):
            return varlen_attn(query, key, value, *starts)  # type: ignore[return-value]
    if query.device.type == "cpu":
        return _attend_by_runs(query, key, value, query_starts, key_starts, dropout)
    return _attend_padded(query, key, value, *starts, dropout)


def is_aligned(query: torch.Tensor) -> bool:
    """Returns true if the GPU's variable-length kernels take heads of this size."""
    return query.shape[-1] * query.element_size() % VARLEN_ALIGNMENT == 0


def pairs_of_runs(query_starts: torch.Tensor, key_starts: torch.Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Yields runs of neighbours of one length: their number, and the tokens of their queries and of their keys."""
    lengths = zip(_lengths(query_starts), _lengths(key_starts), strict=True)
    first_query = first_key = 0
    for (n_queries, n_keys), run in groupby(lengths):
        n = len(list(run))
        rows = slice(first_query, first_query + n * n_queries)
        columns = slice(first_key, first_key + n * n_keys)
        yield n, rows, columns
        first_query, first_key = rows.stop, columns.stop


def _attend_by_runs(query, key, value, query_starts, key_starts, dropout):
    """Attends run by run, for a CPU with few cores, which a single sequence keeps busy."""
    attended = []
    for n, rows, columns in pairs_of_runs(query_starts, key_starts):
        of_run = query[rows], key[columns], value[columns]
        q, k, v = (part.unflatten(0, (n, -1)).transpose(1, 2) for part in of_run)
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        attended.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)


def _attend_padded(query, key, value, query_starts, key_starts, longest_query, longest_key, dropout):
    """
    Attends on padded sequences, for devices that gain more from many sequences at once than they lose from padding.
    """
    query_places = _places(query_starts, longest_query, len(query))
    key_places = _places(key_starts, longest_key, len(key))
    n = len(query_starts) - 1

    def pad(states, places, longest):
        padded = states.new_zeros(n * longest, *states.shape[1:])
        return padded.index_copy(0, places, states).unflatten(0, (n, -1))

    known = torch.ones(len(key), dtype=torch.bool, device=query.device)
    mask = pad(known, key_places, longest_key)[:, None, None]
    query = pad(query, query_places, longest_query).transpose(1, 2)
    key, value = (pad(part, key_places, longest_key).transpose(1, 2) for part in (key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(0, 1)[query_places]


def _places(starts: torch.Tensor, longest: int, tokens: int) -> torch.Tensor:
    """Returns the `(tokens,)` index of each token after all sequences are padded to the longest, row after row."""
    shifts = torch.arange(len(starts) - 1, device=starts.device) * longest - starts[:-1]
    places = torch.arange(tokens, device=starts.device)
    return places + shifts.repeat_interleave(starts.diff(), output_size=tokens)


def _lengths(starts: torch.Tensor) -> list[int]:
    return starts.diff().tolist()


def dense(
    linear: nn.Module, states: torch.Tensor, activation: nn.Module | None = None, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """Applies a linear layer, then an activation, then adds `plus`; in one pass where a kernel can fuse them."""
    if kernels.linear is not None and not torch.compiler.is_compiling() and is_plain(linear):
        found = kernels.linear(states, linear.weight, linear.bias, activation, plus)
        if found is not None:
            return found
    states = linear(states)
    states = states if activation is None else activation(states)
    return states if plus is None else states + plus


def is_plain(*layers: nn.Module) -> bool:
    """
    Returns true for linear layers that only multiply: without adapters, hooks, another forward, quantized, sharded or
    offloaded weights. Only of such layers may the weights be read in place of a call.
    """
    return not _any_module_has_hooks() and all(
        type(layer) is nn.Linear
        and type(layer._parameters["weight"]) is nn.Parameter
        and not layer.weight.is_meta
        and "forward" not in layer.__dict__
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
        for layer in layers
    )


def _any_module_has_hooks() -> bool:
    """Returns true while hooks for all modules are set, as profilers do."""
    module = nn.modules.module
    return bool(
        module._global_forward_hooks
        or module._global_forward_pre_hooks
        or module._global_backward_hooks
        or module._global_backward_pre_hooks
    )


__all__ = [
    "Kernels",
    "PackedPairs",
    "PackedSequences",
    "attend",
    "dense",
    "first_tokens",
    "is_aligned",
    "is_plain",
    "kernels",
    "means",
    "packed_attention_forward",
    "pairs_of_runs",
    "runs",
]
