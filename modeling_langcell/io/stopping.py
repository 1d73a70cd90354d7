# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Signals that tell a run to end, as an exception: so that it cleans up, and its caller says how to continue."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Seconds after which a signal comes again whose exception Python dropped.
_AGAIN = 0.01


#: The signals that came while `undisturbed` was open; None while it is not.
_waiting: list[int] | None = None


class Stopped(KeyboardInterrupt):
    """
    Raised in the main thread when the process was told to end: by Ctrl-C, `kill`, or the end of its terminal.

    Args:
        number: The signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal ended, as shells report it."""
        return 128 + self.number

    def __str__(self) -> str:
        return "Stopped by Ctrl-C" if self.number == signal.SIGINT else f"Stopped by {signal.Signals(self.number).name}"


@contextmanager
def stopping() -> Iterator[None]:
    """
    Turns the signals that tell a process to end into `Stopped`. A second one does not disturb the cleaning up. Signals
    that are ignored, as SIGHUP is under `nohup`, stay so; in a thread other than the main one nothing changes.

    Python drops what is raised in a destructor or in the callback of a weak reference, and a signal may come while one
    of them runs. The hook for dropped exceptions has the signal sent again then.

    Raises:
        Stopped: A signal came.
    """

    def stop(number: int, frame: Any) -> None:
        if _waiting is not None:
            _waiting.append(number)
            return
        for caught in before:
            signal.signal(caught, signal.SIG_IGN)
        raise Stopped(number)

    def send_again(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Stopped):
            show_dropped(dropped)
            return
        for caught in before:
            signal.signal(caught, stop)
        timers.append(threading.Timer(_AGAIN, os.kill, (os.getpid(), dropped.exc_value.number)))
        timers[-1].start()

    is_main = threading.current_thread() is threading.main_thread()
    wanted = [number for number in SIGNALS if is_main and signal.getsignal(number) is not signal.SIG_IGN]
    timers: list[threading.Timer] = []
    show_dropped, sys.unraisablehook = sys.unraisablehook, send_again
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = show_dropped


@contextmanager
def undisturbed() -> Iterator[None]:
    """
    Lets a signal that comes meanwhile wait until the end. It is for a few steps that belong together, such as making a
    file and remembering that it is to be deleted.

    Raises:
        Stopped: A signal came, and `stopping` is open.
    """
    global _waiting
    if _waiting is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _waiting = []
    try:
        yield
    finally:
        came, _waiting = _waiting, None
        if came:
            signal.raise_signal(came[0])


__all__ = ["SIGNALS", "Stopped", "stopping", "undisturbed"]
