# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
A file of cells in, an annotated file out: in memory that does not grow with the file, by one process or by several, and
going on where it was killed.

Chunks of cells that are done lie as files of their own beside the output, until all of them are there and become it.
Several processes share that folder and nothing else.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .annotation import AnnotatedCells, LangCellAnnotator, checked_rows, open_cells, reading_h5ad
from .answers import EMBEDDING, PROBABILITIES, RUN, Answers, Judge, probability_columns
from .consensus import Consensus
from .feature_extraction_langcell import InputError, RankedChunks, reason_of
from .files import require_place, write_whole
from .fingerprints import fingerprint, weights_of_base
from .modeling_langcell import LangCellModel
from .progress import progress_bar
from .scoring import Scorer
from .zero_shot import Shortlist

_POLL = 0.5  # Seconds between two looks at what other processes have done.
_BLOCK = 2**28  # Bytes of scores that are held while they are turned from chunks of cells into columns of labels.
_PLAN, _MERGED = "plan.json", "annotated.h5ad"
#: All that is ever in the folder of what is unfinished, and nothing else is deleted there.
_OURS = re.compile(r"\.?(plan\.json|annotated\.h5ad|\d{8}\.safetensors|seen-\d+-[0-9a-f]{32})(\.[0-9a-f]{32})?")


