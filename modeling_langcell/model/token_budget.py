# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How much of the work is done at once: as much as memory holds, and less where it turns out to hold less."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from .errors import InputError

T = TypeVar("T")

#: More positions at once gain nothing: on a processor its cores are busy and its cache is full.
_ENOUGH = {"cpu": 4_096, "cuda": 262_144, "mps": 65_536}
_LEAST = 64  # Positions below which fewer would not help: it is the model that does not fit.
#: As CUDA and MPS, torch on a processor, and oneDNN say it.
_OUT_OF_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate|not enough memory|could not create a", re.I)


class TokenBudget:
    """
    How many positions, of genes or of words, go through a model at once. It bounds memory, and does not change results.

    Args:
        tokens: So many.
    """

    def __init__(self, tokens: int):
        if tokens < 1:
            raise InputError(f"batch_tokens={tokens} is no number of positions.")
        self.tokens = tokens

    @classmethod
    def for_model(cls, model: Any) -> "TokenBudget":
        """As many as half of the free memory of the model's device holds, and no more than keep it busy."""
        config = model.config
        towers = [getattr(config, name) for name in ("cell_config", "text_config") if hasattr(config, name)] or [config]
        # What is alive at once in a layer: states, queries, keys, values, what they attend to; and the wide states.
        widest = max(10 * tower.hidden_size + 2 * tower.intermediate_size for tower in towers)
        enough = _ENOUGH.get(model.device.type, _ENOUGH["cpu"])
        free = _free_memory(model.device)
        return cls(enough if free is None else max(_LEAST, min(enough, free // 2 // (widest * model.dtype.itemsize))))

    def blocks(self, items: Iterable[T], lengths: Iterable[int]) -> Iterator[list[T]]:
        """As many of the items as the budget holds, but at least one, again and again."""
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

    def spend(
        self, items: Sequence[T], length: Callable[[T], int], read: Callable[[list[T]], Any]
    ) -> Iterator[tuple[list[T], Any]]:
        """
        Items in blocks, and what is read of each block. Where memory runs out the budget is halved, and the work goes
        on with what was not read yet.

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
            if found is None:  # Here what the failure held on to is free.
                self.tokens = max(1, self.tokens // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            done += len(block)
            yield block, found


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_OUT_OF_MEMORY.search(str(error)))


def _free_memory(device: torch.device) -> int | None:
    """Bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    listing = Path("/proc/meminfo")
    if listing.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", listing.read_text())):
        return int(found[1]) * 1024
    return None


__all__ = ["TokenBudget"]
