# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The processes that work on one output: a single one, or those that a launcher starts together."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..model.errors import InputError, reason_of
from .atomic import making_parents, remove_leftovers
from .outputs import place_of
from .owners import Lock, Owner, find_owner, taking_over
from .stopping import undisturbed

#: Seconds that a process waits for the others of its launch to begin.
JOIN_SECONDS = 45.0
#: Seconds between two looks at the other processes.
POLL_SECONDS = 0.5
#: The variables that hold a process's number and the number of processes, which launchers name differently.
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched_processes() -> tuple[int, int]:
    """
    Returns the number of this process and the number of processes, as the launcher set them in the environment.

    Raises:
        InputError: The variables do not hold such numbers.
    """
    (rank_name, rank), (size_name, size) = _variable(_RANKS, 0), _variable(_SIZES, 1)
    if not 0 <= rank < size:
        raise InputError(
            f"The environment says that this is process {rank} ({rank_name}) of {size} ({size_name}), which are "
            f"numbered from 0. {_without_launcher(rank_name, size_name)}"
        )
    return rank, size


def _variable(names: tuple[str, ...], default: int) -> tuple[str, int]:
    """Returns the first variable that is set, and its value."""
    name = next((name for name in names if os.environ.get(name)), names[0])
    value = os.environ.get(name) or str(default)
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise InputError(f"The environment variable {name} is {value!r}, not a number. {_without_launcher(name)}")
    return name, int(value)


def _without_launcher(*names: str) -> str:
    return f"If no launcher has set it, remove it: unset {' '.join(names)}"


class Launch:
    """
    This process's share in the work on an output. While it is open, it holds the lock `.NAME.process-0` beside the
    output (or `-1` for the second process, and so on), by which all processes know whether the others live. The kernel
    frees the lock of a process that dies. A context manager.

    Args:
        output: The file or folder that is written.
        rank: Number of this process.
        processes: Number of processes.
        then: What the same command does when it is run again after a process has died.

    Raises:
        InputError: Another run writes the same output, or nothing can be written there.
    """

    def __init__(
        self,
        output: str | Path,
        rank: int = 0,
        processes: int = 1,
        then: str = "it continues with what is finished",
    ):
        self.output, self.rank, self.processes, self.then = Path(output), rank, processes, then
        self._place = place_of(output)
        self._others = range(1, processes) if rank == 0 else range(1)
        self._seen: set[int] = set()

    def __enter__(self) -> "Launch":
        self._opened = ExitStack()
        try:
            try:
                with undisturbed():
                    self._opened.enter_context(making_parents(self._place))
                    self._lock = self._opened.enter_context(Lock(self._lock_file(self.rank)))
            except BlockingIOError:
                self._refuse(find_owner(self._lock_file(self.rank)))
            except OSError as error:
                raise InputError(f"{self.output} cannot be written: {reason_of(error)}.") from error
            if self.rank == 0:
                self._remove_earlier_locks()
                remove_leftovers(self._place)
            self._started = self._looked = time.monotonic()
        except BaseException:
            self._opened.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    @property
    def id(self) -> str:
        """The id of this process's lock, which is drawn anew for each run."""
        return self._lock.owner.id

    @property
    def is_alone(self) -> bool:
        """True if no other process of the launch runs."""
        others = (rank for rank in range(self.processes) if rank != self.rank)
        return all(find_owner(self._lock_file(rank)) is None for rank in others)

    @property
    def first(self) -> Owner | None:
        """The first process, or None while it does not run."""
        return self._lock.owner if self.rank == 0 else find_owner(self._lock_file(0))

    def are_all_there(self) -> bool:
        """
        Returns true if the processes that this one depends on run: for the first process all others, and for the others
        the first.

        Raises:
            InputError: One of them has ended, or has not begun in time.
        """
        missing = []
        for rank in self._others:
            if find_owner(self._lock_file(rank)) is not None:
                self._seen.add(rank)
            elif rank in self._seen:
                raise self._ended(rank)
            else:
                missing.append(rank)
        self._looked = time.monotonic()
        if missing and self._looked - self._started > JOIN_SECONDS:
            raise InputError(
                f"This is process {self.rank} of {self.processes} (RANK={self.rank}, WORLD_SIZE={self.processes}), and "
                f"process {missing[0]} has not begun within {JOIN_SECONDS:.0f} seconds. Start all of them at the same "
                "time, as accelerate launch does; or, if this is to be a single process, remove what an earlier launch "
                "has left in the environment: unset RANK WORLD_SIZE"
            )
        return not missing

    def require_others(self) -> None:
        """
        Checks, after it was waited for all, that every other process still runs.

        Raises:
            InputError: One of them has ended.
        """
        time.sleep(POLL_SECONDS)  # A process may be about to end.
        for rank in range(self.processes):
            if rank != self.rank and find_owner(self._lock_file(rank)) is None:
                raise self._ended(rank)

    def wait_for_all(self) -> None:
        """
        Waits until the processes that this one depends on run.

        Raises:
            InputError: One of them does not begin in time.
        """
        while not self.are_all_there():
            time.sleep(POLL_SECONDS)

    def look(self) -> None:
        """
        Looks from time to time whether the other processes still run.

        Raises:
            InputError: One of them has ended, or has not begun in time.
        """
        if time.monotonic() - self._looked > POLL_SECONDS:
            self.are_all_there()

    def _lock_file(self, rank: int) -> Path:
        return self._place.parent / f".{self._place.name}.process-{rank}"

    def _ended(self, rank: int) -> InputError:
        return InputError(
            f"Process {rank} of {self.processes} (RANK={rank}) has ended before {self.output} was done; its own "
            f"message or the system's log says why. Run the same command again: {self.then}."
        )

    def _remove_earlier_locks(self) -> None:
        """Deletes the locks of dead processes of an earlier launch, which had more processes."""
        prefix = f".{self._place.name}.process-"
        for name in os.listdir(self._place.parent):
            number = name.removeprefix(prefix)
            if name.startswith(prefix) and number.isdecimal() and int(number) >= self.processes:
                path = self._place.parent / name
                owner = find_owner(path)
                if owner is not None:
                    self._refuse(owner)
                with suppress(OSError), taking_over(path):
                    pass

    def _refuse(self, owner: Owner | None) -> None:
        raise InputError(
            f"{self.output} is being written by {owner or 'another process'}: wait until that ends, end it, or choose "
            "another output."
        )


@contextmanager
def sole_writer(output: str | Path) -> Iterator[None]:
    """
    Keeps other runs from writing the same output meanwhile.

    Raises:
        InputError: Another run writes it, or nothing can be written there.
    """
    with Launch(output):
        yield


__all__ = ["JOIN_SECONDS", "POLL_SECONDS", "Launch", "launched_processes", "sole_writer"]
