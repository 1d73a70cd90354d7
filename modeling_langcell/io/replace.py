# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Writes results: whole or not at all, and never in place of a file of another kind."""

from pathlib import Path

from ..model.errors import InputError, reason_of
from .atomic import atomic_write
from .file_kinds import FileKind, require_replaceable


def write_result(path: str | Path, content: str | bytes, kind: FileKind) -> Path:
    """
    Writes a file, and makes its folder if there is none.

    Args:
        path: Path of the file.
        content: Its content; texts are written in UTF-8.
        kind: Its kind.

    Returns:
        The path.

    Raises:
        InputError: The file cannot be written, or would replace one of another kind.
    """
    path = Path(path)
    require_replaceable(path, kind)
    try:
        # Half of a surrogate pair, which the name of a file may hold, is no character.
        atomic_write(path, content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}.") from error
    return path


__all__ = ["write_result"]
