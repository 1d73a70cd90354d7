# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What comes with the package beside its code: a checkpoint, by a name that means the same everywhere, and cards."""

from pathlib import Path

MINI = "langcell-mini"

_PACKAGE = Path(__file__).resolve().parent.parent


def _folder(name: str) -> Path:
    """A wheel carries it inside the package; a checkout has it beside the package."""
    return next(folder for folder in (_PACKAGE / name, _PACKAGE.parent / name) if folder.is_dir())


_HUB_CONFIGS = _folder("hub_configs")
#: Templates of cards.
MODEL_CARDS = _folder("model_cards")


def resolve_checkpoint(checkpoint: str | Path) -> str:
    """Where a checkpoint is: `langcell-mini`, where no folder here is called so, is the one of the package."""
    if str(checkpoint) == MINI and not Path(MINI).is_dir():
        return str(_HUB_CONFIGS / MINI)
    return str(checkpoint)


def display_name(checkpoint: str | Path) -> str:
    """A checkpoint as others are told of it: the package's by its name, any other as it was given."""
    shipped = (_HUB_CONFIGS / MINI).resolve()
    return MINI if Path(checkpoint).is_dir() and Path(checkpoint).resolve() == shipped else str(checkpoint)


__all__ = ["MINI", "MODEL_CARDS", "display_name", "resolve_checkpoint"]
