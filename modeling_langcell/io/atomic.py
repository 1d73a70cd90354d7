# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Atomic writes: files and folders appear complete or not at all, and never replace an input."""

import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from errno import EEXIST, EISDIR, ENOTDIR
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from ..model.errors import InputError, reason_of

#: The name that `atomic_file` gives to a file until it is complete.
_INCOMPLETE = re.compile(r"\.(.+)\.[0-9a-f]{32}", re.DOTALL)


def complete_name(path: Path) -> str | None:
    """Returns the final name of an incomplete file of `atomic_file`; None for any other file."""
    found = _INCOMPLETE.fullmatch(path.name)
    return found[1] if found else None


def require_writable_file(path: str | Path) -> None:
    """
    Checks that a file can be written to a path: there is nothing at the path, or a file that can be replaced.

    Raises:
        OSError: The path is a folder or a device, a parent is a file, or the name is invalid.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder", str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(EEXIST, "it is not a regular file, and is not replaced", str(path))
    if not (parent := _nearest_parent(path)).is_dir():
        raise NotADirectoryError(ENOTDIR, f"{parent} is a file, not a folder", str(path))


def reserve(path: Path, size: int) -> None:
    """
    Lengthens a file by `size` bytes, so that a full disk fails here: HDF5 and mapped memory do not recover from it.
    HDF5 gives back the space that it does not need.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size + size)


def require_apart(
    outputs: Iterable[tuple[str, Path | None]],
    inputs: Iterable[tuple[str, Path | None]],
    *,
    allowed: Collection[tuple[str, str]] = (),
) -> None:
    """
    Checks that no output would overwrite an input or another output. Relative names, symbolic links and hard links are
    resolved; an output need not exist yet.

    Args:
        outputs: The user's name for each file that is to be written, and its path; `None` for a file that is not
            wanted.
        inputs: The same for each file that is read.
        allowed: Pairs of an output's and an input's name that may be the same file.

    Raises:
        InputError: Two paths are the same file and must not be.
    """
    others = [(name, path) for name, path in inputs if path is not None]
    for name, path in outputs:
        if path is None:
            continue
        for other, other_path in others:
            if (name, other) not in allowed and _is_same(path, other_path):
                raise InputError(
                    f"{name} {path} is the same file as {other} ({other_path}), which it would overwrite: choose "
                    "another path for one of them."
                )
        others.append((name, path))


def _is_same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # Hard links, and names on a file system that ignores case.
    except OSError:
        return False  # One of them does not exist yet.


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """
    Yields a temporary path for a file, which is renamed to `path` at the end, so that readers see all of it or nothing,
    even after the machine crashes. Makes its folder if needed, and leaves nothing behind if writing fails.

    Raises:
        OSError: The file cannot be written there.
    """
    path = Path(path)
    require_writable_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: bytes) -> None:
    """
    Writes a file as a whole or not at all; see `atomic_file`.

    Raises:
        OSError: The file cannot be written there.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def require_new_folder(output: str | Path) -> Path:
    """
    Checks that a folder can be made at a path.

    Raises:
        InputError: The path already exists, or nothing can be written there.
    """
    output = Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"{output} already exists: choose a new folder.")
    parent = _nearest_parent(output)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{output} cannot be written: {parent} is not a folder with write access.")
    return output


def _nearest_parent(path: Path) -> Path:
    """Returns the nearest of a path's parents that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


@contextmanager
def atomic_folder(output: str | Path) -> Iterator[Path]:
    """
    Yields a temporary folder to fill, which is renamed to `output` at the end, or deleted after an error.

    Raises:
        InputError: `output` already exists, or cannot be written.
    """
    output = require_new_folder(output)
    place = output.absolute()
    try:
        # The nearest parent that exists is used, so that renaming stays on one file system and is atomic.
        with tempfile.TemporaryDirectory(dir=_nearest_parent(output), prefix=f".{place.name}-") as temporary:
            folder = Path(temporary) / place.name
            folder.mkdir()
            yield folder
            output.parent.mkdir(parents=True, exist_ok=True)
            if output.is_dir():
                output.rmdir()  # It is empty.
            folder.rename(output)
    except (OSError, SafetensorError) as error:
        if (named := getattr(error, "filename", None)) is not None:
            at = Path(os.fsdecode(named)).absolute()
            if not place.is_relative_to(at) and f".{place.name}-" not in str(at):
                raise  # The error is about another file, such as one that was read.
        raise InputError(f"{output} cannot be written: {reason_of(error)}.") from error


__all__ = [
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "complete_name",
    "require_apart",
    "require_new_folder",
    "require_writable_file",
    "reserve",
]
