# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The record that `langcell adapt` writes next to the weights: the labels, the base checkpoint and the settings."""

import json
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..model.errors import InputError, reason_of
from ..model.prompts import Description
from .files import ADAPTATION, read_json

PROTOTYPES = "prototypes.safetensors"
Head = Literal["descriptions", "classes", "prototypes"]


@dataclass(frozen=True)
class Adaptation:
    """
    Record of an adaptation, with its labels and settings: the file `adaptation.json` next to the weights.

    Args:
        head: Part that separates the labels: their `descriptions`, a classification head (`classes`), or
            `prototypes`.
        labels: Labels and their descriptions, in the order of the head's outputs. Descriptions may be empty with a
            classification head.
        base: Checkpoint that was adapted.
        multilabel: True if a cell may have several labels.
        alpha: Weight of the similarity against the matching head.
        prototype_weight: Weight of the prototypes against the descriptions.
        marker_weight: Weight of the genes that mark the labels, same as for `DescriptionScorer`.
        genes: For each label the names of the genes that mark it (`markers`) and that it lacks (`absent`).
        cells: Number of training cells of each label.
        settings: Settings of the adaptation.
        versions: Versions of the packages that made it.
        prototypes: `(labels, projection_dim)`; kept in a separate file.
        base_weights: Hash of the weights of `base`. On other weights the adapter gives meaningless scores.
        loaded_from: Folder or Hub id; empty for an adaptation in memory.
    """

    head: Head
    labels: dict[str, str]
    base: str
    multilabel: bool = False
    alpha: float = 1.0
    prototype_weight: float = 0.0
    marker_weight: float = 0.0
    genes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    cells: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    prototypes: torch.Tensor | None = field(default=None, repr=False, compare=False)
    base_weights: str = ""
    loaded_from: str = ""

    @property
    def descriptions(self) -> dict[str, Description]:
        """Descriptions of the labels: their texts, and the genes that mark them, read from the texts if not given."""
        found = {}
        for label, text in self.labels.items():
            genes, texts = self.genes.get(label), (text,) if text else ()
            lists = () if genes is None else (tuple(genes["markers"]), tuple(genes["absent"]))
            found[label] = Description(texts, *lists)
        return found

    @property
    def classes(self) -> dict[str, Any]:
        """Settings of the labels in the config of `LangCellForSequenceClassification`."""
        kind = "multi_label_classification" if self.multilabel else "single_label_classification"
        names = dict(enumerate(self.labels))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": kind}

    def save(self, folder: Path) -> None:
        """Writes `adaptation.json`, and the prototypes if there are any."""
        record = {name: value for name, value in asdict(self).items() if name not in ("prototypes", "loaded_from")}
        (folder / ADAPTATION).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.prototypes is not None:
            save_file({"prototypes": self.prototypes.contiguous()}, folder / PROTOTYPES)

    @classmethod
    def read(cls, folder: Path, source: str | Path | None = None) -> "Adaptation | None":
        """
        Reads the record in a folder.

        Args:
            folder: The folder.
            source: Folder or Hub id as the user named it; the folder by default.

        Returns:
            The adaptation; `None` if nothing was adapted.

        Raises:
            InputError: A file of the adaptation is missing or damaged.
        """
        if not (folder / ADAPTATION).is_file():
            return None
        source = folder if source is None else source
        given = read_json(folder / ADAPTATION)
        # Older records call it `several`.
        record = {"multilabel" if name == "several" else name: value for name, value in given.items()}
        record |= {"loaded_from": str(source), "prototypes": None}
        try:
            found = cls(**record)
            found._check()
            if found.head == "prototypes":
                if not (folder / PROTOTYPES).is_file():
                    raise InputError(f"{source} has no {PROTOTYPES}.")
                found = replace(found, prototypes=load_file(folder / PROTOTYPES)["prototypes"])
        except (TypeError, KeyError, OSError, SafetensorError) as error:
            raise InputError(f"The adaptation in {source} cannot be read: {reason_of(error)}.") from error
        return found

    def _check(self) -> None:
        """
        Checks the types of what was read.

        Raises:
            TypeError: An entry has a different type from the one the class declares.
        """

        def is_genes(names: Any) -> bool:
            return isinstance(names, list) and all(isinstance(name, str) for name in names)

        mappings = {"labels": str, "cells": int, "settings": object, "versions": str, "genes": dict}
        right = (
            self.head in get_args(Head)
            and all(isinstance(text, str) for text in (self.base, self.base_weights))
            and isinstance(self.multilabel, bool)
            and all(isinstance(one, (int, float)) for one in (self.alpha, self.prototype_weight, self.marker_weight))
            and all(is_genes(one[kind]) for one in self.genes.values() for kind in ("markers", "absent"))
            and all(
                isinstance(found := getattr(self, name), dict) and all(isinstance(one, kind) for one in found.values())
                for name, kind in mappings.items()
            )
        )
        if not right:
            raise TypeError("its entries are not of the types that langcell adapt writes")


def versions() -> dict[str, str]:
    """Returns the versions of the packages that make an adaptation."""
    return {name: version(name) for name in ("modeling-langcell", "torch", "transformers", "peft")}


__all__ = ["PROTOTYPES", "Adaptation", "Head", "versions"]
