# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Work on visitors' cells, in a process of its own with limits of time, memory and disk, so that no file can harm the
server, and the work ends when the visitor leaves.

The processes are forked from one that has loaded the checkpoint, so that each starts at once. They tell the server
what they found in JSON, never in pickles, which could run code.
"""

import json
import logging
import multiprocessing
import os
import re
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from limits import Limits
from visits import Visit

from modeling_langcell import InputError

log = logging.getLogger("langcell.space")

_MOST_BYTES_SAID = 2**22
#: How libraries say that memory cannot be allocated, where they do not raise a MemoryError.
_NO_MEMORY = re.compile("bad_alloc|bad allocation|[Cc]an't allocate|[Uu]nable to allocate|memory allocation")


class JobFailed(Exception):
    """Work that failed for a reason that is not the visitor's."""


class VisitorLeft(Exception):
    """Work that ended because its visitor left."""


class Jobs:
    """
    Starts work by name, a function of a module, in processes that have imported it already.

    Args:
        module: Name of the module.
        preloaded: Name of a module whose import prepares the process from which the others are forked.
    """

    def __init__(self, module: str, preloaded: str):
        self._module = module
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preloaded])
        # Python before 3.12.8 does not tell that process where modules are, and it ignores those that it cannot find.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        try:
            forkserver.ensure_running()
        finally:
            del os.environ["PYTHONPATH"]
            if before is not None:
                os.environ["PYTHONPATH"] = before

    def run(
        self,
        visit: Visit,
        work: str,
        *arguments: Any,
        limits: Limits,
        said: Callable[[float, str], Any] = lambda share, what: None,
    ) -> Any:
        """
        Runs a function in a process of its own, and returns its result.

        Args:
            visit: The visit that the work is for; when it ends, so does the work.
            work: Name of the function.
            arguments: Its arguments, before a last one by which it says how far it is.
            limits: What the process may take.
            said: Takes the share of the work that is done, and what is being done.

        Raises:
            InputError: The visitor's input cannot be used, or needs more than the limits.
            JobFailed: The work failed for another reason.
            VisitorLeft: The visitor left.
        """
        here, there = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(there, self._module, work, arguments, limits), daemon=True)
        with here, there:
            process.start()
            there.close()
            visit.job = _Running(process)
            if visit.left:
                visit.job.stop()
            try:
                return self._listen(here, visit, limits, said)
            finally:
                visit.job = None
                process.kill()
                process.join()
                process.close()

    def _listen(self, here: Connection, visit: Visit, limits: Limits, said: Callable[[float, str], Any]) -> Any:
        end = time.monotonic() + limits.seconds
        while here.poll(max(0, end - time.monotonic())):
            try:
                kind, value = json.loads(here.recv_bytes(_MOST_BYTES_SAID))
            except (EOFError, OSError):
                break
            if kind == "at":
                said(*value)
            elif kind == "done":
                return value
            elif kind == "refused":
                raise InputError(value)
            elif kind == "failed":
                raise JobFailed(value)
        if visit.left:
            raise VisitorLeft
        if time.monotonic() >= end:
            raise InputError(f"This takes longer than the {limits.seconds / 60:.0f} minutes that this app gives it.")
        raise InputError(_TOO_LARGE.format(limits.memory / 2**30))


_TOO_LARGE = (
    "This file is damaged, or needs more than the {:g} GB of memory that this app gives it: use an intact copy, and "
    "remove the parts that are not needed."
)


class _Running:
    """A process that can be ended from any thread, also after it has ended."""

    def __init__(self, process: Any):
        self._process = process

    def stop(self) -> None:
        with suppress(ValueError, OSError):  # It has ended, and was closed.
            self._process.kill()


class Turns:
    """
    Lets visitors work one after the other, in the order in which they came.

    Args:
        places: Number of visitors who may work at the same time.
        most: Largest number of visitors who wait.
    """

    def __init__(self, places: int, most: int):
        self._places, self._most = places, most
        self._queue: deque[Visit] = deque()
        self._changed = threading.Condition()
        self._seconds: deque[float] = deque(maxlen=8)

    @contextmanager
    def turn(self, visit: Visit, said: Callable[[str], Any] = lambda what: None) -> Iterator[None]:
        """
        Waits until it is the visitor's turn.

        Args:
            visit: The visit.
            said: Takes what is waited for, in words.

        Raises:
            InputError: Too many visitors wait already.
            VisitorLeft: The visitor left while waiting.
        """
        with self._changed:
            if len(self._queue) >= self._places + self._most:
                raise InputError(f"{self._most} visitors are waiting already: try again in some minutes.")
            self._queue.append(visit)
        try:
            self._wait(visit, said)
            start = time.monotonic()
            yield
            self._seconds.append(time.monotonic() - start)
        finally:
            with self._changed:
                self._queue.remove(visit)
                self._changed.notify_all()

    def _wait(self, visit: Visit, said: Callable[[str], Any]) -> None:
        told = None
        while True:
            with self._changed:
                before = self._queue.index(visit)
                if before < self._places:
                    return
                if before == told:
                    self._changed.wait(1)
            if visit.left:
                raise VisitorLeft
            if before != told:
                said(self._describe(before))
                told = before

    def _describe(self, before: int) -> str:
        others = "Another visitor's cells are" if before == 1 else f"The cells of {before} other visitors are"
        if not self._seconds:
            return f"{others} annotated before yours"
        minutes = before / self._places * sum(self._seconds) / len(self._seconds) / 60
        return f"{others} annotated before yours: about {max(1, round(minutes))} min"


def _work(there: Connection, module: str, work: str, arguments: tuple, limits: Limits) -> None:
    """Runs the function in the new process, and says how it ended."""

    def tell(kind: str, value: Any) -> None:
        there.send_bytes(json.dumps([kind, value]).encode())

    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    function = getattr(import_module(module), work)
    limit(limits)
    try:
        tell("done", function(*arguments, lambda share, what: tell("at", [share, what])))
    except Exception as error:
        if lacks_memory(error):
            tell("refused", _TOO_LARGE.format(limits.memory / 2**30))
        elif isinstance(error, InputError):
            tell("refused", str(error))
        else:
            log.exception("%s failed", work)
            tell("failed", type(error).__name__)


def limit(limits: Limits) -> None:
    """Limits the memory of this process and the files that it writes. It leaves no dump of its memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file, limits.file))
    status = Path("/proc/self/statm")
    if status.exists():  # On Linux; macOS does not limit memory.
        taken = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + limits.memory,) * 2)


def lacks_memory(error: BaseException | None) -> bool:
    """Returns true if an error, or one that caused it, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


__all__ = ["JobFailed", "Jobs", "Turns", "VisitorLeft", "lacks_memory", "limit"]
