# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Speed of pre-training on this machine, and the share of the machine's own rate that it reaches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_langcell import LangCellConfig, LangCellForPreTraining
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.benchmarks.operations import count_operations, time_of

#: Size of the paper's corpus, and the cost of its run: four A100s for about fifty days.
PAPER_CELLS, PAPER_A100_DAYS = 27_500_000, 200
STAGES = {"stage 1": ("masked_gene", "cell_cell"), "stage 2": ("masked_gene", "cell_cell", "cell_text", "matching")}
OBJECTIVES = STAGES["stage 2"]


@dataclass(frozen=True)
class Workload:
    """
    Geometry of the model and size of a training step.

    Args:
        geometry: `mini` or `base`.
        cells, genes: Number of cells in a step, and of genes in a cell.
        texts, tokens: Number of distinct descriptions in a step, and of tokens in each.
    """

    geometry: str
    cells: int
    genes: int
    texts: int
    tokens: int

    def model(self, stage: str) -> LangCellForPreTraining:
        """
        Returns a model with random weights; those that the stage does not train are frozen. The cell tower's attention
        has no dropout: with it a CPU keeps every score, at the base geometry more than 20 GB of them.
        """
        weights = {f"{name}_weight": float(name in STAGES[stage]) for name in OBJECTIVES}
        if self.geometry == "mini":
            config = LangCellConfig.from_pretrained(resolve_checkpoint(MINI))
            for name, value in weights.items():
                setattr(config, name, value)
        else:
            config = LangCellConfig(**weights)
        config.cell_config.attention_probs_dropout_prob = 0
        config.cell_config.max_position_embeddings = max(config.cell_config.max_position_embeddings, self.genes)
        model = LangCellForPreTraining(config).train()
        if stage == "stage 1":
            model.text_model.requires_grad_(False)
        return model

    def batch(self, config: LangCellConfig, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
        """Returns a random batch of cells of full length and of descriptions."""
        generator = torch.Generator().manual_seed(seed)
        cells, texts = config.cell_config, config.text_config
        ids = torch.randint(2, cells.vocab_size - 1, (self.cells, self.genes), generator=generator)
        ids[:, 0] = cells.cls_token_id
        batch = {
            "cell_input_ids": ids,
            "cell_attention_mask": torch.ones_like(ids),
            "input_ids": torch.randint(5, texts.vocab_size, (self.texts, self.tokens), generator=generator),
            "attention_mask": torch.ones(self.texts, self.tokens, dtype=torch.long),
            "text_index": torch.arange(self.cells) % self.texts,
        }
        return {name: tensor.to(device) for name, tensor in batch.items()}


def measure(workload: Workload, stage: str, rounds: int, seed: int, compile_towers: bool) -> dict[str, Any]:
    """
    Measures steps of forward, backward and AdamW, each next to matrix products that measure the machine's rate at that
    moment. Returns medians over the rounds of cells and genes per second, and the utilisation: the share of the
    machine's rate that the model's operations reach. Operations that attention repeats to save memory count twice.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(seed)
    model = workload.model(stage).to(device)
    batch = workload.batch(model.config, device, seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def step() -> None:
        with autocast():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with autocast():  # In single precision the batch would not fit into a GPU's memory.
        operations = operations_of_a_step(model, batch)
    if compile_towers:
        model.cell_model.compile()
        model.text_model.compile()
    side = 8192 if device.type == "cuda" else 1024
    factors = torch.randn(2, side, side, device=device, dtype=dtype)

    repeats = 20

    def multiply_often() -> None:
        for _ in range(repeats):
            torch.matmul(factors[0], factors[1])

    for _ in range(2):
        step()
        multiply_often()
    seconds, machine = [], []
    for _ in range(rounds):
        seconds.append(time_of(step, device))
        machine.append(2 * side**3 * repeats / time_of(multiply_often, device))
    rate = workload.cells / float(np.median(seconds))
    return {
        "cells": workload.cells,
        "genes": workload.genes,
        "texts": workload.texts if stage == "stage 2" else 0,
        "precision": str(dtype).removeprefix("torch."),
        "seconds_a_step": seconds,
        "cells_per_second": rate,
        "genes_per_second": rate * workload.genes,
        "teraflop_a_step": operations / 1e12,
        "machine_teraflops": float(np.median(machine)) / 1e12,
        "utilisation": float(np.median([operations / s / m for s, m in zip(seconds, machine, strict=True)])),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    }


def operations_of_a_step(model: LangCellForPreTraining, batch: dict[str, torch.Tensor]) -> float:
    """Counts the operations of matrix products and attention, forward and backward."""
    counted = count_operations(lambda: model(**batch).loss.backward())
    model.zero_grad(set_to_none=True)
    return counted


def days(cells_per_second: dict[str, float]) -> float:
    """Returns the days that the paper's cells take at these rates, once through each stage."""
    return sum(PAPER_CELLS / rate for rate in cells_per_second.values()) / 86_400


__all__ = ["PAPER_A100_DAYS", "PAPER_CELLS", "STAGES", "Workload", "days", "measure", "operations_of_a_step"]
