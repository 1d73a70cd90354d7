# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The tasks of a corpus build: each reads one source or one chunk of its cells, in any process on any machine.

What a task writes depends on its arguments alone. A file appears complete or not at all, and one that exists is not
written again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..io.atomic import atomic_write
from ..io.documents import parse_json, read_json
from ..model.errors import InputError, reason_of
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.gene_matching import GeneVocabulary
from .arrow import SHARD_COLUMNS, read_table
from .genes import MedianSketch, all_genes_extractor, read_gene_info
from .orthologs import read_orthologs
from .places import PlaceSums
from .profiles import draw_cells
from .sources import ASPECTS, Source, cell_facts


@dataclass(frozen=True)
class Chunk:
    """Consecutive cells of a source: `size` of its selected cells, or fewer at the end; `number` counts from 0."""

    source: Source
    number: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.source.name}-{self.number:06}"

    def read(self) -> tuple[ad.AnnData, pd.DataFrame]:
        """Reads the counts, and the known facts about each cell."""
        rows = self.source.rows[self.number * self.size :][: self.size]
        with _naming(self.source):
            adata = self.source.read(rows)
        return adata, cell_facts(adata.obs, self.source.study)


@dataclass(frozen=True)
class HashedFile:
    """A file that tasks read, with its checksum: a process that remembers the file notices when it has changed."""

    path: str
    sha256: str

    @classmethod
    def at(cls, path: str | Path) -> "HashedFile":
        """
        Computes the checksum of a file.

        Raises:
            InputError: The file cannot be read.
        """
        try:
            return cls(str(path), hashlib.sha256(Path(path).read_bytes()).hexdigest())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error


@dataclass(frozen=True)
class GeneTables:
    """The tables that name genes: NCBI's `gene_info`, and orthologs in other organisms."""

    gene_info: HashedFile
    orthologs: tuple[HashedFile, ...] = ()


@dataclass(frozen=True)
class UnfitSource:
    """The result of a task whose source cannot be used, with the reason."""

    fault: InputError


def _returning_faults(task):
    """Makes a task return `UnfitSource` where it would raise an InputError, so that the other tasks still run."""

    @wraps(task)
    def returning(*arguments):
        try:
            return task(*arguments)
        except InputError as error:
            return UnfitSource(error)

    return returning


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Puts the source's location before the message of an InputError, and leaves out advice that a corpus lacks."""
    try:
        yield
    except InputError as error:
        fitting = error.without("counts", "empty_cells")
        raise InputError(f"{source.location}: {error.message}", *fitting.remedies) from error


@_returning_faults
def inspect_source(source: Source, tables: GeneTables) -> dict[str, Any]:
    """Opens a source and reads its first selected cell; returns the manifest's entry for the source."""
    selected = len(source.rows)
    if selected:
        with _naming(source):
            _all_genes_extractor(tables).read_counts(source.read(source.rows[:1]), **source.naming)
    facts = {"sha256": source.checksum(), "cells": source.n_cells, "asked_for": selected, "study": source.study}
    read = {"array": source.array if selected else None} | source.naming
    about = source.about()
    return facts | {"read": read} | ({"about": about} if about else {})


@_returning_faults
def sketch_chunk(chunk: Chunk, tables: GeneTables, path: Path) -> Path:
    """Writes the sketch of the gene values of a chunk's primary cells; returns its path."""
    if not path.exists():
        extractor = _all_genes_extractor(tables)
        adata, facts = chunk.read()
        with _naming(chunk.source):
            counts, totals = extractor.read_counts(adata, **chunk.source.naming)
        primary, is_profile = (facts[name].to_numpy() for name in ("primary", "profile"))
        cells, rows = draw_cells(counts[primary], is_profile[primary], chunk.number)
        totals = np.where(is_profile[primary][rows], cells.sum(axis=1).A1, totals[primary][rows])
        MedianSketch.from_counts(cells, totals).save(path)
    return path


