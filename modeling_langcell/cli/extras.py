# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that need one of the package's optional extras."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..model.errors import InputError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """
    Wraps the first use of a module that needs packages of an extra.

    Raises:
        InputError: One of these packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f'No package {error.name}: pip install "modeling-langcell[{extra}]".') from error
