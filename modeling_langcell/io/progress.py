# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The progress of work that takes more than a few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .printable import one_line

_SECONDS = 10.0  # Between two lines of a log.


#: Takes what is being done, and the share of it that is done.
Watch = Callable[[str, float], Any]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Lets a program that shows the progress in its own way, such as the app, follow it for as long as this lasts."""
    before = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(before)


def progress_bar(shown: bool = True) -> Progress:
    """
    Returns the progress of work, on standard error: a bar with counts and remaining time in a terminal or a notebook;
    elsewhere, as in the log of a batch system or in a pipe, a line every ten seconds.

    Args:
        shown: False in a process that leaves the progress to another.
    """
    if (watch := _watch.get()) is not None:
        return WatchedProgress(watch)
    console = Console(stderr=True)
    if not shown or not (console.is_terminal or (console.is_jupyter and find_spec("ipywidgets"))):
        return ProgressLines(shown)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


class ProgressLines(Progress):
    """
    Progress where nothing that is written can be overwritten: a line from time to time.

    Args:
        shown: False to write nothing.
    """

    def __init__(self, shown: bool = True):
        # Some versions of rich end even a disabled bar with an empty line.
        super().__init__(console=Console(quiet=True), disable=True, auto_refresh=False)
        self.shown = shown
        self._next = time.monotonic() + _SECONDS

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._write(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._write(task_id)

    def _write(self, task_id: TaskID) -> None:
        if not self.shown or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SECONDS
        task = self._tasks[task_id]
        line = f"{task.description}: {task.completed:,.0f}"
        if task.total:
            line += f" of {task.total:,.0f} ({task.percentage:.0f}%)"
        if task.time_remaining is not None and not task.finished:
            line += f", {_in_words(task.time_remaining)} left"
        print(one_line(line), file=sys.stderr, flush=True)


class WatchedProgress(ProgressLines):
    """
    Progress that a program follows.

    Args:
        watch: Takes what is being done, and the share of it that is done.
    """

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch

    def _write(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        if task.total:
            self.watch(task.description, task.completed / task.total)


def _in_words(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


__all__ = ["ProgressLines", "Watch", "WatchedProgress", "progress_bar", "watching"]
