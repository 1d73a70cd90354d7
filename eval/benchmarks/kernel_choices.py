# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Alternative kernels for the cell tower: the measurements behind the defaults."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modeling_langcell.eval.benchmarks.annotation_rate import BenchmarkContext, precisions
from modeling_langcell.eval.benchmarks.naive import encode
from modeling_langcell.eval.benchmarks.operations import time_of
from modeling_langcell.model.packed_langcell import PackedSequences


def measure_choices(context: BenchmarkContext, length: int, rounds: int) -> dict[str, Any]:
    """
    Measures rounds of the cell tower on cells of `length` random genes.

    Returns:
        `ways`: for every kernel its median `cells_per_second`, its median `ratio` to the naive procedure, and `cosine`,
        the smallest cosine of its `<cls>` states with those of the naive procedure.
    """
    cells = max(1, 4096 // length)
    ids = torch.randint(2, context.config.cell_config.vocab_size - 1, (cells, length), device=context.device)
    mask, packed = torch.ones_like(ids), PackedSequences([length] * cells, context.device)

    def read_packed(tower: Any) -> torch.Tensor:
        return tower(ids.flatten()[None], return_dict=True, **packed.arguments).pooler_output

    def read_padded(tower: Any) -> torch.Tensor:
        return tower(ids, mask, return_dict=True).pooler_output

    def read_naively(tower: Any) -> torch.Tensor:
        return encode(tower, ids, mask)[:, 0]

    ways: dict[str, Callable[[], torch.Tensor]] = {"naive": partial(read_naively, context.model.cell_model)}
    for precision in precisions(context):
        tower = context.model_in(precision).cell_model
        ways[precision] = partial(read_packed, tower)
        # A compiled tower uses torch's products and attention.
        compiled = torch.compile(copy.deepcopy(tower), dynamic=False)
        ways[f"{precision}, compiled"] = partial(read_padded, compiled)
    if context.device.type == "cpu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that this function will move to another package.
            tower = torch.ao.quantization.quantize_dynamic(
                copy.deepcopy(context.model.cell_model), {nn.Linear}, dtype=torch.qint8
            )
        ways["int8 weights"] = partial(read_packed, tower)

    found: dict[str, torch.Tensor] = {}
    rates: dict[str, list[float]] = {way: [] for way in ways}

    def run(way: str) -> None:
        with torch.no_grad():
            found[way] = ways[way]().float()

    for way in ways:  # The first call compiles, which is not measured.
        run(way)
    for _ in range(rounds):
        for way in ways:
            rates[way].append(cells / time_of(lambda w=way: run(w), context.device))
    return {
        "length": length,
        "cells": cells,
        "ways": {
            way: {
                "cells_per_second": float(np.median(rate)),
                "ratio": float(np.median(np.divide(rate, rates["naive"]))),
                "cosine": float(F.cosine_similarity(found[way], found["naive"]).min()),
            }
            for way, rate in rates.items()
        },
    }


__all__ = ["measure_choices"]
