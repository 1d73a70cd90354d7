# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Folders that tests read, and copies of checkpoint folders that cost nothing."""

import os
import shutil
from pathlib import Path

#: The root of the checkout.
REPOSITORY = Path(__file__).resolve().parent.parent.parent

#: The shipped checkpoint.
MINI = REPOSITORY / "hub_configs" / "langcell-mini"


def copy_checkpoint(source: Path, target: Path, ignore=None) -> Path:
    """
    Copies a checkpoint folder as files that may be changed, except for the weights, which are linked.

    A test that writes into `model.safetensors` itself must copy that file first.
    """

    def copy(here: str, there: str) -> None:
        if here.endswith(".safetensors"):
            link(Path(here), Path(there))
        else:
            shutil.copy2(here, there)

    return Path(shutil.copytree(source, target, ignore=ignore, copy_function=copy))


def link(source: Path, target: Path) -> None:
    """Links a file, by a hard link where both are on one disk, else by a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
