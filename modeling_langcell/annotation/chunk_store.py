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

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..io.atomic import atomic_write, complete_name, reserve
from ..io.documents import read_json
from ..io.launch import POLL_SECONDS, Launch
from ..io.outputs import place_of, require_writable_file
from ..model.errors import InputError, reason_of
from ..model.ranking import RankedChunks
from .predictions import Predictions

logger = logging.getLogger(__name__)

_PLAN, _MERGED, _SMOOTHED = "plan.json", "annotated.h5ad", "smoothed.float32"
#: The names of all files that this module writes into a store's folder; it deletes no others.
_STORE_FILE = re.compile(r"plan\.json|annotated\.h5ad|smoothed\.float32|\d{8}\.safetensors|seen-\d+-[0-9a-f]{32}")


class ChunkStore:
    """
    The folder `.{name of the output}.unfinished` next to an output, with the chunks annotated so far.

    `plan.json` holds everything that decides the results, and the id of the run of the first process that wrote it.
    `00000007.safetensors` is a chunk. `seen-2-...` shows that process 2 knows the run's id, so that the first process
    does not delete the folder before all others have seen it.

    Args:
        launch: The processes that share the chunks, and the output file, which does not exist yet or will be replaced.
        plan: Everything that decides the results, in types that JSON accepts.
        chunks: The chunks of the input.
        accepted: Another plan, whose finished chunks are those of this one, too.
    """

    def __init__(
        self, launch: Launch, plan: dict[str, Any], chunks: RankedChunks, accepted: dict[str, Any] | None = None
    ):
        self.launch, self.output, self.rank = launch, launch.output, launch.rank
        #: Where the output is written: elsewhere, if it is a link.
        self.place = place_of(self.output)
        self.folder = self.place.with_name(f".{self.place.name}.unfinished")
        self.plan, self._accepted = (_as_in_json(one) for one in (plan, accepted))
        self.chunks, self._own = chunks, range(self.rank, len(chunks), launch.processes)
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
        Makes the folder, or opens that of an interrupted run. The first process deletes the files of another plan. All
        processes wait until they know of each other.

        Raises:
            InputError: The folder holds files that no annotation wrote, or cannot be written to; or the processes do
                different things, or one of them does not begin.
        """
        with self.writing():
            require_writable_file(self.output)
        if self.rank == 0:
            with self.writing():
                self._claim_folder()
            self.launch.wait_for_all()
        else:
            self._find_folder()
        for number in self._own:
            path = self._path(number)
            if not path.exists():
                continue
            if self._is_intact(number):
                self._stored.add(number)
            else:
                logger.warning("%s is damaged: annotating its cells again.", path)
                path.unlink(missing_ok=True)

    def _claim_folder(self) -> None:
        """Writes the plan of this run, and deletes files of another plan and what a killed run left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self._files()
        _, plan = self._read_plan()
        kept = [self.folder / _PLAN, *map(self._path, range(len(self.chunks)))]
        if plan is None or plan not in (self.plan, self._accepted):
            if found:
                logger.warning("%s belongs to a different annotation: deleting it and starting again.", self.folder)
            kept = []
            (self.folder / _PLAN).unlink(missing_ok=True)  # Deleted first, so that no process takes a chunk.
        for path in found:
            if path not in kept:
                path.unlink(missing_ok=True)
        self.run_id = self.launch.id
        atomic_write(self.folder / _PLAN, json.dumps({"run": self.run_id, "plan": self.plan}).encode())

    def _find_folder(self) -> None:
        """Waits for the plan of the first process, and shows it that this process has seen the run."""
        while True:
            all_there, first = self.launch.are_all_there(), self.launch.first
            run_id, plan = self._read_plan()
            if all_there and first is not None and run_id == first.id:
                break
            time.sleep(POLL_SECONDS)
        if plan != self.plan:
            raise InputError(
                f"This process does not write the same as the first one, {first}: give all processes the same command, "
                "the same input and the same checkpoint."
            )
        self.run_id = run_id
        with self.writing():
            (self.folder / f"seen-{self.rank}-{run_id}").touch()

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

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """
        Stores the arrays of a chunk by name.

        Raises:
            InputError: Another run took over the folder, or the file cannot be written.
        """
        self._require_own_run()
        with self.writing():
            atomic_write(self._path(number), save(arrays, {"checksum": _checksum(arrays)}))

    def predictions(self) -> Predictions:
        """Reads the predictions of all chunks."""
        return Predictions.concatenate(map(self._read_predictions, range(len(self.chunks))))

    def array(self, number: int, name: str) -> np.ndarray:
        """Reads an array of a chunk."""
        with safe_open(self._path(number), framework="numpy") as file:
            return file.get_tensor(name)

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

        Raises:
            InputError: Another process has ended.
        """
        others = range(1, self.launch.processes)
        while True:
            cells = self.count_cells()
            seen = all((self.folder / f"seen-{rank}-{self.run_id}").exists() for rank in others)
            if len(self._stored) == len(self.chunks) and seen:
                return
            yield cells
            self.launch.are_all_there()
            time.sleep(POLL_SECONDS)

    def wait_for_first(self) -> None:
        """
        Waits, in a process other than the first, until the first process has deleted the folder.

        Raises:
            InputError: The first process has ended before.
        """
        while (self.folder / _PLAN).exists():
            self._require_own_run()
            try:
                self.launch.are_all_there()
            except InputError:
                if (self.folder / _PLAN).exists():  # Otherwise it has just finished.
                    raise
            time.sleep(POLL_SECONDS)

    def close_after_error(self) -> None:
        """Deletes a folder without chunks, unless other processes work there."""
        with suppress(InputError, OSError):
            if self.launch.is_alone and not any(path.suffix == ".safetensors" for path in self._files()):
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
            if not _STORE_FILE.fullmatch(complete_name(path) or path.name) or not path.is_file():
                raise InputError(f"{self.folder} holds {path.name}, which no annotation wrote: move it elsewhere.")
        return found

    def _read_plan(self) -> tuple[str | None, Any]:
        """Reads the id of the run that wrote the plan, and the plan; None where there is none."""
        try:
            found = read_json(self.folder / _PLAN)
            return str(found["run"]), found["plan"]
        except (ValueError, KeyError, TypeError):
            return None, None

    def _require_own_run(self) -> None:
        if self._read_plan()[0] != self.run_id:
            raise InputError(
                f"{self.folder} was deleted, or taken over by another run: write {self.output} with one run at a time."
            )

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


def _as_in_json(plan: dict[str, Any] | None) -> Any:
    """Returns a plan as it is read from its file, to compare the two."""
    return json.loads(json.dumps(plan, default=str))  # noqa: TID251 - it is our own


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].data, value)
    return f"{value:08x}"


__all__ = ["ChunkStore"]
