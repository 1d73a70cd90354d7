# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The identity of inputs: a copy is the same input, and another file under the same name is not."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from .progress import progress_bar

#: What is said while an input is read for its hash.
READING = "Reading the input"

_BLOCK = 2**20  # Bytes that are read at once.


def content_hash(path: str | Path, files: Iterable[Path] | None = None) -> str:
    """
    Returns the SHA-256 of a file, or of the names and contents of several files. It depends on nothing else: neither on
    their times nor on their place.

    Args:
        path: A file or a folder.
        files: The files to read, in or beside `path`; by default the file, or all files of the folder.

    Raises:
        OSError: A file cannot be read.
    """
    path = Path(path)
    if files is None:
        files = path.rglob("*") if path.is_dir() else [path]
    parts = sorted(part for part in files if part.is_file())
    digest = hashlib.sha256()
    with progress_bar() as progress:
        task = progress.add_task(READING, total=sum(part.stat().st_size for part in parts))
        for part in parts:
            if part != path:
                digest.update(b"%s\0%d\0" % (os.fsencode(os.path.relpath(part, path)), part.stat().st_size))
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    progress.advance(task, len(block))
    return digest.hexdigest()


__all__ = ["READING", "content_hash"]
