# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What an adaptation leaves behind: what a checkpoint was adapted to, and how."""

import json
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..model.errors import InputError, reason_of
from ..publishing.cards import Prose, render
from .files import ADAPTATION, CARD
from .repository import fetch

PROTOTYPES = "prototypes.safetensors"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Head = Literal["descriptions", "classes", "prototypes"]


@dataclass(frozen=True)
class Adaptation:
    """
    What a checkpoint was adapted to, and how: the file `adaptation.json` beside the weights.

    Args:
        head: What tells the labels apart: their `descriptions`, a classification head (`classes`), or `prototypes`.
        labels: Labels and their descriptions, in the order of the head's outputs; a description may be empty where
            there is a classification head.
        base: Checkpoint that was adapted.
        multilabel: Whether a cell may have several labels.
        alpha: Weight of the similarity against the matching head.
        prototype_weight: Weight of the prototypes against the descriptions.
        cells: How many cells of each label were learnt from.
        settings: How it was made.
        versions: What it was made with.
        prototypes: `(labels, projection_dim)`; in a file of their own.
        base_weights: Hash of the weights of `base`: the same adapter on others says nothing.
        loaded_from: Folder or id; empty in memory.
    """

    head: Head
    labels: dict[str, str]
    base: str
    multilabel: bool = False
    alpha: float = 1.0
    prototype_weight: float = 0.0
    cells: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    prototypes: torch.Tensor | None = field(default=None, repr=False, compare=False)
    base_weights: str = ""
    loaded_from: str = ""

    @property
    def classes(self) -> dict[str, Any]:
        """What the config of `LangCellForSequenceClassification` says of the labels."""
        kind = "multi_label_classification" if self.multilabel else "single_label_classification"
        names = dict(enumerate(self.labels))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": kind}

    def save(self, folder: Path) -> None:
        """Writes `adaptation.json`, the prototypes if there are any, and the card."""
        said = {name: value for name, value in asdict(self).items() if name not in ("prototypes", "loaded_from")}
        (folder / ADAPTATION).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.prototypes is not None:
            save_file({"prototypes": self.prototypes.contiguous()}, folder / PROTOTYPES)
        (folder / CARD).write_text(render(folder, Prose()), encoding="utf-8")

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> "Adaptation | None":
        """
        From a folder or a Hub id; none where nothing was adapted.

        Raises:
            InputError: No such folder or repository, or a damaged file.
        """
        return cls._read(fetch(source, revision), source)

    @classmethod
    def _read(cls, folder: Path, source: str | Path) -> "Adaptation | None":
        """From the folder of what goes by the name `source`."""
        if not (folder / ADAPTATION).is_file():
            return None
        try:
            said = json.loads((folder / ADAPTATION).read_text(encoding="utf-8"))
            # Older ones call it `several`.
            found = cls(**{"multilabel" if name == "several" else name: value for name, value in said.items()})
            found._check()
            if found.head == "prototypes":
                if not (folder / PROTOTYPES).is_file():
                    raise InputError(f"{source} has no {PROTOTYPES}.")
                found = replace(found, prototypes=load_file(folder / PROTOTYPES)["prototypes"])
        except (TypeError, ValueError, KeyError, RecursionError, OSError, SafetensorError) as error:
            raise InputError(f"The adaptation in {source} cannot be read: {reason_of(error)}.") from error
        return replace(found, loaded_from=str(source))

    def _check(self) -> None:
        """
        Raises:
            TypeError: What was read has other types than the class says.
        """
        mappings = {"labels": str, "cells": int, "settings": object, "versions": str}
        right = (
            self.head in get_args(Head)
            and isinstance(self.base, str)
            and all(isinstance(number, (int, float)) for number in (self.alpha, self.prototype_weight))
            and all(
                isinstance(found := getattr(self, name), dict) and all(isinstance(one, kind) for one in found.values())
                for name, kind in mappings.items()
            )
        )
        if not right:
            raise TypeError("its entries are not of the kinds that langcell adapt writes")


def versions() -> dict[str, str]:
    """What an adaptation was made with."""
    return {name: version(name) for name in ("modeling-langcell", "torch", "transformers", "peft")}


__all__ = ["PEFT_CONFIG", "PEFT_WEIGHTS", "PROTOTYPES", "Adaptation", "Head", "versions"]
