# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The files of each visitor: in a folder that nobody else can find, and that is deleted when the visitor leaves."""

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
from pathlib import Path

log = logging.getLogger("langcell.space")


@dataclass(eq=False)
class Visit:
    """
    One open page.

    Args:
        folder: The folder of its files.
        seen: Time of its last use, in seconds.
        token: A random name by which its files are requested.
        working: True while an annotation runs.
    """

    folder: Path
    seen: float
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    working: bool = False


class Visits:
    """
    All open pages. A thread deletes files that are no longer used.

    Args:
        keep: Seconds without use after which files are deleted, even if the page is still open.
        uploads: The folder where files arrive. Uploads that no event has taken are deleted after the same time.
        clock: Returns the time in seconds. The age of uploads is compared with it by their time of modification.
    """

    def __init__(self, keep: float, uploads: Path, clock: Callable[[], float] = time.time):
        self._root = Path(tempfile.mkdtemp(prefix="langcell-visits-"))  # Only this user can read it.
        self._keep, self._uploads, self._clock = keep, uploads, clock
        self._visits: dict[str, Visit] = {}
        self._uploaded: dict[Path, set[str]] = {}  # Equal content has one path, whichever pages sent it.
        self._lock, self._closed = threading.RLock(), threading.Event()
        threading.Thread(target=self._sweep_regularly, daemon=True).start()

    def of(self, session: str) -> Visit:
        """Returns a page's visit, and starts one if there is none."""
        with self._lock:
            if session not in self._visits:
                self._visits[session] = Visit(Path(tempfile.mkdtemp(dir=self._root)), self._clock())
            visit = self._visits[session]
            visit.seen = self._clock()
            return visit

    def note(self, page: str, path: Path) -> None:
        """Notes that a page has uploaded a file."""
        with self._lock:
            self._uploaded.setdefault(path, set()).add(page)

    def take(self, page: str, path: Path) -> bool:
        """Returns true if a page has uploaded a file that still exists, and forgets it: a page may name a file once."""
        with self._lock:
            pages = self._uploaded.get(path, set())
            uploaded = page in pages
            pages.discard(page)
            if not pages:
                self._uploaded.pop(path, None)
        return uploaded and path.is_file() and not path.is_symlink()

    @contextmanager
    def working(self, session: str) -> Iterator[Visit]:
        """Marks a page's visit as busy. If the page is closed meanwhile, its files are deleted afterwards."""
        visit = self.of(session)
        visit.working = True
        try:
            yield visit
        finally:
            with self._lock:
                visit.working, visit.seen = False, self._clock()
                if self._visits.get(session) is not visit:
                    self._delete(visit)

    def find(self, token: str, name: str) -> Path | None:
        """Returns the path of a file by its visit's token; None if no visit has the token or the file."""
        with self._lock:
            for visit in self._visits.values():
                if secrets.compare_digest(visit.token.encode(), token.encode()):
                    visit.seen = self._clock()
                    path = visit.folder / Path(name).name
                    return path if path.is_file() else None
        return None

    def without_paths(self, text: str) -> str:
        """Removes the paths of the server from a message."""
        return re.sub(re.escape(str(self._root)) + r"/[^/\s]+/", "", text)

    def end(self, session: str) -> None:
        """Deletes all files of a page, at once or as soon as its annotation ends."""
        with self._lock:
            visit = self._visits.pop(session, None)
            if visit is not None and not visit.working:
                self._delete(visit)

    def sweep(self) -> None:
        """Deletes files that were not used for a long time."""
        old = self._clock() - self._keep
        with self._lock:
            for session, visit in list(self._visits.items()):
                if visit.seen < old and not visit.working:
                    self.end(session)
        for path in sorted(self._uploads.rglob("*"), reverse=True):  # Files come before their folder.
            with suppress(OSError):  # The file was taken meanwhile, or the folder is not empty.
                if path.stat().st_mtime < old:
                    path.rmdir() if path.is_dir() else path.unlink()
        with self._lock:
            self._uploaded = {path: pages for path, pages in self._uploaded.items() if path.exists()}

    def close(self) -> None:
        """Deletes all files."""
        self._closed.set()
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.rmtree(self._uploads, ignore_errors=True)

    def _delete(self, visit: Visit) -> None:
        shutil.rmtree(visit.folder, ignore_errors=True)

    def _sweep_regularly(self) -> None:
        while not self._closed.wait(self._keep / 10):
            try:
                self.sweep()
            except Exception:  # The next sweep deletes the rest.
                log.exception("Some files could not be deleted")


__all__ = ["Visit", "Visits"]
