# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checks of weights by their headers, before memory is taken for them."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..model.errors import InputError, reason_of
from .files import read_json

#: Types of weights; older BERTs also store the numbers of their positions.
_TYPES = ("F64", "F32", "F16", "BF16", "I64")
#: A model with new parts, such as a head, is larger than the weights that it starts from, and never this much.
_LARGEST, _SMALL = 2, 1_000_000


def require_weights_for(build: Callable[[], nn.Module], folder: Path, source: object) -> None:
    """
    Checks that the weights in a folder are intact, and large enough for a model. With a config that asks for much more,
    transformers would take memory for all of it, fill it, and only then say which weights are missing.

    Args:
        build: Builds the model; called on the meta device, where it takes no memory.
        folder: The folder. One without safetensors is not checked.
        source: Folder or Hub id as the user named it, for messages.

    Raises:
        InputError: A file of weights is damaged, or the config asks for more numbers than the weights have.
    """
    files = _weight_files(folder, source)
    if not files:
        return
    stored = sum(math.prod(shape) for file in files for shape in read_shapes(file).values())
    with torch.device("meta"):
        needed = sum(weights.numel() for weights in build().state_dict().values())
    if needed > _LARGEST * stored + _SMALL:
        raise InputError(
            f"{source}: {CONFIG_NAME} asks for {needed:,} weights, and there are {stored:,}. They are of different "
            "checkpoints: use an intact copy."
        )


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """
    Returns the shapes of the tensors in a safetensors file by their names, without reading the tensors.

    Raises:
        InputError: The file is damaged: its header does not describe the whole file, and nothing else; or a tensor has
            another type than weights have.
    """
    try:
        with safe_open(file, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is not a mapping
            kinds = {str(one.get_dtype()) for one in slices.values()}
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged: {reason_of(error)}. Use an intact copy.") from error
    if other := kinds - {*_TYPES}:
        raise InputError(f"{file} holds numbers of the type {min(other)}, not weights: use an intact copy.")
    return shapes


def _weight_files(folder: Path, source: object) -> list[Path]:
    """
    Returns the files that transformers reads weights from.

    Raises:
        InputError: An index names a file outside the folder.
    """
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    shards = read_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {})
    names = {*map(str, shards.values())} if isinstance(shards, dict) else {""}
    if not {path.name for path in folder.glob("*.safetensors")}.issuperset(names):
        raise InputError(f"{source}: {SAFE_WEIGHTS_INDEX_NAME} must name only files in this folder.")
    return [folder / name for name in sorted(names)]


__all__ = ["read_shapes", "require_weights_for"]
