# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Files and folders that appear whole or not at all."""

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from errno import EEXIST, EISDIR, ENOTDIR
from pathlib import Path
from uuid import uuid4

from ..model.errors import InputError, reason_of


def require_writable_file(path: str | Path) -> None:
    """
    A place for a file: nothing, or a file that it replaces.

    Raises:
        OSError: Something else is there or above it, a folder or a device, or nothing can have such a name.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder", str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(EEXIST, "it is no file, and is not replaced by one", str(path))
    if not (there := nearest_parent(path)).is_dir():
        raise NotADirectoryError(ENOTDIR, f"{there} is a file, not a folder", str(path))


def require_apart(
    outputs: Iterable[tuple[str, Path | None]],
    inputs: Iterable[tuple[str, Path | None]],
    *,
    allowed: Collection[tuple[str, str]] = (),
) -> None:
    """
    Checks that no output is written over an input or over another output, by whatever names: relative ones, symbolic
    links and hard links are seen through, and an output need not be there yet.

    Args:
        outputs: What the user calls each file that is to be written, and its path; `None` for one that is not asked
            for.
        inputs: The same of each file that is read.
        allowed: Names of an output and an input that may be the same file.

    Raises:
        InputError: Two that must not be are the same file.
    """
    others = [(name, path) for name, path in inputs if path is not None]
    for name, path in outputs:
        if path is None:
            continue
        for other, its_path in others:
            if (name, other) not in allowed and _is_same(path, its_path):
                raise InputError(
                    f"{name} {path} is the same file as {other} ({its_path}), which it would overwrite: choose another "
                    f"path for {name}."
                )
        others.append((name, path))


def _is_same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # Hard links, and names that differ in case where that does not matter.
    except OSError:
        return False  # One of them is not there yet.


def atomic_write(path: str | Path, content: bytes) -> None:
    """
    Writes a file aside and renames it: whoever looks sees nothing or all of it, and it outlives a crash of the machine.
    Its folder is made if need be, and what could not be written is not left behind.

    Raises:
        OSError: It cannot be written there.
    """
    path = Path(path)
    require_writable_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def require_new_folder(output: str | Path) -> Path:
    """
    A folder that can be made.

    Raises:
        InputError: Something is there already, or nothing can be written there.
    """
    output = Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"{output} exists already: choose a new folder.")
    there = nearest_parent(output)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{output} cannot be written: {there} is no folder that can be written to.")
    return output


def nearest_parent(path: Path) -> Path:
    """The nearest of a path's parents that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


@contextmanager
def atomic_folder(output: str | Path) -> Iterator[Path]:
    """
    A folder to fill, which becomes `output` when all went well; after an error nothing of it is left.

    Raises:
        InputError: `output` is in use, or cannot be written.
    """
    output = require_new_folder(output)
    try:
        # Made beside the nearest parent that exists, so that renaming it is one step on one file system.
        with tempfile.TemporaryDirectory(dir=nearest_parent(output), prefix=f".{output.absolute().name}-") as aside:
            folder = Path(aside) / output.absolute().name
            folder.mkdir()
            yield folder
            output.parent.mkdir(parents=True, exist_ok=True)
            if output.is_dir():
                output.rmdir()  # It is empty.
            folder.rename(output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {reason_of(error)}.") from error


__all__ = ["atomic_folder", "atomic_write", "require_apart", "require_new_folder", "require_writable_file"]
