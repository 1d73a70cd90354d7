# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Tasks shared by processes of this machine or by the workers of a Dask cluster."""

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

import torch
from rich.progress import track

from ..model.errors import InputError


class SharedWork:
    """
    Who does the tasks: this process, several of this machine, or a Dask cluster's workers. A context manager.

    Args:
        processes: How many on this machine; 1 is this one itself.
        scheduler: Address of a Dask scheduler; then `processes` does not count. Tasks of a worker that dies are given
            to another.
    """

    def __init__(self, processes: int = 1, scheduler: str | None = None):
        if processes < 1:
            raise InputError(f"{processes} processes cannot do anything: give at least 1.")
        self.processes, self.scheduler = processes, scheduler
        self._open = ExitStack()

    def __enter__(self) -> "SharedWork":
        if self.scheduler is not None:
            self._client = self._open.enter_context(_dask_client(self.scheduler))
        elif self.processes > 1:
            threads = max(1, torch.get_num_threads() // self.processes)
            self._pool = self._open.enter_context(
                ProcessPoolExecutor(
                    self.processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
                )
            )
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def share(self, title: str, function: Callable, tasks: Sequence[tuple]) -> list[Any]:
        """The results of `function(*task)`, in the order of the tasks, with a progress bar."""
        results: Iterable[Any]
        if self.scheduler is not None:
            # Not pure: a task looks for the file that it is to write each time it is given out.
            futures = [self._client.submit(function, *task, pure=False) for task in tasks]
            results = (future.result() for future in futures)
        elif self.processes > 1:
            pending = [self._pool.submit(function, *task) for task in tasks]
            results = (task.result() for task in pending)
        else:
            results = (function(*task) for task in tasks)
        return list(track(results, title, len(tasks), disable=not sys.stdout.isatty()))


def _dask_client(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise InputError("To share the work with a Dask cluster, install the extra [dask].") from error
    try:
        return Client(scheduler, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"No Dask scheduler answers at {scheduler}: {error}") from error


__all__ = ["SharedWork"]
