# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Kinds of files that the package writes, told by what a file holds: a file never replaces one of another kind."""

import csv
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..model.errors import InputError, reason_of

#: What is read of a file to tell its kind, in bytes.
_HEAD = 2**16
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class FileKind:
    """
    A kind of file.

    Args:
        name: What such a file is, in words.
        is_held_by: Returns true if a file that is not empty holds this kind.
        suffixes: Suffixes that such a file must have, an empty one for a name without; any if there are none.
    """

    name: str
    is_held_by: Callable[[Path], bool]
    suffixes: tuple[str, ...] = ()


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _text(path: Path) -> str:
    """Returns the first lines of a text, whole ones only; an empty text for bytes that are not text."""
    head = _head(path)
    whole = head if len(head) < _HEAD else head[: head.rfind(b"\n") + 1]
    try:
        return whole.decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""


def _is_h5ad(path: Path) -> bool:
    if not _head(path).startswith(_HDF5):
        return False
    import h5py  # Only a file that may be replaced is worth its import.

    try:
        with h5py.File(path) as file:
            return {"obs", "var"} <= file.keys() and "mod" not in file  # An .h5mu file has obs and var as well.
    except OSError:
        return False


def _begins_with(pattern: str) -> Callable[[Path], bool]:
    """Returns a function that is true for texts that begin with a pattern, after blanks and comments of XML."""
    compiled = re.compile(rf"\s*(<!--.*?-->\s*)*{pattern}", re.IGNORECASE | re.DOTALL)
    return lambda path: compiled.match(_text(path)) is not None


_is_svg = _begins_with(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!doctype svg[^>]*>\s*)?<svg\b")


def _is_figure(path: Path) -> bool:
    return _head(path).startswith((b"\x89PNG\r\n\x1a\n", b"%PDF-")) or _is_svg(path)


def _is_table(path: Path) -> bool:
    """A table has several columns, and as many in each line: a text with a few tabs in it is none."""
    if path.suffix.lower() == ".xlsx":
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
        return False
    if path.suffix.lower() == ".csv":
        columns = {len(row) - 1 for row in csv.reader(_text(path).splitlines()) if row}
        return len(columns) == 1 and columns != {0}
    columns = {line.count("\t") for line in _text(path).split("\n") if line}
    return len(columns) == 1 and columns != {0}


CELLS = FileKind("a file of cells (.h5ad)", _is_h5ad, (".h5ad", ""))
PAGE = FileKind("an HTML page", _begins_with(r"(<!doctype html|<html)\b"), (".html", ".htm"))
FIGURE = FileKind("a figure", _is_figure, (".png", ".pdf", ".svg"))
TABLE = FileKind("a table (.tsv, .csv or .xlsx)", _is_table, (".tsv", ".csv", ".xlsx", ".txt", ""))
JSON = FileKind("a JSON object", _begins_with(r"\{"))
#: A card begins with metadata, as the Hub and PEFT write it.
CARD = FileKind("a card with metadata", _begins_with(r"---[ \t\r]*\n"))
#: The sentences of a card, which a person writes: any text in YAML.
PROSE = FileKind("a text", lambda path: _text(path) != "")
#: The Markdown page of an evaluation.
SCORES = FileKind("a page of scores", _begins_with(r"# .*?\n\| study \| method\b"))


def require_replaceable(path: str | Path, kind: FileKind, name: str = "") -> None:
    """
    Checks that a file of a kind may be written to a path: its suffix fits, and there is either nothing, an empty file,
    or a file of the same kind, such as an earlier result.

    Args:
        path: The path.
        kind: The kind of the file to be written.
        name: The user's name for the output, such as `--report`.

    Raises:
        InputError: The suffix belongs to another kind, or the file holds something else or cannot be read.
    """
    path = Path(path)
    shown = f"{name} {path}".lstrip()
    if kind.suffixes and path.suffix.lower() not in kind.suffixes:
        *others, last = filter(None, kind.suffixes)
        endings = " or ".join(filter(None, [", ".join(others), last]))
        raise InputError(f"{shown} must end in {endings}: it will be {kind.name}.")
    try:
        if not path.is_file() or path.stat().st_size == 0 or kind.is_held_by(path):
            return
    except OSError as error:
        raise InputError(f"{shown} cannot be read or replaced: {reason_of(error)}.") from error
    raise InputError(
        f"{shown} exists and is not {kind.name}, so it is not replaced: choose another path, or remove the file."
    )


__all__ = ["CARD", "CELLS", "FIGURE", "JSON", "PAGE", "PROSE", "SCORES", "TABLE", "FileKind", "require_replaceable"]
