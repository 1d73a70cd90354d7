# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The checkpoint that comes with the package, by a name that means the same on every machine."""

from pathlib import Path

MINI = "langcell-mini"

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the checkpoint inside the package; a checkout has it beside the package.
_HUB_CONFIGS = next(folder for folder in (_PACKAGE / "hub_configs", _PACKAGE.parent / "hub_configs") if folder.is_dir())


def locate(checkpoint: str | Path) -> str:
    """Where a checkpoint is: `langcell-mini`, where no folder here is called so, is the one of the package."""
    if str(checkpoint) == MINI and not Path(MINI).is_dir():
        return str(_HUB_CONFIGS / MINI)
    return str(checkpoint)


def name_of(checkpoint: str | Path) -> str:
    """A checkpoint as others are told of it: the package's by its name, any other as it was given."""
    shipped = (_HUB_CONFIGS / MINI).resolve()
    return MINI if Path(checkpoint).is_dir() and Path(checkpoint).resolve() == shipped else str(checkpoint)


__all__ = ["MINI", "locate", "name_of"]
