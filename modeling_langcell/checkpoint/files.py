# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The files of a checkpoint's folder, and what they say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..model.errors import InputError, reason_of

CARD, TRAINING, EVALUATION, ADAPTATION = "README.md", "training.json", "evaluation.json", "adaptation.json"


def read_json(path: Path) -> dict[str, Any]:
    """
    What a file holds; nothing where there is none.

    Raises:
        InputError: It is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object.")
    return found


def require_no_code(folder: Path) -> None:
    """
    Raises:
        InputError: The config in a folder, if there is one, names code of others to compute with: transformers would
            pull a kernel from the Hub, and run it, without asking.
    """

    def kernels(found: Any) -> Iterator[str]:
        for name, value in found.items() if isinstance(found, dict) else ():
            yield from kernels(value)
            if name.endswith("_implementation") and "/" in str(value):
                yield f"{name}: {value}"

    for named in kernels(read_json(folder / CONFIG_NAME)):
        raise InputError(f"{folder / CONFIG_NAME} names code of others ({named}): take it out, nothing needs it.")


def read_config(folder: Path) -> PreTrainedConfig:
    """
    Raises:
        InputError: No folder of a LangCell model.
    """
    require_no_code(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        reason = said[0] if (folder / CONFIG_NAME).is_file() else f"no {CONFIG_NAME}"
        raise InputError(f"{folder} is no checkpoint: {reason}") from error
    if not str(config.model_type).startswith("langcell"):
        raise InputError(f"{folder} is a checkpoint of {config.model_type}, not of langcell.")
    return config


def count_parameters(config: PreTrainedConfig) -> int:
    """Of the model that `AutoModel` makes of a config."""
    with torch.device("meta"):
        return sum(
            parameter.numel() for parameter in AutoModel.from_config(config, attn_implementation="sdpa").parameters()
        )


__all__ = [
    "ADAPTATION",
    "CARD",
    "EVALUATION",
    "TRAINING",
    "count_parameters",
    "read_config",
    "read_json",
    "require_no_code",
]
