# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The files of each visitor: in a folder that nobody else can find, and that is deleted when the visitor leaves. All of
them are in one private folder of the server, which the next server deletes if this one is killed.
"""

import logging
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Protocol

from modeling_langcell import InputError
from modeling_langcell.io.owners import Lock, taking_over

log = logging.getLogger("langcell.space")

_PREFIX, _LOCK = "langcell-app-", ".lock"


class Job(Protocol):
    """Work for a visitor that can be ended."""

    def stop(self) -> None:
        """Ends the work."""


@dataclass(eq=False)
class Visit:
    """
    One open page.

    Args:
        folder: The folder of its files.
        seen: Time of its last use, in seconds.
        token: A random name by which its results are requested.
        sample: What the visitor's file is called, without its ending.
        working: True while its files are written or read.
        left: True after the visitor has left.
        job: The work for the visitor that is going on.
    """

    folder: Path
    seen: float
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    sample: str = "cells"
    working: bool = False
    left: bool = False
    job: Job | None = None


class Visits:
    """
    All open pages. A thread deletes files that are no longer used.

    Args:
        keep: Seconds without use after which files are deleted, even if the page is still open.
        most: Largest number of pages that have files at the same time.
        most_bytes: Largest size of all files together.
        clock: Returns the time in seconds.
    """

    def __init__(self, keep: float, most: int = 100, most_bytes: int = 2**32, clock: Callable[[], float] = time.time):
        self.root, self._lock_of_folder = _claim_folder()
        self.temporary = self.root / "temporary"
        self.temporary.mkdir()
        self._keep, self._most, self._most_bytes, self._clock = keep, most, most_bytes, clock
        self._visits: dict[str, Visit] = {}
        self._arriving = 0
        self._lock, self._closed = threading.RLock(), threading.Event()
        threading.Thread(target=self._sweep_regularly, daemon=True).start()

    def of(self, page: str) -> Visit:
        """
        Returns a page's visit, and starts one if there is none.

        Raises:
            InputError: There are too many visits.
        """
        with self._lock:
            if page not in self._visits:
                if len(self._visits) >= self._most:
                    raise InputError("This app has as many visitors as it takes: try again in some minutes.")
                self._visits[page] = Visit(Path(tempfile.mkdtemp(dir=self.root)), self._clock())
            visit = self._visits[page]
            visit.seen = self._clock()
            return visit

    def renew(self, page: str) -> Visit:
        """
        Returns a new visit with an empty folder.

        Raises:
            InputError: The page's files are in use, or there are too many visits.
        """
        with self._lock:
            if self.of(page).working:
                raise InputError("Your cells are being annotated: wait for that, or open another page.")
            self.end(page)
            return self.of(page)

    @contextmanager
    def working(self, page: str, *, new: bool = False) -> Iterator[Visit]:
        """
        Marks a page's visit as busy. If the page is closed meanwhile, its files are deleted afterwards.

        Args:
            page: The page.
            new: Whether the visit starts anew, with an empty folder.

        Raises:
            InputError: The page's files are in use, or there are too many visits.
        """
        with self._lock:
            visit = self.renew(page) if new else self.of(page)
            if visit.working:
                raise InputError("Your cells are being annotated: wait for that, or open another page.")
            visit.working = True
        try:
            yield visit
        finally:
            with self._lock:
                visit.working, visit.job, visit.seen = False, None, self._clock()
                if visit.left:
                    self._delete(visit)

    @contextmanager
    def arriving(self, size: int) -> Iterator[None]:
        """
        Keeps space for a file that arrives.

        Raises:
            InputError: All files together would be too large.
        """
        with self._lock:
            if self.size() + self._arriving + size > self._most_bytes:
                raise InputError("The files of all visitors take as much space as there is: try again in some minutes.")
            self._arriving += size
        try:
            yield
        finally:
            with self._lock:
                self._arriving -= size

    def size(self) -> int:
        """Returns the size of all files in bytes."""
        total = 0
        for path in self.root.rglob("*"):
            with suppress(OSError):  # It was deleted meanwhile.
                total += path.lstat().st_size
        return total

    def find(self, token: str, name: str) -> tuple[Path, str] | None:
        """
        Returns the path of a file by its visit's token, and what the visitor's file is called; None if no visit has the
        token or the file.
        """
        with self._lock:
            for visit in self._visits.values():
                if secrets.compare_digest(visit.token.encode(), token.encode()):
                    visit.seen = self._clock()
                    path = visit.folder / Path(name).name
                    return (path, visit.sample) if path.is_file() and not path.is_symlink() else None
        return None

    def without_paths(self, text: str) -> str:
        """Removes the paths of the server from a message."""
        return re.sub(re.escape(str(self.root)) + r"/[^/\s]+/", "", text)

    def end(self, page: str) -> None:
        """Ends the work for a page, and deletes all its files, at once or as soon as the work has ended."""
        with self._lock:
            visit = self._visits.pop(page, None)
            if visit is None:
                return
            visit.left = True
            if visit.job is not None:
                visit.job.stop()
            if not visit.working:
                self._delete(visit)

    def sweep(self) -> None:
        """Deletes files that were not used for a long time."""
        old = self._clock() - self._keep
        with self._lock:
            for page, visit in list(self._visits.items()):
                if visit.seen < old and not visit.working:
                    self.end(page)
        for path in sorted(self.temporary.rglob("*"), reverse=True):  # Files come before their folder.
            with suppress(OSError):  # It was deleted meanwhile, or the folder is not empty.
                if path.lstat().st_mtime < old:
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def close(self) -> None:
        """Ends all work and deletes all files; the private folder goes last, after what other libraries have there."""
        self._closed.set()
        with self._lock:
            for page in list(self._visits):
                self.end(page)
        # Python's own temporary folder for processes is deleted with priority -100.
        Finalize(None, self._delete_all, exitpriority=-200)

    def _delete_all(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self._lock_of_folder.release()

    def _delete(self, visit: Visit) -> None:
        shutil.rmtree(visit.folder, ignore_errors=True)

    def _sweep_regularly(self) -> None:
        while not self._closed.wait(self._keep / 10):
            try:
                self.sweep()
            except Exception:  # The next sweep deletes the rest.
                log.exception("Some files could not be deleted")


def _claim_folder() -> tuple[Path, Lock]:
    """
    Deletes the folders of servers that were killed, and makes one for this server, which only its user can read.

    Returns:
        The folder, and the lock beside it, which this process holds as long as it lives.
    """
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*{_LOCK}"):
        with taking_over(left) as is_free:
            if is_free:
                shutil.rmtree(left.with_suffix(""), ignore_errors=True)
    folder = place / f"{_PREFIX}{secrets.token_hex(4)}"
    lock = Lock(folder.with_suffix(_LOCK))  # It comes first, so that no other server takes the folder for one left.
    folder.mkdir(mode=0o700)
    return folder, lock


__all__ = ["Job", "Visit", "Visits"]
