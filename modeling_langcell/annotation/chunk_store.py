# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Annotated chunks of cells, stored as files next to the output until all of them are done."""

import json
import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..io.atomic import atomic_write, require_writable_file, reserve
from ..model.errors import InputError, reason_of
from ..model.ranking import RankedChunks
from .annotation_run import AnnotatedCells
from .predictions import Predictions

logger = logging.getLogger(__name__)

#: Seconds between two looks at the files of other processes.
POLL_SECONDS = 0.5

_PLAN, _MERGED, _SMOOTHED = "plan.json", "annotated.h5ad", "smoothed.float32"
#: The names of all files that this module writes into a store's folder; it deletes no others.
_STORE_FILE = re.compile(
    r"\.?(plan\.json|annotated\.h5ad|smoothed\.float32|\d{8}\.safetensors|seen-\d+-[0-9a-f]{32})(\.[0-9a-f]{32})?"
)


class ChunkStore:
    """
    The folder `.{name of the output}.unfinished` next to an output, with the chunks annotated so far.

    `plan.json` holds everything that decides the results, and the id of the run of the first process that wrote it.
    `00000007.safetensors` is a chunk. `seen-2-...` shows that process 2 knows the run's id, so that the first process
    does not delete the folder before all others have seen it.

    Args:
        output: The output file, which does not exist yet or will be replaced.
        plan: Everything that decides the results, in types that JSON accepts.
        chunks: The chunks of the input.
        rank: Number of this process.
        processes: Number of processes that share the chunks.
    """

    def __init__(self, output: Path, plan: dict[str, Any], chunks: RankedChunks, rank: int, processes: int):
        self.output, self.folder = output, output.absolute().parent / f".{output.name}.unfinished"
        self.plan = json.loads(json.dumps(plan, default=str))
        self.chunks, self.rank, self.processes = chunks, rank, processes
        self._own = range(rank, len(chunks), processes)
        #: Chunks that are known to be stored. The first process looks for all chunks, the others for their own.
        self._stored: set[int] = set()
        #: `(labels, cells)` scores that replace those of the chunks; None where they are not smoothed.
        self._smoothed: np.ndarray | None = None

    @property
    def merged(self) -> Path:
        """The file in which the output is assembled."""
        return self.folder / _MERGED

    def open(self) -> None:
        """
        Makes the folder, or opens that of an interrupted run. The first process deletes the files of another plan; the
        others wait for it.

        Raises:
            InputError: The folder holds files that no annotation wrote, or cannot be written to.
        """
        with self.writing():
            require_writable_file(self.output)
        if self.rank == 0:
            with self.writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                found = self._files()
                if self._run_id() is None:
                    if found:
                        logger.warning(
                            "%s belongs to a different annotation: deleting it and starting again.", self.folder
                        )
                    (self.folder / _PLAN).unlink(missing_ok=True)  # Deleted first, so that no process takes a chunk.
                    for path in found:
                        path.unlink(missing_ok=True)
                self.run_id = uuid4().hex
                self.merged.unlink(missing_ok=True)
                self._write_file(self.folder / _PLAN, json.dumps({"run": self.run_id, "plan": self.plan}).encode())
        while self._run_id() is None:
            time.sleep(POLL_SECONDS)
        for number in self._own:
            path = self._path(number)
            if not path.exists():
                continue
            if self._is_intact(number):
                self._stored.add(number)
            else:
                logger.warning("%s is damaged: annotating its cells again.", path)
                path.unlink(missing_ok=True)

    def count_cells(self) -> int:
        """Looks for new chunks and returns the number of cells in all stored ones."""
        names = set(os.listdir(self.folder))
        for number in range(len(self.chunks)) if self.rank == 0 else self._own:
            if number not in self._stored and self._path(number).name in names and self._is_intact(number):
                self._stored.add(number)
        return sum(len(self.chunks.rows(number)) for number in self._stored)

    def missing(self) -> list[int]:
        """Returns the numbers of the chunks that this process has yet to annotate."""
        return [number for number in self._own if number not in self._stored]

    def write(self, number: int, annotated: AnnotatedCells) -> None:
        """
        Stores a chunk.

        Raises:
            InputError: Another run took over the folder, or the file cannot be written.
        """
        arrays = {
            "embeds": annotated.embeds,
            "scores": np.ascontiguousarray(annotated.scores.T),  # Stored by label, the order in which they are merged.
            **vars(annotated.predictions),
        }
        if self._run_id() is None:
            raise InputError(
                f"{self.folder} was deleted, or taken over by another run: write {self.output} with one run at a time."
            )
        with self.writing():
            self._write_file(self._path(number), save(arrays, {"checksum": _checksum(arrays)}))

    def predictions(self) -> Predictions:
        """Reads the predictions of all chunks."""
        return Predictions.concatenate(map(self._read_predictions, range(len(self.chunks))))

    def embeds(self, number: int) -> np.ndarray:
        """Reads the `(cells, width)` embeddings of a chunk."""
        with safe_open(self._path(number), framework="numpy") as file:
            return file.get_tensor("embeds")

    def scores(self, number: int, labels: slice = slice(None)) -> np.ndarray:
        """Reads the `(labels, cells)` scores of a chunk for some labels; smoothed ones, if there are any."""
        if self._smoothed is not None:
            rows = self.chunks.rows(number)
            return np.array(self._smoothed[labels, rows.start : rows.stop])
        with safe_open(self._path(number), framework="numpy") as file:
            return file.get_slice("scores")[labels]

    def scores_of_all(self, labels: slice) -> np.ndarray:
        """Reads the `(labels, cells)` scores of all cells for some labels."""
        return np.concatenate([self.scores(number, labels) for number in range(len(self.chunks))], axis=1)

    def smooth(self, n_labels: int, fill: Callable[[np.ndarray], Any]) -> None:
        """
        Replaces the scores by smoothed ones, which are kept in a file as long as the folder.

        Args:
            n_labels: Number of labels.
            fill: Fills the `(labels, cells)` array that it is given. It may read the scores meanwhile.
        """
        path, shape = self.folder / _SMOOTHED, (n_labels, self.chunks.n_cells)
        with self.writing():
            path.write_bytes(b"")
            reserve(path, 4 * n_labels * self.chunks.n_cells)  # A full disk must not be found out in mapped memory.
            smoothed = np.memmap(path, np.float32, "r+", shape=shape)
        fill(smoothed)
        self._smoothed = smoothed

    def size(self) -> int:
        """Returns the size of all chunks in bytes."""
        return sum(self._path(number).stat().st_size for number in range(len(self.chunks)))

    def wait_for_others(self) -> Iterator[int]:
        """
        Waits, in the first process, until all chunks are stored and all other processes have seen the run. Yields the
        number of stored cells while it waits.
        """
        while True:
            cells = self.count_cells()
            seen = all((self.folder / f"seen-{rank}-{self.run_id}").exists() for rank in range(1, self.processes))
            if len(self._stored) == len(self.chunks) and seen:
                return
            yield cells
            time.sleep(POLL_SECONDS)

    def wait_for_first(self) -> None:
        """
        Waits, in a process other than the first, until the first process has deleted the folder, and shows that this
        process has seen the run. If the first process is late, the run may be an earlier one with the same plan.
        """
        seen = None
        while (run_id := self._run_id()) is not None:
            if run_id != seen:
                with self.writing():
                    (self.folder / f"seen-{self.rank}-{run_id}").touch()
                seen = run_id
            time.sleep(POLL_SECONDS)

    def close_after_error(self) -> None:
        """Deletes a folder without chunks, unless other processes work there."""
        with suppress(InputError, OSError):
            if self.processes == 1 and not any(path.suffix == ".safetensors" for path in self._files()):
                self.delete()

    def delete(self) -> None:
        """Deletes the folder."""
        with self.writing():
            found = self._files()
            (self.folder / _PLAN).unlink(missing_ok=True)  # Deleted first, which tells the others that the run is done.
            for path in found:
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """
        Turns write errors into a message that says what was kept.

        Raises:
            InputError: The disk is full, the folder is not writable, or the like.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 raises both.
            has_chunks = any(self.folder.glob("*.safetensors"))
            kept = f" The finished part is kept in {self.folder}: the same command continues it." if has_chunks else ""
            raise InputError(f"{self.output} cannot be written: {reason_of(error)}.{kept}") from error

    def _write_file(self, path: Path, content: bytes) -> None:
        try:
            atomic_write(path, content)
        finally:
            for temporary in self.folder.glob(f".{path.name}.*"):  # A full disk or a killed run leaves these.
                temporary.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08}.safetensors"

    def _files(self) -> list[Path]:
        """
        Lists the files in the folder.

        Raises:
            InputError: One of them was not written by this class.
        """
        found = list(self.folder.iterdir())
        for path in found:
            if not _STORE_FILE.fullmatch(path.name) or not path.is_file():
                raise InputError(f"{self.folder} holds {path.name}, which no annotation wrote: move it elsewhere.")
        return found

    def _run_id(self) -> str | None:
        """Reads the id of the run that wrote this plan; None where there is no plan, or a different one."""
        try:
            found = json.loads((self.folder / _PLAN).read_bytes())
            return found["run"] if found["plan"] == self.plan else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read_predictions(self, number: int) -> Predictions:
        with safe_open(self._path(number), framework="numpy") as file:
            return Predictions(**{name: file.get_tensor(name) for name in Predictions.names()})

    def _is_intact(self, number: int) -> bool:
        try:
            with safe_open(self._path(number), framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
                return (file.metadata() or {}).get("checksum") == _checksum(arrays)
        except (OSError, SafetensorError):
            return False


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].data, value)
    return f"{value:08x}"


__all__ = ["POLL_SECONDS", "ChunkStore"]
