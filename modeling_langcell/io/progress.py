# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The bar over anything that takes more than seconds."""

import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    """A bar with what is done of all and the time left; silent where nobody watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=not sys.stdout.isatty())


__all__ = ["progress_bar"]
