# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The `langcell` command: finds its subcommands, and ends with one message where the input cannot be used."""

import gc
import os
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from .. import __version__
from ..io.printable import one_line
from ..io.stopping import Stopped, stopping
from ..model.errors import InputError, reason_of
from .paths import check_paths_of
from .terminal import logging_to_stderr, printable_logs, printable_usage_errors, say, say_error

#: Modules with subcommands, in the order of the help. They import heavy packages only when they use them. The
#: evaluation is named here rather than imported, because the package does not depend on it.
_MODULES = (
    "modeling_langcell.cli.annotate",
    "modeling_langcell.cli.explore",
    "modeling_langcell.cli.train",
    "modeling_langcell.eval.command",
    "modeling_langcell.cli.hub",
)
#: Commands that continue where an earlier run with the same output stopped.
_RESUMED = ("annotate", "embed", "corpus", "evaluate")
#: New objects after which Python looks for unreachable ones. Libraries make millions while they are imported, and up
#: to a fifth of that time would go into looking for what is not there.
_NEW_OBJECTS = 10_000


class Commands(TyperGroup):
    """
    The subcommands. An `InputError`, or a refusal of the file system (no space, no permission, a name that is too
    long), ends them with one line on stderr and exit code 2; Ctrl-C, SIGTERM and SIGHUP with one line and the exit code
    of the signal.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for module in _MODULES:
            for name, command in get_group(import_module(module).app).commands.items():
                check_paths_of(command)
                self.commands[name] = command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options of `langcell`, of which `--verbose` may also follow the subcommand."""
        options = args[: args.index("--")] if "--" in args else args
        if "--verbose" in options:
            args = ["--verbose", *(arg for arg in options if arg != "--verbose"), *args[len(options) :]]
        with printable_usage_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with printable_usage_errors(), stopping():
                return super().invoke(ctx)
        except Stopped as stopped:
            is_resumed = ctx.invoked_subcommand in _RESUMED
            then = "it continues with what is finished" if is_resumed else "it begins again"
            say(f"{stopped}. No half-written file is left. Run the same command again: {then}.", err=True)
            raise typer.Exit(stopped.exit_code) from None
        except InputError as error:
            message = error.on_command_line()
        except OSError as error:
            if error.strerror is None or isinstance(error, BrokenPipeError):
                raise
            message = f"{error.filename or 'A file'} cannot be read or written: {reason_of(error)}."
        say_error(message)
        raise typer.Exit(2)


app = typer.Typer(
    cls=Commands,
    help="Annotate single cells by free text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"langcell {__version__}")
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
    context.with_resource(printable_logs())
    if verbose:
        context.with_resource(logging_to_stderr())


def main() -> None:
    """Runs the `langcell` command. A fault of the program ends it with a traceback, in printable characters."""
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    try:
        app()
    except Exception:
        for line in traceback.format_exc().splitlines():
            print(one_line(line), file=sys.stderr)
        sys.exit(1)
