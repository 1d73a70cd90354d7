# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The settings of an adaptation."""

import math
from dataclasses import dataclass
from typing import Literal

from ..checkpoint.adaptation_record import Head
from ..model.errors import InputError

Method = Literal["lora", "full", "frozen"]
Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class AdaptationConfig:
    """
    Settings of an adaptation.

    Args:
        head: Part that separates the labels: their `descriptions`, a classification head (`classes`, LangCell-CE), or
            `prototypes`, which need no training.
        method: `lora`; `full`, which trains all weights, those of the text tower only with `adapt_texts`; or `frozen`,
            which trains only the heads.
        rank: LoRA rank.
        epochs: Number of passes over the training cells.
        batch_cells: Cells per step.
        learning_rate: Peak learning rate, after warm-up; by default 5e-4 with `lora`, 5e-5 with `full`, 5e-3 with
            `frozen`.
        weight_decay: Weight decay of AdamW.
        gene_dropout: Upper bound of the random share of genes dropped from a cell in each epoch. It makes few cells
            more varied; the remaining genes are cut to the model's length as always.
        temperature: Temperature of the cosine between cells and descriptions during training. With the checkpoint's
            own, 0.05, the loss vanishes as soon as a few cells are separated; a higher one separates other cells
            better.
        matching: True to train and use matching, which takes most of the time; by default it is used if the
            checkpoint uses it.
        adapt_texts: True to adapt the text tower by LoRA too, which takes several times as long. Otherwise each
            description is encoded once.
        balanced: True to give every label the same weight, however many cells it has (`classes`).
        held_out: Share of the cells held out to watch the training. It stops when `patience` epochs bring no
            improvement, and the best weights are kept. With 0 it runs all epochs on all cells.
        patience: Number of epochs without improvement before training stops; see `held_out`.
        prototype_weight: Weight of the prototypes against the descriptions; by default it grows with the number of
            cells per label.
        marker_weight: Weight of the genes that mark the labels; by default the checkpoint's, which trained
            `descriptions` need less the more cells per label there are. Not for `classes`.
        precision: `no`, which trains in float32, or `bf16`, which computes in bfloat16 where that is safe.
        seed: Seed for drawing cells, their order, the genes dropped, and new weights.
    """

    head: Head = "descriptions"
    method: Method = "lora"
    rank: int = 8
    epochs: int = 30
    batch_cells: int = 12
    learning_rate: float | None = None
    weight_decay: float = 0.0
    gene_dropout: float = 0.8
    temperature: float = 0.4
    matching: bool | None = None
    adapt_texts: bool = False
    balanced: bool = False
    held_out: float = 0.0
    patience: int = 3
    prototype_weight: float | None = None
    marker_weight: float | None = None
    precision: Precision = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in ("descriptions", "classes", "prototypes"):
            raise InputError(f"head={self.head!r} is not one of 'descriptions', 'classes' and 'prototypes'.")
        if self.method not in ("lora", "full", "frozen"):
            raise InputError(f"method={self.method!r} is not one of 'lora', 'full' and 'frozen'.")
        if self.precision not in ("no", "bf16"):
            raise InputError(f"precision={self.precision!r} is not one of 'no' and 'bf16'.")
        for name in ("rank", "epochs", "batch_cells", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.temperature <= 0:
            raise InputError(f"temperature={self.temperature} must be above 0.")
        for name in ("gene_dropout", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is not a share: it must be at least 0 and less than 1.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning_rate={self.learning_rate} must be above 0.")
        if self.weight_decay < 0 or self.seed < 0:
            raise InputError("weight_decay and seed must not be below 0.")
        if self.prototype_weight is not None and not 0 <= self.prototype_weight <= 1:
            raise InputError(f"prototype_weight={self.prototype_weight} must be from 0 to 1.")
        if self.marker_weight is not None and not 0 <= self.marker_weight < math.inf:
            raise InputError(f"marker_weight={self.marker_weight} is not a weight: give 0 or more.")
        if self.marker_weight and self.head == "classes":
            raise InputError("marker_weight is not for the head 'classes', which does not use it.")
        for name, head in (("matching", "descriptions"), ("adapt_texts", "descriptions"), ("balanced", "classes")):
            if getattr(self, name) and self.head != head:
                raise InputError(f"{name} is for the head {head!r}: the head {self.head!r} does not use it.")
        if self.head == "prototypes" and (self.held_out or self.precision != "no"):
            name = "held_out" if self.held_out else "precision"
            raise InputError(f"{name} needs a trained head; prototypes are not trained.")

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate after the warm-up."""
        default = {"lora": 5e-4, "full": 5e-5, "frozen": 5e-3}[self.method]
        return default if self.learning_rate is None else self.learning_rate


__all__ = ["AdaptationConfig", "Method", "Precision"]
