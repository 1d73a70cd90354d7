# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The token budget: the amount of work done at once, chosen from free memory and halved when memory runs out; and the
device of the work.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Number of positions at once above which nothing is gained: a CPU's cores are busy and its cache is full.
_ENOUGH = {"cpu": 4_096, "cuda": 262_144, "mps": 65_536}
#: The same for a small tower on a CPU, where what is spent once a batch counts: operations that keep it busy, and the
#: largest numbers of positions, for which the memory comes anew from the system, or is reused.
_BUSY, _MOST, _MOST_REUSED = 2**33, 8_192, 65_536
_LEAST = 64  # Number of positions below which halving does not help: the model itself does not fit.
#: Messages of CUDA and MPS, torch on a CPU, and oneDNN.
_OUT_OF_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate|not enough memory|could not create a", re.I)


class TokenBudget:
    """
    Bounds the number of positions, genes or word pieces, that go through a model at once. It bounds memory, and does
    not change results.

    Args:
        tokens: Number of positions.
    """

    def __init__(self, tokens: int):
        if tokens < 1:
            raise InputError(f"batch_tokens={tokens} is not a number of positions.")
        self.tokens = tokens

    @classmethod
    def for_model(cls, model: Any, reuses_memory: bool = False) -> "TokenBudget":
        """
        Chooses as many positions as half of the device's free memory holds, up to the number that keeps the device
        busy.

        Args:
            model: The model.
            reuses_memory: True if the process keeps the memory of a batch for the next one.
        """
        config = model.config
        towers = [getattr(config, name) for name in ("cell_config", "text_config") if hasattr(config, name)] or [config]
        # A layer holds at once: states, queries, keys, values, attended states; and the wide states.
        widest = max(10 * tower.hidden_size + 2 * tower.intermediate_size for tower in towers)
        device = execution_device(model)
        enough = _ENOUGH.get(device.type, _ENOUGH["cpu"])
        if device.type == "cpu":
            most = _MOST_REUSED if reuses_memory else _MOST
            enough = max(enough, min(most, _BUSY // (towers[0].num_hidden_layers * towers[0].hidden_size ** 2)))
        free = _free_memory(device)
        return cls(enough if free is None else max(_LEAST, min(enough, free // 2 // (widest * model.dtype.itemsize))))

    def blocks(self, items: Iterable[T], lengths: Iterable[int]) -> Iterator[list[T]]:
        """Splits items into blocks, each with as many as the budget holds, but at least one."""
        block: list[T] = []
        used = 0
        for item, length in zip(items, lengths, strict=True):
            if block and used + length > self.tokens:
                yield block
                block, used = [], 0
            block.append(item)
            used += length
        if block:
            yield block

    def slices(self, lengths: np.ndarray) -> Iterator[slice]:
        """Splits `(items,)` lengths in the same way as `blocks`, without going through them one by one."""
        ends, start = np.concatenate([[0], np.cumsum(lengths)]), 0
        while start < len(lengths):
            fitting = int(np.searchsorted(ends, ends[start] + self.tokens, side="right")) - 1
            stop = max(start + 1, fitting)
            yield slice(start, stop)
            start = stop

    def spend(
        self, items: Sequence[T], length: Callable[[T], int], read: Callable[[list[T]], Any]
    ) -> Iterator[tuple[list[T], Any]]:
        """
        Reads items block by block, and yields each block with its result. When memory runs out, the budget is halved
        and the rest is read in smaller blocks.

        Raises:
            InputError: Memory does not suffice for a single item.
        """
        done = 0
        while done < len(items):
            block = next(self.blocks(islice(items, done, None), map(length, islice(items, done, None))))
            try:
                found = read(block)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(block) == 1 and self.tokens <= _LEAST:
                    reason = str(error).strip().splitlines()[:1]
                    raise InputError(f"There is not enough memory for a single cell: {''.join(reason)}") from error
                found = None
            if found is None:  # This is outside the except clause, whose traceback keeps memory alive.
                tokens, self.tokens = self.tokens, max(1, self.tokens // 2)
                logger.warning("Memory ran out with %d positions at once: continuing with %d.", tokens, self.tokens)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            done += len(block)
            yield block, found


def execution_device(model: Any) -> torch.device:
    """Returns the device on which a model computes; weights that accelerate has offloaded are elsewhere meanwhile."""
    return dispatched_to(model) or model.device


def dispatched_to(model: Any) -> torch.device | None:
    """Returns the device on which accelerate lets a model compute that it has dispatched, or None for other models."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(device) for device in devices if device is not None), None)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_OUT_OF_MEMORY.search(str(error)))


def _free_memory(device: torch.device) -> int | None:
    """Returns the free bytes of a device, or None if the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    listing = Path("/proc/meminfo")
    if listing.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", listing.read_text())):
        return int(found[1]) * 1024
    return None


__all__ = ["TokenBudget", "dispatched_to", "execution_device"]
