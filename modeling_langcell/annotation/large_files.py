# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Annotates or embeds the cells of a file of any size: in memory that does not grow with the file, in one process or
several, resuming where it was interrupted.

Finished chunks of cells are files in a folder next to the output, until all of them are done and become the output.
Several processes share that folder and nothing else.
"""

import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from ..checkpoint.fingerprint import fingerprint, weights_of_base
from ..io.atomic import reserve
from ..io.colours import colours
from ..io.columns import CELL_TYPE, COLOURS, EMBEDDING, PREFIX, PROBABILITIES, RUN, probability_columns
from ..io.containers import as_h5ad, container_files
from ..io.content import content_hash
from ..io.file_kinds import CELLS, require_replaceable
from ..io.h5ad import open_cells, open_lightly
from ..io.launch import Launch, launched_processes
from ..io.outputs import require_apart
from ..io.progress import progress_bar
from ..io.strings import writing_missing_text
from ..model.errors import InputError, reason_of
from ..model.feature_extraction_langcell import RankedChunks, takes_cell_options
from ..model.modeling_langcell import LangCellModel
from ..model.ranking import RankedCells
from ..model.zero_shot import Shortlist
from ..ontology import Labels
from .annotation_run import AnnotationRun
from .chunk_store import ChunkStore
from .predictions import replace_annotation
from .predictor import Predictor

logger = logging.getLogger(__name__)

_BLOCK = 2**28  # Bytes of scores that are held while chunks of cells are turned into columns of labels.


@takes_cell_options
def annotate_file(
    annotator: Predictor,
    cells: str | Path,
    output: str | Path,
    labels: Labels | None = None,
    *,
    alpha: float | None = None,
    shortlist: Shortlist = "auto",
    check: int = 0,
    error_rate: float | None = None,
    cluster_key: str | None = None,
    cluster: bool = False,
    smooth: bool = False,
    tissue: str | Sequence[str] | None = None,
    marker_weight: float | None = None,
    with_markers: bool = True,
    accept_text: bool = False,
    resumed: Callable[[int], Any] = lambda cells: None,
    **cell_options: Any,
) -> Path | None:
    """
    Annotates an `.h5ad` file of any size: writes a copy of it with everything that `LangCellAnnotator.annotate` adds.
    Memory holds one chunk of cells, `obs`, and a few numbers for each cell. Another container of cells
    (`io.containers`) is read into memory first, and an `.h5ad` file beside the output stands in for it.

    Finished chunks are kept in a folder `.{name of the output}.unfinished` next to the output. After an interruption of
    any kind the same call continues from there; a call that would give different results starts again. The output
    appears whole or not at all, and the folder is then deleted.

    Several processes, as started by `accelerate launch` or `torchrun` (which sets `RANK` and `WORLD_SIZE`), share the
    chunks. They need to see the same files, and do not communicate in any other way. The first process writes the
    output when all others are done. The result does not depend on the number of processes. Each holds a lock beside
    the output while it lives, so that no process waits for one that has died or never began.

    Args:
        annotator: The annotator; each process has its own.
        cells: The input file.
        output: The output file. It may be the input, which is then replaced.
        labels, tissue, with_markers, accept_text: Same as for `LangCellAnnotator.annotate`.
        alpha, marker_weight, shortlist, check, error_rate, cluster_key, cluster, smooth, cell_options: Same as there.
        resumed: Called, before the work continues, with the number of cells that an earlier call annotated.

    Returns:
        The output; None in every process except the first.

    Raises:
        InputError: Same as for `LangCellAnnotator.annotate`; or the input cannot be read or changes meanwhile; another
            run writes the same output; a process ends early or does not begin; or the output cannot be written, for
            example because the disk is full. Finished chunks are kept.
    """
    with _reading(cells, output) as source:
        run = AnnotationRun(
            annotator,
            source.adata,
            cell_options,
            labels,
            alpha=alpha,
            shortlist=shortlist,
            check=check,
            error_rate=error_rate,
            cluster_key=cluster_key,
            cluster=cluster,
            smooth=smooth,
            tissue=tissue,
            marker_weight=marker_weight,
            with_markers=with_markers,
            accept_text=accept_text,
        )
        chunks = run.chunks
        plan = _plan(annotator, source, chunks, cell_options) | {
            "error_rate": error_rate,
            "cluster_key": run.cluster_key,
            "smooth": run.smooths,
            "labels": list(run.scorer.descriptions.items()),
            "markers": run.scorer.markers,
            "settings": run.scorer.settings | run.rule.settings,
            "calibration": run.scorer.calibration,
            "check": check,
        }

        def finish(store: ChunkStore) -> None:
            predictions = store.predictions()
            if run.smooths:
                store.smooth(len(run.rule.labels), lambda smoothed: run.smooth(store.scores_of_all, smoothed))
                predictions = run.revise(predictions, (store.scores(number).T for number in range(len(chunks))))
            obs = source.adata.obs.copy()
            run.write_obs(obs, predictions, (store.scores(number).T for number in range(len(chunks))))
            _merge(source.file, obs, run.record(predictions), chunks, store, run.rule.labels)

        return _by_chunks(
            source, chunks, plan, lambda *chunk: run.annotate(*chunk).arrays(), finish, resumed, verb="annotated"
        )


@takes_cell_options
def embed_file(
    annotator: Predictor,
    cells: str | Path,
    output: str | Path,
    *,
    resumed: Callable[[int], Any] = lambda done: None,
    **cell_options: Any,
) -> Path | None:
    """
    Embeds the cells of a file as `LangCellAnnotator.embed` does, a chunk at a time, and writes the result. Arguments,
    resumption, several processes, result and errors are the same as for `annotate_file`.
    """
    with _reading(cells, output) as source:
        chunks = annotator.chunks(source.adata, **cell_options)

        def embed(number: int, ranked: RankedCells, advance: Callable[[int], Any]) -> dict[str, np.ndarray]:
            return {"embeds": annotator.embed_ranked(ranked, advance), "matched_counts": ranked.matched_counts}

        def finish(store: ChunkStore) -> None:
            matched = np.concatenate([store.array(number, "matched_counts") for number in range(len(chunks))])
            obs = source.adata.obs.copy()
            replace_annotation(obs)
            _merge(source.file, obs, annotator.run_record(chunks, matched), chunks, store)

        plan = _plan(annotator, source, chunks, cell_options)
        return _by_chunks(source, chunks, plan, embed, finish, resumed, verb="embedded")


@dataclass(frozen=True)
class _Source:
    """
    Cells that are read, and where the result goes.

    Args:
        cells: The input.
        content: The hash of its content.
        launch: The processes that read it, and the output file.
        file: An `.h5ad` file of the cells: the input, or a copy of it.
        adata: The cells.
    """

    cells: Path
    content: str
    launch: Launch
    file: Path
    adata: ad.AnnData


@contextmanager
def _reading(cells: str | Path, output: str | Path) -> Iterator[_Source]:
    cells, output = Path(cells), Path(output)
    require_apart([("output", output)], [("cells", cells)], allowed=[("output", "cells")])
    require_replaceable(output, CELLS)
    rank, processes = launched_processes()
    with Launch(output, rank, processes) as launch:
        content = _content_of(cells)  # Before the file is opened: what replaces it later is found out at the end.
        with as_h5ad(cells, output) as file, open_lightly(file) as adata:
            if str(index := adata.obs.index.name).startswith(PREFIX):
                raise InputError(
                    f"The index of obs is called {index!r}, as if it were a result: names that begin with {PREFIX} are "
                    "replaced. Rename it."
                )
            yield _Source(cells, content, launch, file, adata)


def _plan(annotator: Predictor, source: _Source, chunks: RankedChunks, cell_options: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides the results of every run: the input, how it is read, and the checkpoint."""
    return {
        "input": {"sha256": source.content, "cells": source.adata.n_obs},
        "model": _model_hashes(annotator),
        "cells": _default_options(annotator.processor.feature_extractor.chunks) | cell_options,
        "chunk": chunks.chunk_size,
        "record": _without_options(annotator.run_record(chunks, np.ones(1))),
    }


