# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a visitor has brought and been given: in a folder that nobody else finds, and that is gone with the visitor."""

import re
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Visit:
    """
    One open page.

    Args:
        folder: Of its files.
        token: What its files are asked for by; it cannot be guessed.
        seen: When it was last used, in seconds of `time.monotonic`.
    """

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    seen: float = field(default_factory=time.monotonic)


class Visits:
    """
    All open pages. They are looked after by a thread of their own.

    Args:
        keep: Seconds after which what was not used is deleted, though its page may still be open.
        uploads: Where files arrive: what nobody has taken from there is deleted as soon.
    """

    def __init__(self, keep: float, uploads: Path):
        self._root = Path(tempfile.mkdtemp(prefix="langcell-visits-"))  # For this user's eyes alone.
        self._keep, self._uploads = keep, uploads
        self._visits: dict[str, Visit] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._look_after, daemon=True).start()

    def of(self, session: str) -> Visit:
        """A page's visit, which is begun if need be."""
        with self._lock:
            if session not in self._visits:
                self._visits[session] = Visit(Path(tempfile.mkdtemp(dir=self._root)))
            visit = self._visits[session]
            visit.seen = time.monotonic()
            return visit

    def find(self, token: str, name: str) -> Path | None:
        """A visit's file; none where no visit has this token, or not this file."""
        with self._lock:
            folders = [visit.folder for visit in self._visits.values() if secrets.compare_digest(visit.token, token)]
        path = folders[0] / Path(name).name if folders else None
        return path if path is not None and path.is_file() else None

    def without_paths(self, text: str) -> str:
        """A message without where files lie here."""
        return re.sub(re.escape(str(self._root)) + r"/[^/\s]+/", "", text)

    def end(self, session: str) -> None:
        """Deletes all that a page has brought and been given."""
        with self._lock:
            visit = self._visits.pop(session, None)
        if visit is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Deletes what was not used for long."""
        old = time.monotonic() - self._keep
        with self._lock:
            forgotten = [session for session, visit in self._visits.items() if visit.seen < old]
        for session in forgotten:
            self.end(session)
        for path in self._uploads.rglob("*"):
            if path.is_file() and time.time() - path.stat().st_mtime > self._keep:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Deletes all."""
        self._closed.set()
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.rmtree(self._uploads, ignore_errors=True)

    def _look_after(self) -> None:
        while not self._closed.wait(self._keep / 10):
            self.sweep()


__all__ = ["Visit", "Visits"]
