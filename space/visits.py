# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a visitor has brought and been given: in a folder that nobody else finds, and that is gone with the visitor."""

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
        folder: Of its files.
        seen: When it was last used, in seconds.
        token: What its files are asked for by; it cannot be guessed.
        working: Whether something is being made there.
    """

    folder: Path
    seen: float
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    working: bool = False


class Visits:
    """
    All open pages. They are looked after by a thread of their own.

    Args:
        keep: Seconds after which what was not used is deleted, though its page may still be open.
        uploads: Where files arrive: what nobody has taken from there is deleted as soon.
        clock: Seconds now; of files the system's counts.
    """

    def __init__(self, keep: float, uploads: Path, clock: Callable[[], float] = time.time):
        self._root = Path(tempfile.mkdtemp(prefix="langcell-visits-"))  # For this user's eyes alone.
        self._keep, self._uploads, self._clock = keep, uploads, clock
        self._visits: dict[str, Visit] = {}
        self._brought: dict[Path, set[str]] = {}  # The same content lies at one path, whichever pages sent it.
        self._lock, self._closed = threading.RLock(), threading.Event()
        threading.Thread(target=self._look_after, daemon=True).start()

    def of(self, session: str) -> Visit:
        """A page's visit, which is begun if need be."""
        with self._lock:
            if session not in self._visits:
                self._visits[session] = Visit(Path(tempfile.mkdtemp(dir=self._root)), self._clock())
            visit = self._visits[session]
            visit.seen = self._clock()
            return visit

    def note(self, page: str, path: Path) -> None:
        """Notes that a page has uploaded a file."""
        with self._lock:
            self._brought.setdefault(path, set()).add(page)

    def take(self, page: str, path: Path) -> bool:
        """Says whether a page has uploaded a file that is still there, and forgets it: a page names a file once."""
        with self._lock:
            pages = self._brought.get(path, set())
            brought = page in pages
            pages.discard(page)
            if not pages:
                self._brought.pop(path, None)
        return brought and path.is_file() and not path.is_symlink()

    @contextmanager
    def working(self, session: str) -> Iterator[Visit]:
        """A page's visit while something is made there: it is deleted afterwards, if its page was closed meanwhile."""
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
        """A visit's file; none where no visit has this token, or not this file."""
        with self._lock:
            for visit in self._visits.values():
                if secrets.compare_digest(visit.token.encode(), token.encode()):
                    visit.seen = self._clock()
                    path = visit.folder / Path(name).name
                    return path if path.is_file() else None
        return None

    def without_paths(self, text: str) -> str:
        """A message without where files lie here."""
        return re.sub(re.escape(str(self._root)) + r"/[^/\s]+/", "", text)

    def end(self, session: str) -> None:
        """Deletes all that a page has brought and been given, at once or as soon as nothing is made there."""
        with self._lock:
            visit = self._visits.pop(session, None)
            if visit is not None and not visit.working:
                self._delete(visit)

    def sweep(self) -> None:
        """Deletes what was not used for long."""
        old = self._clock() - self._keep
        with self._lock:
            for session, visit in list(self._visits.items()):
                if visit.seen < old and not visit.working:
                    self.end(session)
        for path in sorted(self._uploads.rglob("*"), reverse=True):  # What is in a folder before the folder.
            with suppress(OSError):  # It was taken meanwhile, or the folder is not empty.
                if path.stat().st_mtime < old:
                    path.rmdir() if path.is_dir() else path.unlink()
        with self._lock:
            self._brought = {path: pages for path, pages in self._brought.items() if path.exists()}

    def close(self) -> None:
        """Deletes all."""
        self._closed.set()
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.rmtree(self._uploads, ignore_errors=True)

    def _delete(self, visit: Visit) -> None:
        shutil.rmtree(visit.folder, ignore_errors=True)

    def _look_after(self) -> None:
        while not self._closed.wait(self._keep / 10):
            try:
                self.sweep()
            except Exception:  # Others' files are to be deleted the next time.
                log.exception("Not all that was to be deleted could be")


__all__ = ["Visit", "Visits"]
