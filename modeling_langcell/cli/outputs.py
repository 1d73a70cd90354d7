# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Writes the tables and the figures of the commands."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..io.atomic import atomic_write
from ..model.errors import InputError, reason_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_table(table: str, path: Path) -> Path:
    """
    Writes a table, and returns its path.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        atomic_write(path, table.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}.") from error
    return path


def write_figure(figure: "Figure", path: Path) -> Path:
    """
    Writes a figure in the format of the path's suffix, and returns the path.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise InputError(f"The figure {path} cannot be written: {reason_of(error)}.") from error
    return path
