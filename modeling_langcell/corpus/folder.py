# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
A corpus's folder: the names of its files, and which files a build may replace or delete.

Other files may lie in the folder when a build starts, or appear while it runs. A build recognises its own files by
their exact names and leaves all others alone.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..io.atomic import atomic_write, complete_name
from ..io.documents import read_json
from ..model.errors import InputError

FORMAT = 2
MANIFEST, GENES, PANELS, PLACES = "manifest.json", "genes.json", "panels.arrow", "places.json"
SHARDS, UNFINISHED = "shards", "unfinished"
#: Sources and settings of a corpus that is being built; the build is finished once this file is gone.
PLAN = Path(UNFINISHED, "plan.json")
_UNFIT_SOURCES = "unfit.json"


class BuildFolder:
    """
    The folder that a corpus is built in.

    Args:
        path: The folder; it need not exist.
        chunks: Names of the chunks of cells. A chunk has one sketch, one shard, and one file of sums of places.
    """

    def __init__(self, path: Path, chunks: Iterable[str]):
        chunks = list(chunks)
        self.path, self.plan = path, path / PLAN
        self.manifest, self.genes, self.panels = path / MANIFEST, path / GENES, path / PANELS
        self.places = path / PLACES
        self.shards, self.unfinished = path / SHARDS, path / UNFINISHED
        self.unfit_sources = self.unfinished / _UNFIT_SOURCES
        self._own_names = {
            path: {MANIFEST, GENES, PANELS, PLACES},
            self.shards: {self.shard(chunk).name for chunk in chunks},
            self.unfinished: {
                *(PLAN.name, _UNFIT_SOURCES),
                *(file(chunk).name for chunk in chunks for file in (self.sketch, self.place_sums)),
            },
        }

    def sketch(self, chunk: str) -> Path:
        """Returns the file for the sketch of a chunk's gene values."""
        return self.unfinished / f"{chunk}.npz"

    def place_sums(self, chunk: str) -> Path:
        """Returns the file for the sums of the places of a chunk's genes."""
        return self.unfinished / f"{chunk}.places.npz"

    def shard(self, chunk: str) -> Path:
        """Returns the file for a chunk's ranked cells."""
        return self.shards / f"{chunk}.arrow"

    def claim(self, plan: dict[str, Any]) -> bool:
        """
        Writes the plan into a folder that is new or empty, or checks that the folder holds an unfinished corpus of the
        same plan and nothing else.

        Returns:
            True if there is an unfinished corpus to resume.

        Raises:
            InputError: The folder holds other files or a corpus with a different plan, or it cannot be written.
        """
        try:
            self._is_new = not self.path.exists()
            found = _read_plan(self.plan)
            if found is None:
                if not self._is_new and not self._is_free():
                    raise InputError(f"{self.path} is not empty: choose a new folder.")
                atomic_write(self.plan, to_json(plan))
            elif found != plan:
                raise InputError(
                    f"{self.path} holds an unfinished corpus with different sources or settings: choose a new folder."
                )
            elif foreign := [path for path in self._entries() if self._own_name(path) is None]:
                raise InputError(
                    f"{min(foreign)} does not belong to the unfinished corpus in {self.path}: move it elsewhere."
                )
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error
        return found is not None

    def write(self, path: Path, content: bytes) -> None:
        """
        Writes a file of the corpus. A build that was killed would have written the same file, so that a different one
        is somebody else's.

        Raises:
            InputError: There is such a file.
        """
        if path.exists() and path.read_bytes() != content:
            raise InputError(f"{path} does not belong to the unfinished corpus in {self.path}: move it elsewhere.")
        atomic_write(path, content)

    def _is_free(self) -> bool:
        """
        Returns true if the folder holds nothing except the incomplete plan of a build that was killed at its start.
        """
        free = all(path == self.unfinished for path in self.path.iterdir())
        return free and all(self._own_name(path) == PLAN.name != path.name for path in self._entries())

    def remove_incomplete_files(self) -> None:
        """Removes files that a killed process left incomplete."""
        for path in self._entries():
            if self._own_name(path) not in (None, path.name):
                path.unlink(missing_ok=True)

    def remove_working_files(self) -> None:
        """
        Removes the files that only the build needs; the plan goes last, so that a build killed here can be resumed too.
        """
        for path in self._entries():
            if path.parent == self.unfinished and path.name != PLAN.name and self._own_name(path):
                path.unlink()
        self.plan.unlink()
        with suppress(OSError):  # The folder stays if someone has put a file there meanwhile.
            self.unfinished.rmdir()

    def remove_corpus(self) -> None:
        """Removes everything that the build has written, and the folder itself if the build made it."""
        for path in self._entries():
            if path.parent != self.unfinished and self._own_name(path):
                path.unlink()
        with suppress(OSError):
            self.shards.rmdir()
        self.remove_working_files()
        if self._is_new:
            with suppress(OSError):
                self.path.rmdir()

    def _entries(self) -> Iterator[Path]:
        """Yields the entries of the folder and of its two subfolders, without these subfolders themselves."""
        for folder in self._own_names:
            if folder == self.path or _is_real_folder(folder):
                entries = [*folder.iterdir()]
                yield from (path for path in entries if path not in self._own_names or not _is_real_folder(path))

    def _own_name(self, path: Path) -> str | None:
        """Returns the name under which a file, complete or not, belongs to the corpus; None for any other entry."""
        name = complete_name(path) or path.name
        return name if name in self._own_names[path.parent] and path.is_file() and not path.is_symlink() else None


def _is_real_folder(path: Path) -> bool:
    """Returns true if a path is a folder, not a link to one elsewhere."""
    return path.is_dir() and not path.is_symlink()


def _read_plan(path: Path) -> Any:
    """Reads the plan of an unfinished corpus; returns None where there is none."""
    if not path.is_file() or path.is_symlink():
        return None
    try:
        plan = read_json(path)
    except InputError:
        return None
    return plan if isinstance(plan, dict) and "format" in plan else None


def to_json(value: Any) -> bytes:
    """Returns a value in the form that the JSON files of a corpus use."""
    return (json.dumps(value, indent=1) + "\n").encode()


__all__ = ["FORMAT", "GENES", "MANIFEST", "PANELS", "PLACES", "PLAN", "SHARDS", "UNFINISHED", "BuildFolder", "to_json"]