def _by_chunks(
    source: _Source,
    chunks: RankedChunks,
    plan: dict[str, Any],
    read: Callable[[int, RankedCells, Callable[[int], Any]], dict[str, np.ndarray]],
    finish: Callable[[ChunkStore], None],
    resumed: Callable[[int], Any],
    verb: str,
) -> Path | None:
    """
    Reads the chunks that are not stored yet, and finishes the output when all are there.

    Args:
        source: The cells.
        chunks: Their chunks.
        plan: Everything that decides the results.
        read: Returns the arrays of a chunk by name, and says how many of its cells are done.
        finish: Writes the output.
        resumed: Called with the number of cells that an earlier call finished.
        verb: What is done to the cells, for messages.

    Returns:
        The output; None in every process except the first.
    """
    # What was finished has no cell without known genes, where such cells are an error: it stays when they are none.
    stricter = plan | {"cells": plan["cells"] | {"empty_cells": "error"}}
    store = ChunkStore(source.launch, plan, chunks, stricter)
    try:
        store.open()
        done = store.count_cells()
        if done and store.rank == 0:
            logger.info("Resuming: %d of %d cells are %s.", done, chunks.n_cells, verb)
            resumed(done)
        _read_chunks(chunks, store, done, read)
    except BaseException:
        store.close_after_error()
        raise
    if store.rank > 0:
        store.wait_for_first()
        return None
    if _content_of(source.cells) != source.content:
        raise InputError(f"{source.cells} was changed while its cells were {verb}: run the command again.")
    finish(store)
    store.delete()
    return store.output


