# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The output of the commands on a terminal: all of it leaves the program here, in printable characters."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..io.launch import launched_processes
from ..io.printable import one_line

#: Errors of the command line itself, such as an unknown option; typer draws them.
UsageError: Any = typer.BadParameter.__base__
_PACKAGE = "modeling_langcell"


def say(text: object = "", *, err: bool = False) -> None:
    """Prints a line on stdout, or on stderr."""
    typer.echo(one_line(text), err=err)


def say_once(text: object, *, err: bool = False) -> None:
    """Prints a line once, however many processes a launcher has started."""
    if launched_processes()[0] == 0:
        say(text, err=err)


def say_json(facts: Any) -> None:
    """Prints the results of a command as one line of JSON."""
    say(json.dumps(_plain(facts)))


def _plain(value: Any) -> Any:
    """Returns a value in JSON's types: paths as text, NumPy's numbers as Python's, and missing numbers as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def say_resumed(done: int) -> None:
    """Says how many cells an interrupted run has left to this one."""
    say(f"Resuming: {done:,} cells are already done.")


def ignore(done: int) -> None:
    """Says nothing, where a machine reads what is printed."""


def say_error(message: str) -> None:
    """Prints the message that a command ends with on stderr."""
    typer.secho("Error:", fg="red", bold=True, nl=False, err=True)
    typer.echo(f" {one_line(message)}", err=True)


@contextmanager
def printable_usage_errors() -> Iterator[None]:
    """Makes the messages of usage errors, which quote the command line, printable."""
    try:
        yield
    except UsageError as error:
        error.message = one_line(error.message)
        raise


@contextmanager
def printable_logs() -> Iterator[None]:
    """Makes the logs and warnings of all packages printable for as long as this lasts."""
    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def make_printable(*args: Any, **settings: Any) -> logging.LogRecord:
        record = make_record(*args, **settings)
        message = record.getMessage()
        # Messages of other packages may have several lines; a message of this one that does holds a name that has.
        lines = [message] if record.name.startswith(_PACKAGE) else message.splitlines()
        record.msg, record.args = "\n".join(map(one_line, lines)), ()
        return record

    def format_printable(message: Any, category: Any, *place: Any, **more: Any) -> str:
        return format_warning(one_line(message), category, *place, **more)

    logging.setLogRecordFactory(make_printable)
    warnings.formatwarning = format_printable
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning = format_warning


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Prints the package's log on stderr, from INFO on."""
    logger, handler = logging.getLogger(_PACKAGE), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


__all__ = [
    "ignore",
    "logging_to_stderr",
    "printable_logs",
    "printable_usage_errors",
    "say",
    "say_error",
    "say_json",
    "say_once",
    "say_resumed",
]
