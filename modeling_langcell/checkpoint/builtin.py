# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The checkpoint and the configuration that come with the package, and the templates of cards."""

from difflib import get_close_matches
from pathlib import Path

from ..model.errors import InputError

#: A small checkpoint.
MINI = "langcell-mini"
#: The configuration of the paper's sizes, without weights.
BASE = "langcell-base"

_PACKAGE = Path(__file__).resolve().parent.parent


def _folder(name: str) -> Path:
    """Returns a folder of data: inside the package in a wheel, next to it in a checkout."""
    return next(folder for folder in (_PACKAGE / name, _PACKAGE.parent / name) if folder.is_dir())


_HUB_CONFIGS = _folder("hub_configs")
#: Templates of cards.
MODEL_CARDS = _folder("model_cards")


def resolve_checkpoint(checkpoint: str | Path, *, only_config: bool = False) -> str:
    """
    Returns the folder of the package's checkpoint for `langcell-mini`, unless the working directory has a folder of
    that name. Any other checkpoint is returned as it was given.

    Args:
        checkpoint: Name, folder or Hub id.
        only_config: True if the weights are not needed, so that `langcell-base` will do.

    Raises:
        InputError: The name is nearly, but not quite, that of a checkpoint of the package; or it is `langcell-base`,
            which has no weights.
    """
    name = str(checkpoint)
    if Path(name).is_dir():
        return name
    if name == MINI or (name == BASE and only_config):
        return str(_HUB_CONFIGS / name)
    if name == BASE:
        raise InputError(
            f"{BASE} is only a configuration, of the paper's sizes, without weights: train it with `langcell pretrain`,"
            f" make a checkpoint of the published weights with `langcell convert`, or take {MINI}."
        )
    plain = name.lower().replace("_", "-").replace(" ", "-")
    if "/" not in name and (close := get_close_matches(plain, (MINI, BASE), n=1, cutoff=0.75)):
        raise InputError(f"There is no folder and no checkpoint {name!r}. Did you mean {close[0]!r}?")
    return name


def display_name(checkpoint: str | Path) -> str:
    """
    Returns the name of a checkpoint for records and messages: `langcell-mini` for the package's own, wherever it is
    installed. Any other checkpoint is returned as it was given.
    """
    builtin = (_HUB_CONFIGS / MINI).resolve()
    return MINI if Path(checkpoint).is_dir() and Path(checkpoint).resolve() == builtin else str(checkpoint)


__all__ = ["BASE", "MINI", "MODEL_CARDS", "display_name", "resolve_checkpoint"]
