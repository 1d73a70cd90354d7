# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The output of the commands on a terminal: all of it leaves the program here, in printable characters."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..io.printable import one_line

#: Errors of the command line itself, such as an unknown option; typer draws them.
UsageError: Any = typer.BadParameter.__base__
_PACKAGE = "modeling_langcell"


def say(text: object = "", *, err: bool = False) -> None:
    """Prints a line on stdout, or on stderr."""
    typer.echo(one_line(text), err=err)


def say_resumed(done: int) -> None:
    """Says how many cells an interrupted run has left to this one."""
    say(f"Resuming: {done:,} cells are already done.")


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
    "logging_to_stderr",
    "printable_logs",
    "printable_usage_errors",
    "say",
    "say_error",
    "say_resumed",
]