def _read_chunks(
    chunks: RankedChunks,
    store: ChunkStore,
    done: int,
    read: Callable[[int, RankedCells, Callable[[int], Any]], dict[str, np.ndarray]],
) -> None:
    """Reads the missing chunks of this process; the first process then waits for those of the others."""
    with progress_bar(shown=store.rank == 0) as progress:
        task = progress.add_task("Cells", total=chunks.n_cells, completed=done)
        for number, ranked in chunks.ahead(store.missing()):

            def advance(cells: int) -> None:
                progress.advance(task, cells)
                store.launch.look()

            store.write(number, read(number, ranked, advance))
            progress.update(task, completed=store.count_cells())
        if store.rank == 0:
            for stored in store.wait_for_others():
                progress.update(task, completed=stored)


def _content_of(cells: Path) -> str:
    try:
        return content_hash(cells, container_files(cells))
    except OSError as error:
        raise InputError(f"{cells} cannot be read: {reason_of(error)}.") from error


def _model_hashes(annotator: Predictor) -> list[str]:
    """
    Returns hashes of everything that decides the model's outputs, including prototypes stored alongside its weights.
    """
    model, extractor = annotator.model, annotator.processor.feature_extractor
    if isinstance(model, LangCellModel):
        found = [fingerprint(model, annotator.processor)]
    else:
        deciding = [model.config.to_dict(), extractor.gene_vocabulary, extractor.max_length]
        settings = json.dumps(deciding, sort_keys=True, default=str)
        found = [weights_of_base(model, "descriptions"), hashlib.sha256(settings.encode()).hexdigest()]
    found.append(hashlib.sha256(json.dumps(extractor.gene_places).encode()).hexdigest())
    if annotator.adaptation is not None and annotator.adaptation.prototypes is not None:
        found.append(hashlib.sha256(annotator.adaptation.prototypes.cpu().float().numpy().tobytes()).hexdigest())
    return found


def _default_options(function: Callable) -> dict[str, Any]:
    """Returns the default values of a function's options."""
    given = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in given if parameter.default is not parameter.empty}


