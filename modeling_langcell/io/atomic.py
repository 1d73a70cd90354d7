# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Atomic writes: files and folders appear complete or not at all."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from ..model.errors import InputError, reason_of
from .outputs import place_of, require_new_folder, require_writable_file
from .owners import Lock, taking_over
from .stopping import undisturbed

#: The name of what is not complete yet, and of the lock that its writer holds beside it.
_INCOMPLETE = re.compile(r"\.(.+)\.[0-9a-f]{32}(\.lock)?", re.DOTALL)
_LOCK = ".lock"
#: Errors of a full disk, which do not always name the file.
_FULL = (ENOSPC, EDQUOT, EFBIG)


def complete_name(path: Path) -> str | None:
    """Returns the final name of an incomplete file, or of its lock; None for any other file."""
    found = _INCOMPLETE.fullmatch(path.name)
    return found[1] if found else None


def reserve(path: Path, size: int) -> None:
    """
    Lengthens a file by `size` bytes, so that a full disk fails here: HDF5 and mapped memory do not recover from it.
    HDF5 gives back the space that it does not need.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size + size)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """
    Yields a temporary path for a file, which is renamed to `path` at the end, so that readers see all of it or nothing,
    even after the machine crashes. If `path` is a link, it stays, and what it leads to is replaced. Makes its folder if
    needed, and leaves nothing behind if writing fails; what a killed process left, the next one that writes the same
    file removes.

    Raises:
        OSError: The file cannot be written there.
    """
    require_writable_file(path)
    place = place_of(path)
    try:
        with making_parents(place), temporary_file(place) as temporary:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(place)
    except OSError as error:
        if error.strerror is not None and (error.filename is None or complete_name(Path(error.filename)) == place.name):
            error.filename, error.filename2 = str(path), None  # The user knows the file by this name.
        raise


@contextmanager
def temporary_file(place: Path) -> Iterator[Path]:
    """
    Yields a path in the folder of `place` for a file that is deleted at the end, or at the next use of the same place
    if this process is killed.
    """
    with _temporary(place) as temporary:
        yield temporary


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """
    Yields an empty folder among the machine's temporary files that is deleted at the end, or at the next use if this
    process is killed.

    Raises:
        InputError: The folder cannot be written to, for example because the disk is full.
    """
    place = Path(tempfile.gettempdir()).absolute() / "langcell"
    try:
        with folder_beside(place) as temporary:
            yield temporary
    except OSError as error:
        if not _is_about(error, place) or (error.filename is None and error.errno not in _FULL):
            raise
        raise InputError(
            f"The folder for temporary files, {place.parent}, cannot be written: {reason_of(error)}. Free space there, "
            "or name another folder in the environment variable TMPDIR."
        ) from error


@contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """
    Yields an empty folder beside a place that is deleted at the end, or at the next use of the same place if this
    process is killed.
    """
    with _temporary(place) as temporary:
        temporary.mkdir(0o700)
        yield temporary


def _is_about(error: Exception, place: Path) -> bool:
    """Returns true if an error is about a place, or what is written in its stead, and not about another file."""
    # shutil names the source of a copy first, even if it is the copy that cannot be written.
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if named is None:
        return True
    at = Path(os.fsdecode(named)).absolute()
    return place.is_relative_to(at) or f".{place.name}." in str(at)


@contextmanager
def _temporary(place: Path) -> Iterator[Path]:
    """Yields a path beside a place that this process alone uses, which a lock shows to the others."""
    remove_leftovers(place)
    temporary = place.with_name(f".{place.name}.{uuid4().hex}")
    with ExitStack() as held:
        with undisturbed():
            held.enter_context(Lock(temporary.with_name(temporary.name + _LOCK)))
        try:
            yield temporary
        finally:
            with suppress(OSError):
                _remove(temporary)


def remove_leftovers(place: Path) -> None:
    """
    Removes what killed processes left of a file or a folder that they had not finished. Their locks lie beside it: what
    has none, somebody else made.
    """
    with suppress(OSError):
        for name in os.listdir(place.parent):
            if not name.endswith(_LOCK) or complete_name(Path(name)) != place.name:
                continue
            with suppress(OSError), taking_over(place.with_name(name)) as is_dead:
                if is_dead:
                    _remove(place.with_name(name.removesuffix(_LOCK)))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def making_parents(path: Path) -> Iterator[None]:
    """Makes the folders above a path, and removes those that it made, if they are empty, after an error."""
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def atomic_write(path: str | Path, content: bytes) -> None:
    """
    Writes a file as a whole or not at all; see `atomic_file`.

    Raises:
        OSError: The file cannot be written there.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_folder(output: str | Path) -> Iterator[Path]:
    """
    Yields a temporary folder to fill, which is renamed to `output` at the end, or deleted after an error. What a killed
    process left, the next one that makes the same folder removes.

    Raises:
        InputError: `output` already exists, or cannot be written.
    """
    output = require_new_folder(output)
    place = output.absolute()
    try:
        with making_parents(place), folder_beside(place) as temporary:
            folder = temporary / place.name
            folder.mkdir()
            yield folder
            if place.is_dir():
                place.rmdir()  # It is empty.
            folder.rename(place)
    except (OSError, SafetensorError) as error:
        if not _is_about(error, place):
            raise
        raise InputError(f"{output} cannot be written: {reason_of(error)}.") from error


__all__ = [
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "complete_name",
    "folder_beside",
    "making_parents",
    "remove_leftovers",
    "reserve",
    "temporary_file",
    "temporary_folder",
]