def annotate_file(
    annotator: LangCellAnnotator,
    cells: str | Path,
    output: str | Path,
    labels: Iterable[str] | Mapping[str, str | Sequence[str]] | None = None,
    *,
    alpha: float | None = None,
    shortlist: Shortlist = "auto",
    check: int = 0,
    error_rate: float | None = None,
    cluster_key: str | None = None,
    resumed: Callable[[int], Any] = lambda cells: None,
    **cell_options: Any,
) -> Path | None:
    """
    Annotates a `.h5ad` file of any size: writes a copy of it with what `LangCellAnnotator.annotate` would add. What is
    in memory is one chunk of cells, besides `obs` and a few numbers a cell.

    What is done lies in a folder `.{name of the output}.unfinished` beside the output. If the work is interrupted, by
    whatever, the same call goes on from there; a call that would find something else begins anew. The folder is gone
    once the output is there, which appears whole or not at all.

    Several processes, as `accelerate launch` or `torchrun` starts them (each knows itself by `RANK` and `WORLD_SIZE`),
    share the chunks. They need to see the same files, and do not communicate otherwise. The first of them writes the
    output when all have done their part. The result does not depend on how many there are.

    Args:
        annotator: Of every process its own.
        cells: The file.
        output: May be the same file, which is then replaced.
        labels, alpha, shortlist, check, error_rate, cluster_key, cell_options: As for `LangCellAnnotator.annotate`.
        resumed: Told of how many cells an earlier call had done, if any, before the work goes on.

    Returns:
        The output; of several processes, in all but the first, `None`.

    Raises:
        InputError: As for `LangCellAnnotator.annotate`; or a file that cannot be read, changes meanwhile, or cannot be
            written, because the disk is full for instance: then what is done is kept.
    """
    cells, output = Path(cells), Path(output)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if check < 0:
        raise InputError(f"check={check} is no number of cells.")
    with open_lightly(cells) as adata:
        state = cells.stat()
        scorer = annotator.scorer(labels, alpha, shortlist)
        judge = Judge(scorer, error_rate)
        consensus = None if cluster_key is None else Consensus(adata.obs, cluster_key, judge)
        _require_columns(probability_columns(scorer.descriptions), adata.obs_names.name)
        chunks = annotator.chunks(adata, **cell_options)
        if rank >= len(chunks):
            return None  # There is nothing for it to do.
        plan = {
            "input": {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "cells": adata.n_obs},
            "model": _fingerprint(annotator),
            "error_rate": error_rate,
            "cluster_key": cluster_key,
            "labels": list(scorer.descriptions.items()),
            "settings": scorer.settings | judge.settings,
            "check": check,
            "cells": _defaults(annotator.processor.feature_extractor.chunks) | cell_options,
            "chunk": chunks.chunk_size,
            "record": annotator.run_record(chunks, np.ones(1)),
        }
        unfinished = _Unfinished(output, plan, chunks, rank, min(processes, len(chunks)))
        try:
            unfinished.begin()
            done = unfinished.look()
            if done and rank == 0:
                resumed(done)
            _annotate_chunks(annotator, scorer, judge, chunks, check, unfinished, done)
        except BaseException:
            unfinished.leave()
            raise
        if rank > 0:
            unfinished.wait_to_be_seen()
            return None
        now = cells.stat()
        if (now.st_size, now.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
            raise InputError(f"{cells} was changed while it was annotated: begin anew.")
        answers = Answers.concatenate(unfinished.answers(number) for number in range(len(chunks)))
        obs = adata.obs.copy()
        judge.write(obs, answers)
        if consensus is not None:
            for number in range(len(chunks)):
                consensus.add(chunks.rows(number), unfinished.read_scores(number, slice(None)).T)
            consensus.write(obs, answers)
        record = annotator.record_of(scorer, judge, chunks, answers, cluster_key)
        _merge(cells, obs, record, scorer, chunks, unfinished)
        unfinished.remove()
    return output


def read_annotation(path: str | Path, *, embeds: bool = False) -> ad.AnnData:
    """
    What an annotated file says of its cells: `obs` and `uns["langcell"]`, with `embeds` also `obsm["X_langcell"]`; of
    its matrix and its scores nothing is read.
    """
    with h5py.File(path) as file:
        obsm = {EMBEDDING: file["obsm"][EMBEDDING][:]} if embeds else {}
        uns = {RUN: ad.io.read_elem(file["uns"][RUN])}
        return ad.AnnData(obs=ad.io.read_elem(file["obs"]), obsm=obsm, uns=uns)


def _annotate_chunks(
    annotator: LangCellAnnotator,
    scorer: Scorer,
    judge: Judge,
    chunks: RankedChunks,
    check: int,
    unfinished: "_Unfinished",
    done: int,
) -> None:
    """Annotates those chunks of this process that are not done; the first process waits for those of the others."""
    with progress_bar() as progress:
        progress.disable |= unfinished.rank > 0
        task = progress.add_task("Cells", total=chunks.n_cells, completed=done)
        for number, ranked in chunks.ahead([n for n in unfinished.own if n not in unfinished.whole]):
            rows = checked_rows(chunks.rows(number), chunks.n_cells, check)
            found = annotator.annotate_cells(ranked, scorer, judge, rows, lambda n: progress.advance(task, n))
            unfinished.write(number, found)
            progress.update(task, completed=unfinished.look())
        while unfinished.rank == 0 and not unfinished.all_there():
            progress.update(task, completed=unfinished.look())
            time.sleep(_POLL)


def _fingerprint(annotator: LangCellAnnotator) -> list[str]:
    """What decides what the model computes, with that which is learnt outside of it."""
    model, extractor = annotator.model, annotator.processor.feature_extractor
    if isinstance(model, LangCellModel):
        found = [fingerprint(annotator)]
    else:
        deciding = [model.config.to_dict(), extractor.gene_vocabulary, extractor.max_length]
        settings = json.dumps(deciding, sort_keys=True, default=str)
        found = [weights_of_base(model, "descriptions"), hashlib.sha256(settings.encode()).hexdigest()]
    if annotator.adaptation is not None and annotator.adaptation.prototypes is not None:
        found.append(hashlib.sha256(annotator.adaptation.prototypes.cpu().float().numpy().tobytes()).hexdigest())
    return found


def _defaults(function: Callable) -> dict[str, Any]:
    """Its options, as they are if they are not given."""
    given = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in given if parameter.default is not parameter.empty}


def _require_columns(columns: list[str], index: Any) -> None:
    """Before hours of work, whether a table with such columns can be written."""
    taken = {"_index" if index is None else index, ".", ""}
    for number, column in enumerate(columns):
        if column in taken:
            raise InputError(f"No table can have a column {column!r}: label {number + 1} needs another name.")
        taken.add(column)


# ---------------------------------------------------------------------- the input


@contextmanager
def open_lightly(path: str | Path) -> Iterator[ad.AnnData]:
    """
    A file of cells, open: an AnnData that is backed by it and has its `obs`, its `var`, its `raw` and its layers, which
    stay on disk as `X` does. Nothing else of the file is read: that may be as much as an earlier annotation's scores.

    Raises:
        InputError: As for `open_cells`.
    """
    with ExitStack() as opened:
        with reading_h5ad(path) as whole:
            file = opened.enter_context(h5py.File(whole))
            if isinstance(file["obs"], h5py.Dataset):  # Written before anndata 0.7.
                adata = open_cells(whole)
            else:
                elements = {name: ad.io.read_elem(file[name]) for name in ("obs", "var")}
                if "raw" in file:
                    elements["raw"] = {"var": ad.io.read_elem(file["raw/var"])}
                elements["layers"] = {name: _on_disk(layer) for name, layer in file.get("layers", {}).items()}
                adata = ad.AnnData(filename=whole, filemode="r", **elements)
            opened.callback(adata.file.close)
        yield adata