def _without_options(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a run without the option that its plan has beside it."""
    return record | {"input": {name: fact for name, fact in record["input"].items() if name != "empty_cells"}}


def _merge(
    cells: Path,
    obs: pd.DataFrame,
    record: dict[str, Any],
    chunks: RankedChunks,
    store: ChunkStore,
    labels: Sequence[str] = (),
) -> None:
    """
    Writes the output: a copy of the input with `obs`, the record of the run, and the stored chunks: embeddings, and
    scores if there are labels.
    """
    columns = probability_columns(labels)
    # More column names than this do not fit into an attribute in the format of HDF5 before 1.10.
    formats = ("v110", "latest") if len(columns) > 4000 else None
    with store.writing():
        try:
            shutil.copyfile(cells, store.merged)
            # Space for the chunks, for what anndata writes again, and for HDF5's own description of each column.
            texts = obs.memory_usage(deep=True).sum() + 4 * sum(map(len, record.get("descriptions", ())))
            reserve(store.merged, store.size() + 2 * int(texts) + 4096 * (len(columns) + 256))
            with h5py.File(store.merged, "r+", libver=formats) as file, writing_missing_text():
                _write_obs(file, obs)
                for name in ("obsm", "uns"):
                    if not isinstance(file.get(name), h5py.Group):  # Old files have an array here, or nothing.
                        ad.io.write_elem(file, name, dict(getattr(open_cells(cells), name)))
                for earlier in (file["obsm"], EMBEDDING), (file["obsm"], PROBABILITIES), (file["uns"], COLOURS):
                    _delete(*earlier)
                ad.io.write_elem(file["uns"], RUN, record)
                _write_embeds(file["obsm"], chunks, store)
                if labels:
                    of_labels = np.array(colours(len(obs[CELL_TYPE].cat.categories)), dtype=str)
                    ad.io.write_elem(file["uns"], COLOURS, of_labels)
                    _write_probabilities(file["obsm"], obs.index, columns, chunks, store)
            with open(store.merged, "rb") as written:
                os.fsync(written.fileno())
            store.merged.replace(store.place)
        finally:
            store.merged.unlink(missing_ok=True)


def _write_obs(file: h5py.File, obs: pd.DataFrame) -> None:
    """
    Writes the columns of a run in place of those of an earlier one. The others stay as they are in the file: not every
    column that anndata reads can be written by it.
    """
    group = file["obs"]
    if not isinstance(group, h5py.Group) or group.attrs.get("encoding-version") != "0.2.0":  # before anndata 0.8
        ad.io.write_elem(file, "obs", obs)
        return
    for name in [name for name in group if name.startswith(PREFIX)]:
        del group[name]
    for name in [name for name in obs if str(name).startswith(PREFIX)]:
        column = obs[name]
        values = column.array if pd.api.types.is_extension_array_dtype(column.dtype) else column.to_numpy()
        ad.io.write_elem(group, name, values)
    group.attrs["column-order"] = [str(name) for name in obs]


def _delete(group: h5py.Group, name: str) -> None:
    if name in group:
        del group[name]


def _write_embeds(obsm: h5py.Group, chunks: RankedChunks, store: ChunkStore) -> None:
    dataset = None
    for number in range(len(chunks)):
        embeds = store.array(number, "embeds")
        if dataset is None:
            dataset = _mark_array(obsm.create_dataset(EMBEDDING, (chunks.n_cells, embeds.shape[1]), embeds.dtype))
        rows = chunks.rows(number)
        dataset[rows.start : rows.stop] = embeds


def _write_probabilities(
    obsm: h5py.Group, index: pd.Index, columns: list[str], chunks: RankedChunks, store: ChunkStore
) -> None:
    """
    Writes a table in anndata's format (dataframe 0.2.0, an array for each column), as many columns at a time as memory
    allows: each column is written at once, and each score is read once.
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
            block[:, rows.start : rows.stop] = store.scores(number, labels)
        for column, scores in zip(columns[labels], block, strict=True):
            _mark_array(table.create_dataset(column, data=scores))


def _mark_array(dataset: h5py.Dataset) -> h5py.Dataset:
    """Marks a dataset as an array of anndata's format."""
    dataset.attrs["encoding-type"], dataset.attrs["encoding-version"] = "array", "0.2.0"
    return dataset


__all__ = ["annotate_file", "embed_file"]
