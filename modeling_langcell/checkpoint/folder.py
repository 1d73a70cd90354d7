# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The folder of a checkpoint as one object: its files are read once, and its model is loaded once."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..model.errors import InputError
from ..model.modeling_langcell import LangCellModel
from ..model.processing_langcell import LangCellProcessor
from .adaptation_record import Adaptation
from .config import count_parameters, read_config
from .files import ADAPTATION, EVALUATION, PROCESSOR, TOKENIZER, TRAINING, read_json
from .fingerprint import fingerprint
from .loading import load_checkpoint, load_model, load_processor

Kind = Literal["checkpoint", "architecture", "adapter"]
#: A folder with a config but none of these is an architecture.
_OF_A_CHECKPOINT = (SAFE_WEIGHTS_NAME, PROCESSOR, TOKENIZER, TRAINING, EVALUATION, ADAPTATION)


@dataclass(frozen=True)
class CheckpointFolder:
    """
    A folder that `train.py`, `langcell convert` or `langcell adapt` made, as cards and checks read it. Every property
    is computed when it is first used, and raises `InputError` if the files do not allow it.

    Args:
        path: The folder.
        base: Checkpoint to load an adapter on; by default the one named in its record.
    """

    path: Path
    base: str | None = None
    _json: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the folder, without its parents."""
        return self.path.resolve().name

    @cached_property
    def kind(self) -> Kind:
        """A checkpoint, the architecture of one without weights, or an adapter (or prototypes)."""
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder.")
        if (self.path / CONFIG_NAME).is_file():
            return "checkpoint" if any((self.path / name).exists() for name in _OF_A_CHECKPOINT) else "architecture"
        if (self.path / ADAPTATION).is_file():
            return "adapter"
        raise InputError(f"{self.path} holds neither a checkpoint ({CONFIG_NAME}) nor an adapter ({ADAPTATION}).")

    def json(self, name: str) -> dict[str, Any]:
        """Content of one of the folder's JSON files; empty if there is no such file."""
        if name not in self._json:
            self._json[name] = read_json(self.path / name)
        return self._json[name]

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Config of the model; an adapter has none."""
        return read_config(self.path)

    @cached_property
    def adaptation(self) -> Adaptation | None:
        """Record of the adaptation, if there was one."""
        return Adaptation.read(self.path)

    @property
    def training(self) -> list[dict[str, Any]]:
        """Training runs that made the weights, in order."""
        return self.json(TRAINING).get("runs", [])

    @property
    def evaluation(self) -> dict[str, Any]:
        """Results of the evaluation; empty if nothing was measured."""
        return self.json(EVALUATION)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the model that `AutoModel` makes from the config."""
        return count_parameters(self.config)

    @cached_property
    def processor(self) -> LangCellProcessor:
        """Processor of a checkpoint; for an adapter, that of its base."""
        if self.kind == "adapter":
            return self._with_base[1]
        return load_processor(self.path)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Model in float32; for an adapter, its base with the adapter merged."""
        return (
            self._with_base[0] if self.kind == "adapter" else load_model(self.path, self.adaptation, source=self.path)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash that the results of `langcell evaluate` hold."""
        if not isinstance(self.model, LangCellModel):
            raise InputError(f"{self.path} holds a {type(self.model).__name__}: only a LangCellModel is evaluated.")
        return fingerprint(self.model, self.processor)

    @cached_property
    def _with_base(self) -> tuple[PreTrainedModel, LangCellProcessor]:
        model, processor, _ = load_checkpoint(self.base, self.path)
        return model, processor


__all__ = ["CheckpointFolder", "Kind"]
