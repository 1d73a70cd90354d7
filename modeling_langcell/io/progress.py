# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The progress bar for work that takes more than a few seconds."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    """Returns a progress bar with counts and remaining time, disabled if the output is not a terminal."""
    disabled = not sys.stdout.isatty()
    console = Console(quiet=disabled)  # Some versions of rich end even a disabled bar with an empty line.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=disabled)


__all__ = ["progress_bar"]
