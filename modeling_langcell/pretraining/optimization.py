# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The trained parameters, and the optimizer with its schedule and running average (LangCell, section 3.3)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_scheduler

from ..model.errors import InputError
from ..model.modeling_langcell import LangCellForPreTraining
from .config import PretrainingConfig


def freeze_parameters(model: LangCellForPreTraining, config: PretrainingConfig) -> None:
    """
    Freezes the parameters that the config keeps, and those that no objective reaches: DDP waits for the gradient of
    every parameter that requires one.
    """
    objectives = model.config
    needs_texts = bool(objectives.cell_text_weight or objectives.matching_weight)
    needs_cells = bool(needs_texts or objectives.masked_gene_weight or objectives.cell_cell_weight)
    model.lm_head.requires_grad_(bool(objectives.masked_gene_weight))
    # This comes after the head, whose output weights may be the tower's.
    model.cell_model.requires_grad_(needs_cells and config.train_cell_tower)
    # The matching uses the similarity only to draw its negatives: no gradient reaches the projections from there.
    model.cell_projection.requires_grad_(bool(objectives.cell_text_weight))
    model.text_projection.requires_grad_(bool(objectives.cell_text_weight) and config.train_text_projection)
    model.matching_head.requires_grad_(bool(objectives.matching_weight))
    for name, parameter in model.text_model.named_parameters():
        is_cross_attention = ".crossattention." in name
        parameter.requires_grad_(
            bool(objectives.matching_weight) if is_cross_attention else needs_texts and config.train_text_tower
        )


def create_optimizer(parameters: Iterable[nn.Parameter], config: PretrainingConfig) -> torch.optim.Optimizer:
    """
    Returns AdamW over the parameters that are not frozen; matrices decay, biases and normalizations do not.

    Raises:
        InputError: All parameters are frozen.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise InputError(
            "Nothing would be trained: every parameter that the objectives reach is frozen, or no objective has a "
            "weight."
        )
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def create_schedule(optimizer: torch.optim.Optimizer, config: PretrainingConfig) -> LRScheduler:
    """Returns the learning rate's linear warm-up and its decay to zero."""
    return get_scheduler(config.schedule, optimizer, config.warmup_steps, config.steps)


def create_average(model: nn.Module, config: PretrainingConfig) -> AveragedModel | None:
    """Returns the running average of the weights, or None if there is none."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.averaging)) if config.averaging else None


__all__ = ["create_average", "create_optimizer", "create_schedule", "freeze_parameters"]
