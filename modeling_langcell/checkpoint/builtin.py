# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The checkpoint that comes with the package, and the templates of cards."""

from pathlib import Path

MINI = "langcell-mini"

_PACKAGE = Path(__file__).resolve().parent.parent


def _folder(name: str) -> Path:
    """Returns a folder of data: inside the package in a wheel, next to it in a checkout."""
    return next(folder for folder in (_PACKAGE / name, _PACKAGE.parent / name) if folder.is_dir())


_HUB_CONFIGS = _folder("hub_configs")
#: Templates of cards.
MODEL_CARDS = _folder("model_cards")


def resolve_checkpoint(checkpoint: str | Path) -> str:
    """
    Returns the folder of the package's checkpoint for `langcell-mini`, unless the working directory has a folder of
    that name. Any other checkpoint is returned as it was given.
    """
    if str(checkpoint) == MINI and not Path(MINI).is_dir():
        return str(_HUB_CONFIGS / MINI)
    return str(checkpoint)


def display_name(checkpoint: str | Path) -> str:
    """
    Returns the name of a checkpoint for records and messages: `langcell-mini` for the package's own, wherever it is
    installed. Any other checkpoint is returned as it was given.
    """
    builtin = (_HUB_CONFIGS / MINI).resolve()
    return MINI if Path(checkpoint).is_dir() and Path(checkpoint).resolve() == builtin else str(checkpoint)


__all__ = ["MINI", "MODEL_CARDS", "display_name", "resolve_checkpoint"]
