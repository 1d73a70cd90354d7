# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Alternative kernels for the cell tower: the measurements behind the defaults."""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modeling_langcell import LangCellAnnotator
from modeling_langcell.checkpoint.builtin import MINI
from modeling_langcell.eval.benchmarks.annotation_rate import BenchmarkContext, fast_on
from modeling_langcell.eval.benchmarks.naive import encode
from modeling_langcell.eval.benchmarks.operations import time_of
from modeling_langcell.io.columns import CELL_TYPE, EMBEDDING
from modeling_langcell.model.packed_langcell import PackedSequences

#: Name of the way that reads weights rounded to int8.
INT8 = "int8 weights"


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
    for precision in fast_on(context.device):
        tower = context.model_in(precision).cell_model
        ways[precision] = partial(read_packed, tower)
        # A compiled tower uses torch's products and attention.
        compiled = torch.compile(copy.deepcopy(tower), dynamic=False)
        ways[f"{precision}, compiled"] = partial(read_padded, compiled)
    if context.device.type == "cpu":
        ways[INT8] = partial(read_packed, with_int8_weights(context.model.cell_model))

    found: dict[str, torch.Tensor] = {}
    rates: dict[str, list[float]] = {way: [] for way in ways}

    def run(way: str) -> None:
        with torch.no_grad():
            found[way] = ways[way]().float()

    for way in ways:  # The first call compiles, which is not measured.
        run(way)
    for _ in range(rounds):
        for way in ways:
            rates[way].append(cells / time_of(partial(run, way), context.device))
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


def with_int8_weights(network: nn.Module) -> nn.Module:
    """Returns a copy of a network whose linear layers have int8 weights, and round their input to int8 as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this function will move to another package.
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(network), {nn.Linear}, dtype=torch.qint8)


def measure_mini(adata: ad.AnnData, labels: Sequence[str], device: torch.device, rounds: int) -> dict[str, Any]:
    """
    Annotates cells with langcell-mini in rounds, in every precision that the device computes fast, and with int8
    weights on a CPU.

    Returns:
        For every way the median `cells_per_second`, from reading the counts on, and the median `ratio` to float32; the
        share of cells with float32's label, `same_label`; and the smallest `cosine` of their embeddings.
    """
    annotators = {way: LangCellAnnotator.from_pretrained(MINI, device=device, dtype=way) for way in fast_on(device)}
    if device.type == "cpu":
        exact = annotators["float32"]
        model = with_int8_weights(exact.model)
        annotators[INT8] = LangCellAnnotator(model, exact.processor, device=device)  # type: ignore[arg-type]
    found: dict[str, ad.AnnData] = {}
    rates: dict[str, list[float]] = {way: [] for way in annotators}
    for number in range(rounds + 1):
        for way, annotator in annotators.items():
            found[way] = adata.copy()
            taken = time_of(partial(annotator.annotate, found[way], list(labels)), device)
            if number:  # The first round only warms up.
                rates[way].append(adata.n_obs / taken)
    same = found["float32"].obs[CELL_TYPE].astype(str)
    embeds = {way: torch.from_numpy(cells.obsm[EMBEDDING]) for way, cells in found.items()}
    return {
        way: {
            "cells_per_second": float(np.median(rate)),
            "ratio": float(np.median(np.divide(rate, rates["float32"]))),
            "same_label": float((found[way].obs[CELL_TYPE].astype(str) == same).mean()),
            "cosine": float(F.cosine_similarity(embeds[way], embeds["float32"]).min()),
        }
        for way, rate in rates.items()
    }


__all__ = ["INT8", "measure_choices", "measure_mini", "with_int8_weights"]
