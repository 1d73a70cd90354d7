# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The files that commands read and write: each parameter declares its own, in its annotation, and all are checked before
a command starts. A folder that only one run at a time may write is locked. A parameter that is a path and declares
nothing is an error of the command.
"""

import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from ..checkpoint.builtin import resolve_checkpoint
from ..io.file_kinds import CELLS, FileKind, require_replaceable
from ..io.launch import sole_writer
from ..io.outputs import Named, require_apart, require_new_folder, require_place
from ..model.errors import InputError


def _named_path(value: Any, values: Mapping[str, Any]) -> Iterable[str | Path]:
    return [] if value is None else [value] if isinstance(value, (str, Path)) else value


@dataclass(frozen=True)
class _Paths:
    """
    Args:
        find: Returns the paths, given the value of the parameter and the values of all parameters by name. By default
            the value is a path, or several.
    """

    find: Callable[[Any, Mapping[str, Any]], Iterable[str | Path]] = _named_path


@dataclass(frozen=True)
class Reads(_Paths):
    """Declares that a parameter names files or folders which the command reads."""


@dataclass(frozen=True)
class Writes(_Paths):
    """
    Declares that a parameter names a file which the command writes.

    Args:
        kind: Kind of the file.
        may_be: Name of the parameter whose file the output may take the place of, because it holds all of it.
    """

    kind: FileKind = CELLS
    may_be: str | None = None


@dataclass(frozen=True)
class WritesFolder(_Paths):
    """
    Declares that a parameter names a folder which the command writes.

    Args:
        new: True for a folder that must not exist yet. False for one to which files are added, in which other outputs
            may lie.
        alone: True if no other process may write the folder meanwhile.
    """

    new: bool = True
    alone: bool = True


def local_checkpoint(value: str | None, values: Mapping[str, Any]) -> list[Path]:
    """Returns the folder of a checkpoint or an adapter; none if it is on the Hub."""
    folder = None if value is None else Path(resolve_checkpoint(value))
    return [] if folder is None or not folder.is_dir() else [folder]


def existing(value: Any, values: Mapping[str, Any]) -> list[Path]:
    """Returns those of a parameter's values that are local files or folders: others may be addresses."""
    return [path for path in map(Path, _named_path(value, values)) if path.exists()]


def check_paths_of(command: Any) -> None:
    """
    Makes a command check its paths before it starts, and lock the folders that it writes alone until it ends.

    Raises:
        TypeError: A parameter of the command is a path and declares neither that it is read nor that it is written.
    """
    callback = command.callback
    assert callback is not None
    declared = _declarations(callback)
    names = {param.name: _name_of(param) for param in command.params}

    @wraps(callback)
    def checked(**values: Any) -> Any:
        check_paths([(name, names[name], one) for name, one in declared.items()], values)
        with ExitStack() as locked:
            for name, one in declared.items():
                if isinstance(one, WritesFolder) and one.alone:
                    for path in one.find(values[name], values):
                        locked.enter_context(sole_writer(path))
            return callback(**values)

    command.callback = checked


def _declarations(callback: Callable) -> dict[str, _Paths]:
    """Returns the declarations of a command's parameters by name."""
    declared = {}
    for name, hint in typing.get_type_hints(callback, include_extras=True).items():
        found = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, _Paths)]
        if found:
            declared[name] = found[0]
        elif Path in _types(hint):
            raise TypeError(f"The parameter {name!r} is a path: declare that it Reads, Writes or WritesFolder.")
    return declared


def _types(hint: Any) -> set[Any]:
    """Returns the types that a type hint is made of."""
    parts = typing.get_args(hint)[: 1 if hasattr(hint, "__metadata__") else None]
    return {hint}.union(*map(_types, parts))


def _name_of(param: Any) -> str:
    """Returns the name of a parameter in messages, such as `--out` or `INPUT`."""
    if param.param_type_name == "option":
        return max(param.opts, key=len)
    return re.sub("[^A-Z]", "", param.metavar or param.name.upper())


def check_paths(declared: Sequence[tuple[str, str, _Paths]], values: Mapping[str, Any]) -> None:
    """
    Checks all paths of a command: inputs are files or folders; outputs are apart from inputs and from each other,
    replace nothing of another kind, and can be written.

    Args:
        declared: Each parameter's name in Python, its name in messages, and its declaration.
        values: The values of the parameters by their names in Python.

    Raises:
        InputError: An input or an output is not as it should be.
    """
    inputs, outputs, allowed, shared = list[Named](), list[tuple[Named, Any]](), set(), set()
    name_of = {parameter: name for parameter, name, _ in declared}
    for parameter, name, one in declared:
        found = [(name, Path(path)) for path in one.find(values[parameter], values)]
        if isinstance(one, Reads):
            for _, path in found:
                _require_file_or_folder(path, name)
            inputs += found
            continue
        outputs += [(named, one) for named in found]
        if isinstance(one, WritesFolder):
            for _, path in found if one.new else ():
                require_new_folder(path)
            shared |= set() if one.new else {name}
        if isinstance(one, Writes) and one.may_be is not None:
            allowed.add((name, name_of[one.may_be]))
    require_apart([named for named, _ in outputs], inputs, allowed=allowed, shared=shared)
    for (name, path), one in outputs:
        if isinstance(one, Writes):
            require_replaceable(path, one.kind, name)
            require_place(path, name)


def _require_file_or_folder(path: Path, name: str) -> None:
    """
    Checks that an input is a file or a folder, if it exists: a pipe may never open, and a device may never end.

    Raises:
        InputError: It is something else.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{name} {path} is neither a file nor a folder: copy what it gives into a file.")


__all__ = ["Reads", "Writes", "WritesFolder", "check_paths_of", "existing", "local_checkpoint"]