def _on_disk(layer: h5py.Group | h5py.Dataset) -> Any:
    return ad.io.sparse_dataset(layer) if isinstance(layer, h5py.Group) else layer


# ---------------------------------------------------------------------- what is done


class _Unfinished:
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
            require_place(self.output)
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

    def answers(self, number: int) -> Answers:
        """Of a chunk."""
        with safe_open(self._path(number), framework="numpy") as file:
            return Answers(**{name: file.get_tensor(name) for name in Answers.names()})

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
            write_whole(path, content)
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


# ---------------------------------------------------------------------- the output


def _merge(
    cells: Path,
    obs: pd.DataFrame,
    record: dict[str, Any],
    scorer: Scorer,
    chunks: RankedChunks,
    unfinished: _Unfinished,
) -> None:
    """Writes the output: a copy of the input, with what is known of its cells and what is in the chunks."""
    columns = probability_columns(scorer.descriptions)
    # Names of more columns than this do not fit into an attribute as files before HDF5 1.10 have them.
    formats = ("v110", "latest") if len(columns) > 4000 else None
    with unfinished._writing():
        try:
            shutil.copyfile(cells, unfinished.merged)
            # What is in the chunks, what anndata writes anew, and what HDF5 needs to say of every column.
            texts = obs.memory_usage(deep=True).sum() + 4 * sum(
                len(text) for of_label in scorer.descriptions.values() for text in of_label
            )
            _reserve(unfinished.merged, unfinished.size() + 2 * int(texts) + 4096 * (len(columns) + 256))
            with h5py.File(unfinished.merged, "r+", libver=formats) as file:
                ad.io.write_elem(file, "obs", obs)
                for name in ("obsm", "uns"):
                    if not isinstance(file.get(name), h5py.Group):  # Of an old file, or of one that has none.
                        ad.io.write_elem(file, name, dict(getattr(open_cells(cells), name)))
                ad.io.write_elem(file["uns"], RUN, record)
                _write_embeds(file["obsm"], chunks, unfinished)
                _write_probabilities(file["obsm"], obs.index, columns, chunks, unfinished)
            with open(unfinished.merged, "rb") as written:
                os.fsync(written.fileno())
            unfinished.merged.replace(unfinished.output)
        finally:
            unfinished.merged.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """
    Lengthens a file. A disk that is full is told of here, since HDF5 does not recover from it; what of the room it does
    not need it gives back.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size + size)


def _write_embeds(obsm: h5py.Group, chunks: RankedChunks, unfinished: _Unfinished) -> None:
    if EMBEDDING in obsm:
        del obsm[EMBEDDING]
    dataset = None
    for number in range(len(chunks)):
        embeds = unfinished.embeds(number)
        if dataset is None:
            dataset = _as_array(obsm.create_dataset(EMBEDDING, (chunks.n_cells, embeds.shape[1]), embeds.dtype))
        rows = chunks.rows(number)
        dataset[rows.start : rows.stop] = embeds


def _write_probabilities(
    obsm: h5py.Group, index: pd.Index, columns: list[str], chunks: RankedChunks, unfinished: _Unfinished
) -> None:
    """
    A table as anndata's format has it (dataframe 0.2.0: an array a column), as many columns at a time as there is room
    for: every one is written at once, and every score is read once.
    """
    ad.io.write_elem(obsm, PROBABILITIES, pd.DataFrame(index=index))
    table = obsm[PROBABILITIES]
    table.attrs["column-order"] = columns
    at_once = max(1, _BLOCK // (4 * chunks.n_cells))
    for first in range(0, len(columns), at_once):
        labels = slice(first, min(first + at_once, len(columns)))
        block = np.empty((labels.stop - first, chunks.n_cells), dtype=np.float32)
        for number in range(len(chunks)):
            rows = chunks.rows(number)
            block[:, rows.start : rows.stop] = unfinished.read_scores(number, labels)
        for column, scores in zip(columns[labels], block, strict=True):
            _as_array(table.create_dataset(column, data=scores))


def _as_array(dataset: h5py.Dataset) -> h5py.Dataset:
    """Marks it as what it is in anndata's format."""
    dataset.attrs["encoding-type"], dataset.attrs["encoding-version"] = "array", "0.2.0"
    return dataset


__all__ = ["annotate_file", "open_lightly", "read_annotation"]
