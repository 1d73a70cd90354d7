# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Running tasks in this process, in several processes of this machine, or on the workers of a Dask cluster."""

import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

import torch

from ..io.progress import progress_bar
from ..model.errors import InputError


class WorkerPool:
    """
    Runs tasks in this process, in several processes of this machine, or on a Dask cluster's workers. A context manager.

    Args:
        processes: Number of processes on this machine; 1 runs the tasks in this one.
        scheduler: Address of a Dask scheduler; `processes` is then ignored. The tasks of a worker that dies are given
            to another worker.

    Raises:
        InputError: `processes` is below 1, or no scheduler answers.
    """

    def __init__(self, processes: int = 1, scheduler: str | None = None):
        if processes < 1:
            raise InputError(f"processes is {processes}, but must be at least 1.")
        self.processes, self.scheduler = processes, scheduler
        self._open = ExitStack()

    def __enter__(self) -> "WorkerPool":
        if self.scheduler is not None:
            self._client = self._open.enter_context(_dask_client(self.scheduler))
        elif self.processes > 1:
            threads = max(1, torch.get_num_threads() // self.processes)
            self._pool = self._open.enter_context(
                ProcessPoolExecutor(
                    self.processes, get_context("spawn"), initializer=_begin_worker, initargs=(threads,)
                )
            )
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None and self.scheduler is None and self.processes > 1:
            self._pool.shutdown(cancel_futures=True)  # After an error nobody wants the tasks that have not begun.
        self._open.close()

    def map(self, title: str, function: Callable, tasks: Sequence[tuple]) -> list[Any]:
        """Returns the results of `function(*task)`, in the order of the tasks, and shows a progress bar."""
        results: Iterable[Any]
        if self.scheduler is not None:
            # pure=False, because a task first looks for its file.
            futures = [self._client.submit(function, *task, pure=False) for task in tasks]
            results = (future.result() for future in futures)
        elif self.processes > 1:
            pending = [self._pool.submit(function, *task) for task in tasks]
            results = (task.result() for task in pending)
        else:
            results = (function(*task) for task in tasks)
        with progress_bar() as progress:
            return list(progress.track(results, len(tasks), description=title))


def _begin_worker(threads: int) -> None:
    """Sets up a process that works; Ctrl-C, which reaches it too, is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _dask_client(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise InputError("To run on a Dask cluster, install the extra [dask].") from error
    try:
        return Client(scheduler, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"No Dask scheduler answers at {scheduler}: {error}") from error


__all__ = ["WorkerPool"]