@_returning_faults
def encode_chunk(chunk: Chunk, genes: HashedFile, max_genes: int, path: Path, places: Path) -> dict[str, Any]:
    """
    Writes the shard of a chunk's ranked cells, and the sums of places; returns the shard's description. A profile has
    all its genes and their `counts`, from which cells are drawn.
    """
    if not path.exists():
        extractor = _ranking_extractor(genes)
        adata, facts = chunk.read()
        is_profile = facts["profile"].to_numpy()
        with _naming(chunk.source):
            naming = chunk.source.naming
            ranked = extractor.rank(adata, counts="raw", empty_cells="mark", **naming)
            counts = extractor.read_counts(adata, **naming)[0] if is_profile.any() else None
            measured = extractor.open(adata, counts="raw", **naming)[1].token_ids
        reasons = np.select([~facts["primary"], ranked.without_genes], ["not primary data", "no known gene"], "")
        kept = np.flatnonzero(reasons == "")
        id_type = pa.uint16() if len(extractor) <= 2**16 else pa.uint32()
        read = [ranked[cell] if is_profile[cell] else ranked[cell][:max_genes] for cell in kept.tolist()]
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in read])]).astype(np.int32)
        flat = np.concatenate(read or [np.empty(0)]).astype(id_type.to_pandas_dtype())
        profiles = [
            counts[cell, ids[1:]].toarray().ravel() if counts is not None and is_profile[cell] else None
            for cell, ids in zip(kept.tolist(), read, strict=True)
        ]
        columns = {
            "token_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            "counts": pa.array(profiles, pa.list_(pa.float32())),
            "length": pa.array(np.minimum(ranked.lengths[kept], max_genes).astype(np.uint16)),
            "study": pa.array(facts["study"].to_numpy()[kept], pa.string()),
        } | {aspect: pa.array(facts[aspect].to_numpy()[kept], pa.string()) for aspect in ASPECTS}
        left_out = dict(sorted(Counter(reasons[reasons != ""].tolist()).items()))
        table = pa.table(columns).replace_schema_metadata({"left_out": json.dumps(left_out)})
        group = facts["study"].astype(str) + "|" + facts["cell_type"].astype(str)
        groups = np.where(reasons == "", group.to_numpy(dtype=str), "")
        if counts is not None:
            drawn, rows = draw_cells(
                counts[:, GeneVocabulary.first_gene_id : -1], is_profile & (reasons == ""), chunk.number
            )
            names = extractor.gene_vocabulary["ensembl_ids"]
            ranked = extractor.rank(drawn, gene_ids=names, counts="raw", empty_cells="mark")
            groups = groups[rows]
        PlaceSums.from_cells(ranked, groups, measured[measured >= 0], len(extractor)).save(places)
        atomic_write(path, to_arrow(table))  # The shard comes last: where it exists, so do the sums.
    return _describe_shard(path)


def _describe_shard(path: Path) -> dict[str, Any]:
    """
    Reads the entries for the manifest and the panels from a shard; `expressed` has a bit for every gene of each study.
    """
    table = read_table(path, SHARD_COLUMNS)
    expressed = {}
    for study in table["study"].unique().to_pylist():
        token_ids = table.filter(pc.equal(table["study"], study))["token_ids"].combine_chunks().flatten()
        seen = np.zeros(2**16 if token_ids.type == pa.uint16() else 2**20, dtype=bool)
        seen[token_ids.to_numpy()] = True
        seen[token_ids[0].as_py()] = False  # <cls>
        expressed[study] = np.packbits(seen)
    return {
        "file": path.name,
        "cells": table.num_rows,
        "left_out": parse_json(table.schema.metadata[b"left_out"], path),
        "sha256": HashedFile.at(path).sha256,
        "expressed": expressed,
    }


def to_arrow(table: pa.Table) -> bytes:
    """Returns a table as an Arrow stream, which `datasets` reads from disk."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@lru_cache(maxsize=1)
def _all_genes_extractor(tables: GeneTables) -> LangCellFeatureExtractor:
    return all_genes_extractor(
        read_gene_info(tables.gene_info.path), [read_orthologs(table.path) for table in tables.orthologs]
    )


@lru_cache(maxsize=1)
def _ranking_extractor(genes: HashedFile) -> LangCellFeatureExtractor:
    """Returns an extractor that ranks all the genes of a cell."""
    vocabulary = read_json(genes.path)
    return LangCellFeatureExtractor(vocabulary, max_length=len(vocabulary["ensembl_ids"]) + 1)


__all__ = [
    "Chunk",
    "GeneTables",
    "HashedFile",
    "UnfitSource",
    "encode_chunk",
    "inspect_source",
    "sketch_chunk",
    "to_arrow",
]
