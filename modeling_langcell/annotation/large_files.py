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
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from ..checkpoint.fingerprint import fingerprint, weights_of_base
from ..io.columns import EMBEDDING, PROBABILITIES, RUN, probability_columns
from ..io.h5ad import open_cells, open_lightly
from ..io.progress import progress_bar
from ..model.errors import InputError
from ..model.feature_extraction_langcell import RankedChunks
from ..model.modeling_langcell import LangCellModel
from ..model.zero_shot import Shortlist
from .annotator import LangCellAnnotator, checked_rows
from .chunk_store import _POLL, ChunkStore
from .clusters import Consensus
from .predictions import DecisionRule, Predictions
from .scorers import Scorer

_BLOCK = 2**28  # Bytes of scores that are held while they are turned from chunks of cells into columns of labels.


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
        rule = DecisionRule(scorer, error_rate)
        consensus = None if cluster_key is None else Consensus(adata.obs, cluster_key, rule)
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
            "settings": scorer.settings | rule.settings,
            "check": check,
            "cells": _defaults(annotator.processor.feature_extractor.chunks) | cell_options,
            "chunk": chunks.chunk_size,
            "record": annotator.run_record(chunks, np.ones(1)),
        }
        unfinished = ChunkStore(output, plan, chunks, rank, min(processes, len(chunks)))
        try:
            unfinished.begin()
            done = unfinished.look()
            if done and rank == 0:
                resumed(done)
            _annotate_chunks(annotator, scorer, rule, chunks, check, unfinished, done)
        except BaseException:
            unfinished.leave()
            raise
        if rank > 0:
            unfinished.wait_to_be_seen()
            return None
        now = cells.stat()
        if (now.st_size, now.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
            raise InputError(f"{cells} was changed while it was annotated: begin anew.")
        answers = Predictions.concatenate(unfinished.answers(number) for number in range(len(chunks)))
        obs = adata.obs.copy()
        rule.write(obs, answers)
        if consensus is not None:
            for number in range(len(chunks)):
                consensus.add(chunks.rows(number), unfinished.read_scores(number, slice(None)).T)
            consensus.write(obs, answers)
        record = annotator.record_of(scorer, rule, chunks, answers, cluster_key)
        _merge(cells, obs, record, scorer, chunks, unfinished)
        unfinished.remove()
    return output


def _annotate_chunks(
    annotator: LangCellAnnotator,
    scorer: Scorer,
    rule: DecisionRule,
    chunks: RankedChunks,
    check: int,
    unfinished: "ChunkStore",
    done: int,
) -> None:
    """Annotates those chunks of this process that are not done; the first process waits for those of the others."""
    with progress_bar() as progress:
        progress.disable |= unfinished.rank > 0
        task = progress.add_task("Cells", total=chunks.n_cells, completed=done)
        for number, ranked in chunks.ahead([n for n in unfinished.own if n not in unfinished.whole]):
            rows = checked_rows(chunks.rows(number), chunks.n_cells, check)
            found = annotator.annotate_cells(ranked, scorer, rule, rows, lambda n: progress.advance(task, n))
            unfinished.write(number, found)
            progress.update(task, completed=unfinished.look())
        while unfinished.rank == 0 and not unfinished.all_there():
            progress.update(task, completed=unfinished.look())
            time.sleep(_POLL)


def _fingerprint(annotator: LangCellAnnotator) -> list[str]:
    """What decides what the model computes, with that which is learnt outside of it."""
    model, extractor = annotator.model, annotator.processor.feature_extractor
    if isinstance(model, LangCellModel):
        found = [fingerprint(model, annotator.processor)]
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


# ---------------------------------------------------------------------- what is done


# ---------------------------------------------------------------------- the output


def _merge(
    cells: Path,
    obs: pd.DataFrame,
    record: dict[str, Any],
    scorer: Scorer,
    chunks: RankedChunks,
    unfinished: ChunkStore,
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


def _write_embeds(obsm: h5py.Group, chunks: RankedChunks, unfinished: ChunkStore) -> None:
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
    obsm: h5py.Group, index: pd.Index, columns: list[str], chunks: RankedChunks, unfinished: ChunkStore
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


__all__ = ["annotate_file"]
