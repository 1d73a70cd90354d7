# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The config of a checkpoint, and the size of the model that it describes."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..model.errors import InputError
from .screening import require_harmless


def read_config(folder: Path) -> PreTrainedConfig:
    """
    Returns the config of a LangCell model.

    Raises:
        InputError: The folder has no config, a damaged one, or one of a different model family; or `require_harmless`
            refuses it.
    """
    require_harmless(folder, folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0] if (folder / CONFIG_NAME).is_file() else f"no {CONFIG_NAME}"
        raise InputError(f"{folder} is not a checkpoint: {reason}") from error
    if not str(config.model_type).startswith("langcell"):
        raise InputError(f"{folder} is a checkpoint of {config.model_type}, not of langcell.")
    return config


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Returns the model that `AutoModel` makes from a config, with new weights."""
    return AutoModel.from_config(config, attn_implementation="sdpa", trust_remote_code=False)


def count_parameters(config: PreTrainedConfig) -> int:
    """Returns the number of parameters of the model that `AutoModel` makes from a config."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


__all__ = ["build_model", "count_parameters", "read_config"]
