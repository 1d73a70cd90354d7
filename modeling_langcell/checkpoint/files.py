# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Names and readers of the files in a checkpoint's folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..model.errors import InputError, reason_of

TRAINING, EVALUATION, ADAPTATION = "training.json", "evaluation.json", "adaptation.json"
PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer.json"
#: The card, and a file for those of its sentences that no other file holds.
CARD, PROSE = "README.md", "card.yaml"


def read_json(path: Path) -> dict[str, Any]:
    """
    Returns the object in a JSON file; an empty one if there is no file.

    Raises:
        InputError: The file is damaged, or does not hold an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return found


@contextmanager
def explaining_entries(source: object) -> Iterator[None]:
    """
    Turns the errors raised by missing or odd entries of JSON files into one message.

    Raises:
        InputError: The code inside the `with` found a file with the right name and entries that are not this package's.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        why = f" ({reason_of(error)})" if isinstance(error, (KeyError, ValueError)) else ""
        raise InputError(f"A JSON file in {source} does not have the form that this package writes{why}.") from error


def require_no_code(config: dict[str, Any], source: object) -> None:
    """
    Checks that a config names no code from elsewhere. transformers would download such a kernel from the Hub and run it
    without asking.

    Args:
        config: The content of `config.json`.
        source: The file or the checkpoint, for the message.

    Raises:
        InputError: The config names such code.
    """

    def kernels(found: Any) -> Iterator[str]:
        for name, value in found.items() if isinstance(found, dict) else ():
            yield from kernels(value)
            if name.endswith("_implementation") and "/" in str(value):
                yield f"{name}: {value}"

    for named in kernels(config):
        raise InputError(f"{source} names code from elsewhere ({named}): remove the entry, the model does not need it.")


def read_config(folder: Path) -> PreTrainedConfig:
    """
    Returns the config of a LangCell model.

    Raises:
        InputError: The folder has no config, a damaged one, or one of a different model family.
    """
    require_no_code(read_json(folder / CONFIG_NAME), folder / CONFIG_NAME)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0] if (folder / CONFIG_NAME).is_file() else f"no {CONFIG_NAME}"
        raise InputError(f"{folder} is not a checkpoint: {reason}") from error
    if not str(config.model_type).startswith("langcell"):
        raise InputError(f"{folder} is a checkpoint of {config.model_type}, not of langcell.")
    return config


def count_parameters(config: PreTrainedConfig) -> int:
    """Returns the number of parameters of the model that `AutoModel` makes from a config."""
    with torch.device("meta"):
        return sum(
            parameter.numel() for parameter in AutoModel.from_config(config, attn_implementation="sdpa").parameters()
        )


__all__ = [
    "ADAPTATION",
    "CARD",
    "EVALUATION",
    "PROCESSOR",
    "PROSE",
    "TOKENIZER",
    "TRAINING",
    "count_parameters",
    "explaining_entries",
    "read_config",
    "read_json",
    "require_no_code",
]
