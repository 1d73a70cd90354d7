# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Input that cannot be used, and what mends it."""

import re

#: What HDF5 failed at, and in brackets why: with addresses and the like.
_HDF5 = re.compile(r"(?:Unable to|Can't|Special link)[^(]*\(([^:]+)\b.*\)")


class InputError(ValueError):
    """The user's input cannot be used; the message says which part of it, and what to do."""


def reason_of(error: BaseException) -> str:
    """What an exception has to say, in one line and without what only programmers read; its kind if it says nothing."""
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


__all__ = ["InputError", "reason_of"]
