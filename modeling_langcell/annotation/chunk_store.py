# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The chunks of cells that are done, kept as files beside the output until all of them are there."""

import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..io.atomic import atomic_write, require_writable_file
from ..model.errors import InputError, reason_of
from ..model.feature_extraction_langcell import RankedChunks
from .annotator import AnnotatedCells
from .predictions import Predictions

_POLL = 0.5  # Seconds between two looks at what other processes have done.
_PLAN, _MERGED = "plan.json", "annotated.h5ad"
#: All that is ever in the folder of what is unfinished, and nothing else is deleted there.
_OURS = re.compile(r"\.?(plan\.json|annotated\.h5ad|\d{8}\.safetensors|seen-\d+-[0-9a-f]{32})(\.[0-9a-f]{32})?")


class ChunkStore:
    """
    The folder of what is done of an output that is not there yet.

    `plan.json` says what decides the results, and which run of the first process wrote it; `00000007.safetensors` is a
    chunk; `seen-2-...` says that process 2 knows of that run, so that the folder is not gone before all have seen it.

    Args:
        output: The file to be.
        plan: All that decides the results.
        chunks: Of the input.
        rank, processes: Which process this is of how many that have something to do.
    """

    def __init__(self, output: Path, plan: dict[str, Any], chunks: RankedChunks, rank: int, processes: int):
        self.output, self.folder = output, output.absolute().parent / f".{output.name}.unfinished"
        self.plan = json.loads(json.dumps(plan, default=str))
        self.chunks, self.rank, self.processes = chunks, rank, processes
        self.own = range(rank, len(chunks), processes)
        #: Chunks that are known to be there; the first process looks for all, another for its own.
        self.whole: set[int] = set()

    @property
    def merged(self) -> Path:
        """Where the output is made."""
        return self.folder / _MERGED

    def begin(self) -> None:
        """
        Makes the folder, and throws away what is in it of another plan; only the first process does so, and the others
        wait for it.

        Raises:
            InputError: Something of others is in the folder, or nothing can be written there.
        """
        with self._writing():
            require_writable_file(self.output)
        if self.rank == 0:
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                found = self._found()
                if self._run() is None:
                    (self.folder / _PLAN).unlink(missing_ok=True)  # First: nobody is to take these chunks for theirs.
                    for path in found:
                        path.unlink(missing_ok=True)
                self.run = uuid4().hex
                self.merged.unlink(missing_ok=True)
                self._write_whole(self.folder / _PLAN, json.dumps({"run": self.run, "plan": self.plan}).encode())
        while self._run() is None:
            time.sleep(_POLL)
        for number in self.own:
            if not self._is_whole(number):
                self._path(number).unlink(missing_ok=True)

    def look(self) -> int:
        """How many cells are done."""
        names = set(os.listdir(self.folder))
        for number in range(len(self.chunks)) if self.rank == 0 else self.own:
            if number not in self.whole and self._path(number).name in names and self._is_whole(number):
                self.whole.add(number)
        return sum(len(self.chunks.rows(number)) for number in self.whole)

    def write(self, number: int, found: AnnotatedCells) -> None:
        """Keeps a chunk."""
        arrays = {
            "embeds": found.embeds,
            "scores": np.ascontiguousarray(found.scores.T),  # By label, as they are merged.
            **vars(found.answers),
        }
        if self._run() is None:
            raise InputError(f"{self.folder} was taken away, or by another run: one at a time writes {self.output}.")
        with self._writing():
            self._write_whole(self._path(number), save(arrays, {"checksum": _checksum(arrays)}))

    def answers(self, number: int) -> Predictions:
        """Of a chunk."""
        with safe_open(self._path(number), framework="numpy") as file:
            return Predictions(**{name: file.get_tensor(name) for name in Predictions.names()})

    def embeds(self, number: int) -> np.ndarray:
        """Of a chunk."""
        with safe_open(self._path(number), framework="numpy") as file:
            return file.get_tensor("embeds")

    def read_scores(self, number: int, labels: slice) -> np.ndarray:
        """`(labels, cells)` some labels' scores of a chunk."""
        with safe_open(self._path(number), framework="numpy") as file:
            return file.get_slice("scores")[labels]

    def size(self) -> int:
        """Bytes of all the chunks."""
        return sum(self._path(number).stat().st_size for number in range(len(self.chunks)))

    def all_there(self) -> bool:
        """Whether all chunks are done, and all the other processes know of this run."""
        self.look()
        seen = all((self.folder / f"seen-{rank}-{self.run}").exists() for rank in range(1, self.processes))
        return len(self.whole) == len(self.chunks) and seen

    def wait_to_be_seen(self) -> None:
        """
        Says that this process knows of the run, until the first process has taken the folder away. What it finds may be
        an earlier run's, whose plan is the same, if the first process is late.
        """
        said = None
        while (run := self._run()) is not None:
            if run != said:
                with self._writing():
                    (self.folder / f"seen-{self.rank}-{run}").touch()
                said = run
            time.sleep(_POLL)

    def leave(self) -> None:
        """After an error, leaves no folder in which nothing is done; where others work there, it stays."""
        with suppress(InputError, OSError):
            if self.processes == 1 and not any(path.suffix == ".safetensors" for path in self._found()):
                self.remove()

    def remove(self) -> None:
        """Takes the folder away, with what this class put there."""
        with self._writing():
            found = self._found()
            (self.folder / _PLAN).unlink(missing_ok=True)  # First, which tells the other processes.
            for path in found:
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 has both.
            is_kept = any(self.folder.glob("*.safetensors"))
            kept = f" What is done is kept in {self.folder}: the same command goes on." if is_kept else ""
            raise InputError(f"{self.output} cannot be written: {reason_of(error)}.{kept}") from error

    def _write_whole(self, path: Path, content: bytes) -> None:
        try:
            atomic_write(path, content)
        finally:
            for aside in self.folder.glob(f".{path.name}.*"):  # Of a full disk, or of a run that was killed.
                aside.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08}.safetensors"

    def _found(self) -> list[Path]:
        """What is in the folder."""
        found = list(self.folder.iterdir())
        for path in found:
            if not _OURS.fullmatch(path.name) or not path.is_file():
                raise InputError(f"{self.folder} holds {path.name}, which no annotation has put there: move it away.")
        return found

    def _run(self) -> str | None:
        """Which run of the first process wrote this plan; `None` where there is no plan, or another."""
        try:
            found = json.loads((self.folder / _PLAN).read_bytes())
            return found["run"] if found["plan"] == self.plan else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _is_whole(self, number: int) -> bool:
        try:
            with safe_open(self._path(number), framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                return (file.metadata() or {}).get("checksum") == _checksum(arrays)
        except (OSError, SafetensorError):
            return False


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].data, value)
    return f"{value:08x}"


__all__ = []
