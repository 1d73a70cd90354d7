# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The error for input that cannot be used, with advice that Python and the command line show in their own way."""

import re
import shlex
from dataclasses import dataclass

#: A message of HDF5: the failed operation, and in brackets the reason, followed by addresses and the like.
_HDF5 = re.compile(r"(?:Unable to|Can't|Special link)[^(]*\(([^:]+)\b.*\)")


@dataclass(frozen=True)
class Remedy:
    """
    Advice in one sentence, which may name an argument: `pass layer='counts'` in Python, `pass --layer counts` on the
    command line.

    Args:
        text: The advice, with `{option}` in place of the argument.
        option: The argument.
        value: The value to pass. None where the user has to choose one, or should omit the argument.
        also: Further arguments that belong to it, with their values.

    ```python
    >>> from modeling_langcell.model.errors import Remedy
    >>> remedy = Remedy("Pass {option}.", "layer", "raw counts")
    >>> str(remedy), remedy.on_command_line()
    ("Pass layer='raw counts'.", "Pass --layer 'raw counts'.")

    ```"""

    text: str
    option: str = ""
    value: str | bool | None = None
    also: tuple[tuple[str, str | bool | None], ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The arguments that the advice names."""
        return (self.option, *(option for option, _ in self.also))

    def __str__(self) -> str:
        given = ((self.option, self.value), *self.also)
        named = (option if value is None else f"{option}={value!r}" for option, value in given)
        return self.text.replace("{option}", ", ".join(named))

    def on_command_line(self) -> str:
        """Returns the advice for a user of the command line."""
        given = ((self.option, self.value), *self.also)
        named = (
            f"--{option.replace('_', '-')}" + ("" if value is None or value is True else f" {shlex.quote(str(value))}")
            for option, value in given
        )
        return self.text.replace("{option}", " ".join(named))


class InputError(ValueError):
    """
    Input that cannot be used.

    Args:
        message: The part of the input that is wrong, the fault, and any advice that names no argument.
        remedies: Advice that names an argument.
    """

    def __init__(self, message: str, *remedies: Remedy):
        super().__init__(message, *remedies)  # All arguments are passed, so that the error can be pickled.
        self.message, self.remedies = message, remedies

    def __str__(self) -> str:
        return " ".join([self.message, *map(str, self.remedies)])

    def on_command_line(self) -> str:
        """Returns the message for a user of the command line."""
        return " ".join([self.message, *(remedy.on_command_line() for remedy in self.remedies)])

    def without(self, *options: str) -> "InputError":
        """Returns the error without the advice that names arguments which the user cannot give."""
        kept = (one for one in self.remedies if not {*one.options} & {*options} or "{option}" not in one.text)
        return InputError(self.message, *kept)


def reason_of(error: BaseException) -> str:
    """Returns an exception's reason in one line, without details for programmers; its type if it gives no reason."""
    reason: object = error
    match error:
        case KeyError(args=(str(sentence),)) if " " in sentence:
            reason = sentence
        case KeyError():
            reason = f"{error} is not known, or missing"
        case OSError(strerror=str(why)):
            reason = why
        case UnicodeDecodeError():
            reason = "it is not text in UTF-8"
        case RecursionError():
            reason = "it is nested too deep"
    lines = str(reason).strip().splitlines() or [type(error).__name__]
    within = _HDF5.match(lines[0])
    return within[1] if within else lines[0].rstrip(".: ")


__all__ = ["InputError", "Remedy", "reason_of"]
