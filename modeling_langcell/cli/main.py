# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The `langcell` command: finds its subcommands, and ends with one message where the input cannot be used."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from .. import __version__
from ..model.errors import InputError, reason_of

#: Modules with subcommands, in the order of the help. They import heavy packages only when they use them. The
#: evaluation is named here rather than imported, because the package does not depend on it.
_MODULES = (
    "modeling_langcell.cli.annotate",
    "modeling_langcell.cli.explore",
    "modeling_langcell.cli.train",
    "modeling_langcell.eval.command",
    "modeling_langcell.cli.hub",
)


class Commands(TyperGroup):
    """
    The subcommands. An `InputError`, or a refusal of the file system (no space, no permission, a name that is too
    long), ends them with one line on stderr and exit code 2.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for module in _MODULES:
            self.commands.update(get_group(import_module(module).app).commands)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options of `langcell`, of which `--verbose` may also follow the subcommand."""
        options = args[: args.index("--")] if "--" in args else args
        if "--verbose" in options:
            args = ["--verbose", *(arg for arg in options if arg != "--verbose"), *args[len(options) :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = error.on_command_line()
        except OSError as error:
            if error.strerror is None or isinstance(error, BrokenPipeError):
                raise
            message = f"{error.filename or 'A file'} cannot be read or written: {reason_of(error)}."
        typer.secho("Error:", fg="red", bold=True, nl=False, err=True)
        typer.echo(
            f" {message.encode('utf-8', 'backslashreplace').decode()}", err=True
        )  # File names may hold any byte.
        raise typer.Exit(2)


app = typer.Typer(
    cls=Commands,
    help="Annotate single cells by free text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"langcell {__version__}")
        raise typer.Exit


@app.callback()
def before_any_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print the package's log messages, for example on skipped files.")
    ] = False,
) -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers and huggingface_hub read it.
    if verbose:
        context.with_resource(logging_to_stderr())


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Prints the package's log on stderr, from INFO on."""
    logger, handler = logging.getLogger("modeling_langcell"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def main() -> None:
    """Runs the `langcell` command."""
    app()
