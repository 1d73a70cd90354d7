# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checks of the paths of outputs: they can be written, and no output is an input or another output."""

import os
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from errno import EEXIST, EISDIR, ENAMETOOLONG, ENOTDIR
from pathlib import Path

from ..model.errors import InputError, reason_of

#: The user's name for a path, such as `--out`, and the path.
Named = tuple[str, Path]
_IS, _LIES_IN, _HOLDS = "is the same file as", "lies in", "holds"
#: Longest name of an output in bytes: what is written beside it meanwhile has longer names, of at most 255 bytes.
_MOST_NAME_BYTES = 216
#: Links in these folders, such as /dev/stdout, lead to what a process has open, and the machine needs them.
_OF_THE_MACHINE = (Path("/dev"), Path("/proc"), Path("/sys"))


def require_apart(
    outputs: Iterable[Named],
    inputs: Iterable[Named],
    *,
    allowed: Collection[tuple[str, str]] = (),
    shared: Collection[str] = (),
) -> None:
    """
    Checks that no output is an input or another output, lies in one, or holds one. Relative names, symbolic links, hard
    links and names that differ only in their spelling are resolved; an output need not exist yet.

    Args:
        outputs: Name and path of each file or folder that is to be written.
        inputs: The same for each file or folder that is read.
        allowed: Pairs of an output's and an input's name that may be the same file.
        shared: Names of outputs that are folders in which other outputs may lie.

    Raises:
        InputError: Two paths are not apart.
    """
    inputs, written = list(inputs), list[Named]()
    for name, path in outputs:
        for other, other_path in inputs:
            how = _relation(path, other_path)
            if how is not None and not (how == _IS and (name, other) in allowed):
                raise _not_apart(name, path, how, other, other_path)
        for other, other_path in written:
            how = _relation(path, other_path)
            outer = {name} if how == _HOLDS else {other} if how == _LIES_IN else {name, other}
            if how is not None and not outer <= {*shared}:
                raise _not_apart(name, path, how, other, other_path)
        written.append((name, path))


def _not_apart(name: str, path: Path, how: str, other: str, other_path: Path) -> InputError:
    return InputError(
        f"{name} {path} {how} {other} ({other_path}), which it would overwrite or change: choose another path for one "
        "of them."
    )


def _relation(path: Path, other: Path) -> str | None:
    """Returns how a path relates to another one, in words; None if they are apart."""
    if _is_same(path, other):
        return _IS
    if _is_in(path, other):
        return _LIES_IN
    return _HOLDS if _is_in(other, path) else None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)  # Hard links, and names on a file system that ignores case.
    except OSError:  # One of them does not exist yet.
        one, other = _resolved(one), _resolved(other)
    if one == other:
        return True
    # Two files to be, which would be one on a file system that ignores case or how an accent is written.
    return not one.exists() and not other.exists() and _spelling(one) == _spelling(other)


def _is_in(path: Path, folder: Path) -> bool:
    return not folder.is_file() and any(_is_same(parent, folder) for parent in _resolved(path).parents)


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def place_of(output: str | Path) -> Path:
    """Returns the absolute path at which an output is written: a link stays, and the file that it leads to is new."""
    return _resolved(Path(output))


def _spelling(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def require_writable_file(path: str | Path) -> None:
    """
    Checks that a file can be written to a path: there is nothing at the path, or a file that can be replaced.

    Raises:
        OSError: The path is a folder or a device, a parent is a file, or the name is invalid.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder", str(path))
    if (path.exists() and not path.is_file()) or _leads_through_the_machine(path):
        raise FileExistsError(EEXIST, "it is not a regular file, and is not replaced", str(path))
    if len(os.fsencode(place_of(path).name)) > _MOST_NAME_BYTES:
        raise OSError(ENAMETOOLONG, f"its name has more than {_MOST_NAME_BYTES} bytes", str(path))
    if not (parent := nearest_parent(path)).is_dir():
        raise NotADirectoryError(ENOTDIR, f"{parent} is a file, not a folder", str(path))


def _leads_through_the_machine(path: Path) -> bool:
    """Returns true for a link of the machine itself, and for a link to one."""
    while path.is_symlink():
        if Path(os.path.abspath(path)).parts[:2] in [folder.parts for folder in _OF_THE_MACHINE]:
            return True
        path = path.parent / os.readlink(path)
    return False


def require_place(path: str | Path, name: str = "") -> None:
    """
    Checks, before any work, that a file can be written to a path, by making a nameless one in its folder or, if that
    does not exist, in the nearest one that does.

    Args:
        path: The path.
        name: The user's name for the output, such as `--report`.

    Raises:
        InputError: Nothing can be written there.
    """
    try:
        require_writable_file(path)
        with tempfile.TemporaryFile(dir=nearest_parent(Path(path))):
            pass
    except OSError as error:
        raise InputError(f"{name} {path} cannot be written: {reason_of(error)}.".lstrip()) from error


def require_new_folder(output: str | Path) -> Path:
    """
    Checks that a folder can be made at a path.

    Raises:
        InputError: The path already exists, or nothing can be written there.
    """
    output = Path(output)
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} already exists: choose a new folder.")
    parent = nearest_parent(output)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{output} cannot be written: {parent} is not a folder with write access.")
    return output


@contextmanager
def writing_into(folder: Path, then: str) -> Iterator[None]:
    """
    Turns an error of the file system about a folder, or about a file in it, into a message that names the folder.

    Args:
        folder: The folder.
        then: A sentence that says how to continue.

    Raises:
        InputError: The disk is full, the folder is not writable, or the like; or another file cannot be read.
    """
    try:
        yield
    except OSError as error:
        # An error of writing itself, as on a full disk, names no file.
        named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else None
        if named is not None and not _resolved(Path(named)).is_relative_to(_resolved(folder)):
            raise InputError(f"{named} cannot be read or written: {reason_of(error)}.") from error
        raise InputError(f"{folder} cannot be written: {reason_of(error)}. {then}") from error


def nearest_parent(path: Path) -> Path:
    """Returns the nearest of a path's parents that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


__all__ = [
    "Named",
    "nearest_parent",
    "place_of",
    "require_apart",
    "require_new_folder",
    "require_place",
    "require_writable_file",
    "writing_into",
]
