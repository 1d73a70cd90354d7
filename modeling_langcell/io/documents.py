# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Reading JSON, YAML and text that somebody else may have written.

A document has a limit on its size, on how deep it is nested, and on its number of values, so that a small file cannot
take all memory or hang. YAML may not refer to its own parts (aliases), which makes a file of a few lines endless.
"""

import codecs
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from ..model.errors import InputError, reason_of

#: Most bytes of a JSON file or a text. The largest that the package writes, a processor of 60,000 genes, has 9 MB.
MAX_BYTES = 64 << 20
#: Most bytes of a YAML file, whose parser takes about a second for 100 kB.
MAX_YAML_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_VALUES = 4_000_000
#: Bytes that are read at once.
_PART = 1 << 20
#: Most characters of a number in YAML.
_MAX_DIGITS = 400


def read_bytes(path: str | Path, at_most: int = MAX_BYTES) -> bytes:
    """
    Reads a file.

    Raises:
        InputError: There is no such file, or it has more than `at_most` bytes.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # Reading a pipe or a device may never end.
            raise InputError(f"{path} is not a file.")
        with path.open("rb") as file:
            content = _read(file, at_most)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
    if len(content) > at_most:
        raise InputError(f"{path} cannot be read: it has more than {_in_words(at_most)}. Give a smaller file.")
    return content


def read_text(path: str | Path, at_most: int = MAX_BYTES) -> str:
    """
    Reads a text in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        InputError: Same as for `read_bytes`; or the file is not text.
    """
    return _decoded(read_bytes(path, at_most), path)


def read_gzip_text(path: str | Path, at_most: int) -> str:
    """
    Reads a text in UTF-8 that may be compressed, which the suffix `.gz` says.

    Raises:
        InputError: Same as for `read_text`, by the size of the text; or the compressed file is damaged.
    """
    if Path(path).suffix != ".gz":
        return read_text(path, at_most)
    try:
        with gzip.open(path) as file:
            content = _read(file, at_most)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}. Download it again.") from error
    if len(content) > at_most:
        raise InputError(f"{path} cannot be read: it unpacks to more than {_in_words(at_most)}. Give a smaller file.")
    return _decoded(content, path)


def read_json(path: str | Path, at_most: int = MAX_BYTES, *, finite: bool = True) -> Any:
    """
    Reads a JSON file of at most `at_most` bytes.

    Raises:
        InputError: The file cannot be read, or `parse_json` refuses its content.
    """
    return parse_json(read_text(path, at_most), path, finite=finite)


def parse_json(text: str | bytes, source: object, *, finite: bool = True) -> Any:
    """
    Returns the value of a JSON text. No object may have a name twice.

    Args:
        text: The text.
        source: The file, for the message.
        finite: False to accept numbers that are not finite, such as a score that could not be computed.

    Raises:
        InputError: The text is not such JSON, or is nested too deep or has too many values.
    """
    with _naming(source):
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        if sum(map(text.count, ",[{")) > MAX_VALUES:
            raise ValueError("it has too many values")
        found = json.loads(text, object_pairs_hook=_unique)
        _check(found, finite)
        return found


def read_yaml(path: str | Path) -> Any:
    """
    Reads a YAML file.

    Raises:
        InputError: The file cannot be read, or `parse_yaml` refuses its content.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES), path)


def parse_yaml(text: str, source: object) -> Any:
    """
    Returns the value of a YAML text of plain values. Nothing in it is run, it may not use aliases (`*name`), and no
    mapping may have a key twice.

    Args:
        text: The text.
        source: The file, for the message.

    Raises:
        InputError: The text is not such YAML, or is nested too deep.
    """
    with _naming(source, " as YAML"):
        return yaml.load(text, _PlainLoader)


class _PlainLoader(yaml.SafeLoader):
    """Loader of plain values that refuses what a short text can make endless."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it uses an alias (*name): write out what the alias stands for")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise ValueError(f"it has {Counter(keys).most_common(1)[0][0][1]!r} twice")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        found = super().construct_scalar(node)
        if not node.tag.endswith(":str") and isinstance(found, str) and len(found) > _MAX_DIGITS:
            raise ValueError("it has a number of too many digits")
        return found


@contextmanager
def _naming(source: object, kind: str = "") -> Iterator[None]:
    """Turns the errors of parsers into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RecursionError, yaml.YAMLError, OverflowError) as error:
        reason = "it has a number of too many digits" if "integer string conversion" in str(error) else reason_of(error)
        raise InputError(f"{source} cannot be read{kind}: {reason}. Correct it, or use an intact copy.") from error


def _read(file: BinaryIO | gzip.GzipFile, at_most: int) -> bytes:
    """Reads a file, and no more than one byte too many. It takes no more memory than the file has."""
    content = bytearray()
    while len(content) <= at_most and (part := file.read(min(_PART, at_most + 1 - len(content)))):
        content += part
    return bytes(content)


def _decoded(content: bytes, path: str | Path) -> str:
    """Returns the text of a file: in UTF-8, or in UTF-16 with a mark, as Excel and PowerShell write it."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} cannot be read: {reason_of(error)}. Save it as UTF-8, or use an intact copy."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"it has {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} twice")
    return found


def _check(found: Any, finite: bool) -> None:
    """Checks the depth of a value, and that its numbers are finite."""
    level = [found] if isinstance(found, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        below = []
        for one in level:
            values = one.values() if isinstance(one, dict) else one
            kinds = set(map(type, values))
            numbers = [value for value in values if type(value) in (int, float)] if kinds & {int, float} else []
            if finite and not all(map(math.isfinite, numbers)):
                raise ValueError("it has a number that is not finite")
            if kinds & {dict, list}:
                below += [value for value in values if isinstance(value, (dict, list))]
        if not below:
            return
        level = below
    raise RecursionError


def _in_words(size: int) -> str:
    return f"{size >> 20:,} MB" if size >= 1 << 20 else f"{size:,} bytes"


__all__ = [
    "MAX_BYTES",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_gzip_text",
    "read_json",
    "read_text",
    "read_yaml",
]
