# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Annotates a file of any size: in memory that does not grow with the file, in one process or several, resuming where it
was interrupted.

Annotated chunks of cells are files in a folder next to the output, until all of them are done and become the output.
Several processes share that folder and nothing else.
"""

import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from ..checkpoint.fingerprint import fingerprint, weights_of_base
from ..io.atomic import reserve
from ..io.colours import colours
from ..io.columns import CELL_TYPE, COLOURS, EMBEDDING, PROBABILITIES, RUN, probability_columns
from ..io.containers import as_h5ad
from ..io.h5ad import open_cells, open_lightly
from ..io.progress import progress_bar
from ..io.strings import writing_missing_text
from ..model.errors import InputError
from ..model.feature_extraction_langcell import RankedChunks
from ..model.modeling_langcell import LangCellModel
from ..model.zero_shot import Shortlist
from ..ontology import Labels
from .annotation_run import AnnotationRun
from .chunk_store import ChunkStore
from .predictor import Predictor

logger = logging.getLogger(__name__)

_BLOCK = 2**28  # Bytes of scores that are held while chunks of cells are turned into columns of labels.


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
    output when all others are done. The result does not depend on the number of processes.

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
        InputError: Same as for `LangCellAnnotator.annotate`; or the input cannot be read or changes meanwhile, or the
            output cannot be written, for example because the disk is full. Finished chunks are kept.
    """
    cells, output = Path(cells), Path(output)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    copy = output.parent / f".{output.name}.input-{rank}.h5ad"
    with as_h5ad(cells, copy) as file, open_lightly(file) as adata:
        state = _state_of(cells)
        run = AnnotationRun(
            annotator,
            adata,
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
        if rank >= len(chunks):
            logger.info("Process %d has nothing to do: there are %d chunks of cells.", rank, len(chunks))
            return None
        plan = {
            "input": {**state, "cells": adata.n_obs},
            "model": _model_hashes(annotator),
            "error_rate": error_rate,
            "cluster_key": run.cluster_key,
            "smooth": run.smooths,
            "labels": list(run.scorer.descriptions.items()),
            "markers": run.scorer.markers,
            "settings": run.scorer.settings | run.rule.settings,
            "calibration": run.scorer.calibration,
            "check": check,
            "cells": _default_options(annotator.processor.feature_extractor.chunks) | cell_options,
            "chunk": chunks.chunk_size,
            "record": annotator.run_record(chunks, np.ones(1)),
        }
        store = ChunkStore(output, plan, chunks, rank, min(processes, len(chunks)))
        try:
            store.open()
            done = store.count_cells()
            if done and rank == 0:
                logger.info("Resuming: %d of %d cells are annotated.", done, chunks.n_cells)
                resumed(done)
            _annotate_chunks(run, store, done)
        except BaseException:
            store.close_after_error()
            raise
        if rank > 0:
            store.wait_for_first()
            return None
        if _state_of(cells) != state:
            raise InputError(f"{cells} was changed while it was annotated: annotate it again.")
        predictions = store.predictions()
        if run.smooths:
            store.smooth(len(run.rule.labels), lambda smoothed: run.smooth(store.scores_of_all, smoothed))
            predictions = run.revise(predictions, (store.scores(number).T for number in range(len(chunks))))
        obs = adata.obs.copy()
        run.write_obs(obs, predictions, (store.scores(number).T for number in range(len(chunks))))
        _merge(file, obs, run.record(predictions), run, store)
        store.delete()
    return output


def _state_of(cells: Path) -> dict[str, int]:
    """Returns what changes when a file, or any file of a folder, is written again."""
    files = [one.stat() for one in (cells.rglob("*") if cells.is_dir() else [cells]) if one.is_file()]
    return {"bytes": sum(one.st_size for one in files), "mtime_ns": max((one.st_mtime_ns for one in files), default=0)}


def _annotate_chunks(run: AnnotationRun, store: ChunkStore, done: int) -> None:
    """Annotates the missing chunks of this process; the first process then waits for those of the others."""
    with progress_bar() as progress:
        progress.disable |= store.rank > 0
        task = progress.add_task("Cells", total=run.chunks.n_cells, completed=done)
        for number, ranked in run.chunks.ahead(store.missing()):
            store.write(number, run.annotate(number, ranked, lambda n: progress.advance(task, n)))
            progress.update(task, completed=store.count_cells())
        if store.rank == 0:
            for stored in store.wait_for_others():
                progress.update(task, completed=stored)


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


def _merge(cells: Path, obs: pd.DataFrame, record: dict[str, Any], run: AnnotationRun, store: ChunkStore) -> None:
    """Writes the output: a copy of the input with `obs`, the record of the run, and the stored chunks."""
    columns = probability_columns(run.rule.labels)
    # More column names than this do not fit into an attribute in the format of HDF5 before 1.10.
    formats = ("v110", "latest") if len(columns) > 4000 else None
    with store.writing():
        try:
            shutil.copyfile(cells, store.merged)
            # Space for the chunks, for what anndata writes again, and for HDF5's own description of each column.
            texts = obs.memory_usage(deep=True).sum() + 4 * sum(
                len(text) for texts in run.scorer.descriptions.values() for text in texts
            )
            reserve(store.merged, store.size() + 2 * int(texts) + 4096 * (len(columns) + 256))
            with h5py.File(store.merged, "r+", libver=formats) as file, writing_missing_text():
                ad.io.write_elem(file, "obs", obs)
                for name in ("obsm", "uns"):
                    if not isinstance(file.get(name), h5py.Group):  # Old files have an array here, or nothing.
                        ad.io.write_elem(file, name, dict(getattr(open_cells(cells), name)))
                ad.io.write_elem(file["uns"], RUN, record)
                ad.io.write_elem(file["uns"], COLOURS, np.array(colours(len(obs[CELL_TYPE].cat.categories)), dtype=str))
                _write_embeds(file["obsm"], run.chunks, store)
                _write_probabilities(file["obsm"], obs.index, columns, run.chunks, store)
            with open(store.merged, "rb") as written:
                os.fsync(written.fileno())
            store.merged.replace(store.output)
        finally:
            store.merged.unlink(missing_ok=True)


def _write_embeds(obsm: h5py.Group, chunks: RankedChunks, store: ChunkStore) -> None:
    if EMBEDDING in obsm:
        del obsm[EMBEDDING]
    dataset = None
    for number in range(len(chunks)):
        embeds = store.embeds(number)
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


__all__ = ["annotate_file"]
