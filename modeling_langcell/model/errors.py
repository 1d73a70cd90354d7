# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Input that cannot be used, and what mends it."""

import re
import shlex
from dataclasses import dataclass

#: What HDF5 failed at, and in brackets why: with addresses and the like.
_HDF5 = re.compile(r"(?:Unable to|Can't|Special link)[^(]*\(([^:]+)\b.*\)")


@dataclass(frozen=True)
class Remedy:
    """
    A sentence of advice, which may name an argument: `pass layer='counts'` in Python, `pass --layer counts` on the
    command line.

    Args:
        text: The advice, with `{option}` where the argument is named.
        option: The argument.
        value: What to pass as it. None where the user has to find that out, or is to leave the argument out.

    ```python
    >>> from modeling_langcell.model.errors import Remedy
    >>> remedy = Remedy("Pass {option}.", "layer", "raw counts")
    >>> str(remedy), remedy.on_command_line()
    ("Pass layer='raw counts'.", "Pass --layer 'raw counts'.")

    ```"""

    text: str
    option: str = ""
    value: str | bool | None = None

    def __str__(self) -> str:
        named = self.option if self.value is None else f"{self.option}={self.value!r}"
        return self.text.replace("{option}", named)

    def on_command_line(self) -> str:
        """The advice as somebody reads it who typed a command."""
        value = "" if self.value is None or self.value is True else f" {shlex.quote(str(self.value))}"
        return self.text.replace("{option}", f"--{self.option.replace('_', '-')}{value}")


class InputError(ValueError):
    """
    Input that cannot be used.

    Args:
        message: Which part of the input is wrong, and how; or what to do, where that names no argument.
        remedies: What to do, where that names an argument.
    """

    def __init__(self, message: str, *remedies: Remedy):
        super().__init__(message, *remedies)  # All of them, so that it survives the way between processes.
        self.message, self.remedies = message, remedies

    def __str__(self) -> str:
        return " ".join([self.message, *map(str, self.remedies)])

    def on_command_line(self) -> str:
        """The message as somebody reads it who typed a command."""
        return " ".join([self.message, *(remedy.on_command_line() for remedy in self.remedies)])


def reason_of(error: BaseException) -> str:
    """An exception's reason in one line, without what only programmers read; its type where it gives none."""
    said: object = error
    match error:
        case KeyError(args=(str(sentence),)) if " " in sentence:
            said = sentence
        case KeyError():
            said = f"{error} is not known, or not there"
        case OSError(strerror=str(why)):
            said = why
        case UnicodeDecodeError():
            said = "it is no text in UTF-8"
        case RecursionError():
            said = "it is nested too deep"
    lines = str(said).strip().splitlines() or [type(error).__name__]
    within = _HDF5.match(lines[0])
    return within[1] if within else lines[0].rstrip(".: ")


__all__ = ["InputError", "Remedy", "reason_of"]
