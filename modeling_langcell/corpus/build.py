# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The pre-training corpus: many studies as sharded Arrow, each cell as ranked gene ids and the term ids that describe it.

A corpus is made by small tasks, each of a few thousand cells of one source, that write one file each: in the first pass
a sketch of the gene values, in the second a shard. What a task writes depends on its cells alone, files appear whole or
not at all, and those that are there are not made again. So it does not matter how many processes share the work, where
they run, or how often they are killed: the corpus is the same to the last byte.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..conversion.published import read_gene_vocabulary
from ..io.atomic import atomic_write
from ..model.errors import InputError, reason_of
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from .corpus import FORMAT, GENES, MANIFEST, PANELS, PLAN, SHARDS, UNFINISHED, Corpus, require_shards
from .genes import Gene, MedianSketch, every_gene, gene_vocabulary, read_gene_info
from .parallel import SharedWork
from .sources import ASPECTS, Source, facts_of

#: Geneformer's gene vocabulary: ids, medians, symbols.
GENEFORMER = ("token_dictionary.pkl", "gene_median_dictionary.pkl", "gene_name_id_dict.pkl")
_UNFIT = "unfit.json"
#: How `atomic_write` calls a file until it is whole. A hidden name alone says nothing: a source may have one.
_HALF_WRITTEN = re.compile(r"\.(.+)\.[0-9a-f]{32}", re.DOTALL)


@dataclass(frozen=True)
class CorpusSettings:
    """
    What a corpus depends on besides its sources.

    Args:
        gene_info: NCBI `gene_info` table, whose genes are looked for.
        vocabulary: A corpus, a checkpoint, or a folder of Geneformer's three dictionaries, whose genes and medians are
            used; by default they are made of this one.
        max_genes: Genes kept of a cell, `<cls>` included.
        min_cells: Genes counted in fewer cells of the corpus get no id.
        chunk_cells: Cells of a task and of a shard; memory grows with it.
    """

    gene_info: str
    vocabulary: str | None = None
    max_genes: int = 2048
    min_cells: int = 10
    chunk_cells: int = 4096


def make_corpus(
    sources: Sequence[Source],
    output: str | Path,
    settings: CorpusSettings,
    *,
    on_unfit: Literal["refuse", "skip"] = "refuse",
    processes: int = 1,
    scheduler: str | None = None,
) -> "Corpus":
    """
    Makes a corpus, or goes on with one that was begun with the same sources and settings.

    Args:
        sources: Where the cells come from.
        output: Folder of the corpus.
        settings: What else it depends on.
        on_unfit: Whether a source that is damaged, or that holds no counts or too few known genes, is an error, or is
            left out and named in the manifest.
        processes: How many share the work on this machine.
        scheduler: Address of a Dask scheduler whose workers do the work; they must see the same files.

    Raises:
        InputError: No sources, an unfit one, no fit one, or a folder that holds something else.
    """
    output = Path(output)
    if (output / MANIFEST).exists() and not (output / PLAN).exists():
        raise InputError(f"{output} holds a corpus already: choose a new folder.")
    with SharedWork(processes, scheduler) as work:
        making = CorpusBuilder(sources, output, settings, on_unfit, work)
        making.inspect()
        making.claim_folder()
        if not (output / MANIFEST).exists():  # Else it was killed when all was done but for clearing up.
            making.write_vocabulary()
            making.write_shards()
            making.write_panels()
            making.write_manifest()
        making.clear_up()
    return Corpus(output)


@dataclass(frozen=True)
class _Chunk:
    """Some cells of a source: the `number`th `cells` of those asked for."""

    source: Source
    number: int
    cells: int

    @property
    def file_name(self) -> str:
        return f"{self.source.name}-{self.number:06}"

    def read(self) -> tuple[Any, pd.DataFrame]:
        """The cells as an AnnData, and what is known of them."""
        rows = self.source.rows[self.number * self.cells :][: self.cells]
        adata = self.source.read(rows)
        return adata, facts_of(adata.obs, self.source.name)


class CorpusBuilder:
    """The steps of making a corpus, in their order."""

    def __init__(self, sources, output, settings, on_unfit, work):
        if not sources:
            raise InputError("No sources: name .h5ad files, folders of them, or SOMA experiments.")
        self.output, self.settings, self.on_unfit, self.work = output, settings, on_unfit, work
        self.gene_info = _File.of(settings.gene_info)
        self.vocabulary = None if settings.vocabulary is None else _read_vocabulary(settings.vocabulary)
        self.sources: list[Source] = list(sources)
        self.inspected: dict[str, dict[str, Any]] = {}
        self.unfit: dict[str, str] = {}

    def inspect(self) -> None:
        """Opens every source: how many cells, what checksum, whether its genes are known."""
        found = self.work.share("Sources", _inspect, [(source, self.gene_info) for source in self.sources])
        self.inspected = {source.name: facts for source, facts in self._fit(self.sources, found)}
        if not any(facts["asked_for"] for facts in self.inspected.values()):
            raise InputError(
                "No cell was asked for: the sources are empty, or none of their cells meets the condition."
            )

    def claim_folder(self) -> None:
        """
        Begins with a folder that is empty or not there, or goes on with one that holds nothing but this corpus.

        Raises:
            InputError: It was begun with other sources, genes or settings, or something of others is in it.
        """
        plan = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "checksums": self._checksums(),
            "sources": self.inspected,
            "unfit": self.unfit,
        }
        chunks = self._chunks()
        self.unfinished = self.output / UNFINISHED
        #: The names of all that is written, by folder.
        self.names = {
            self.output: {MANIFEST, GENES, PANELS},
            self.output / SHARDS: {f"{chunk.file_name}.arrow" for chunk in chunks},
            self.unfinished: {PLAN.name, _UNFIT, *(f"{chunk.file_name}.npz" for chunk in chunks)},
        }
        try:
            self.is_new = not self.output.exists()
            begun_with = _read_plan(self.output / PLAN)
            if begun_with is None:
                if not self.is_new and not self._is_free():
                    raise InputError(f"{self.output} is not empty: choose a new folder.")
                atomic_write(self.output / PLAN, _json(plan))
            elif begun_with != plan:
                raise InputError(f"{self.output} was begun with other sources or settings: choose a new folder.")
            elif of_others := [path for path in self._found() if self._own_name(path) is None]:
                raise InputError(
                    f"{min(of_others)} is not of the corpus that {self.output} was begun for: move it away."
                )
        except OSError as error:
            raise InputError(f"{self.output} cannot be written: {error}") from error

    def _is_free(self) -> bool:
        """Whether nothing is in the folder but what a process leaves that is killed as it begins."""
        free = all(path == self.unfinished for path in self.output.iterdir())
        return free and all(self._own_name(path) == PLAN.name != path.name for path in self._found())

    def write_vocabulary(self) -> None:
        """The genes and their medians, merged of the chunks' sketches or taken from another corpus."""
        found_unfit = self.unfinished / _UNFIT
        vocabulary = self.vocabulary
        if vocabulary is None and found_unfit.exists():
            self._leave_out(json.loads(found_unfit.read_text()))
            return
        if vocabulary is None:
            chunks = self._chunks()
            tasks = [(chunk, self.gene_info, str(self.unfinished / f"{chunk.file_name}.npz")) for chunk in chunks]
            done = self._fit([chunk.source for chunk in chunks], self.work.share("Medians", _sketch, tasks))
            sketches = (path for _, path in done)
            genes, _ = _known_genes(self.gene_info)
            vocabulary = gene_vocabulary(map(MedianSketch.load, sketches), genes, self.settings.min_cells)
            if not vocabulary["ensembl_ids"]:
                self._undo()
                least = self.settings.min_cells
                raise InputError(
                    f"No gene is counted in {least} cells of primary data: lower min_cells, or add sources."
                )
        atomic_write(self.output / GENES, _json(vocabulary))
        atomic_write(found_unfit, _json(self.unfit))

    def write_shards(self) -> None:
        """The ranked cells."""
        chunks = self._chunks()
        genes, folder = _File.of(self.output / GENES), self.output / SHARDS
        tasks = [(chunk, genes, self.settings.max_genes, str(folder / f"{chunk.file_name}.arrow")) for chunk in chunks]
        encoded = self.work.share("Shards", _encode, tasks)
        # The genes of this corpus are those of sources that could be read: now they must be.
        done = self._fit([chunk.source for chunk in chunks], encoded, may_skip=self.settings.vocabulary is not None)
        self.shards = [facts | {"source": source.name} for source, facts in done]
        for chunk in chunks:
            if chunk.source.name in self.unfit:
                (folder / f"{chunk.file_name}.arrow").unlink(missing_ok=True)

        if not any(shard["cells"] for shard in self.shards):
            left_out = sum((Counter(shard["left_out"]) for shard in self.shards), Counter())
            self._undo()
            raise InputError(f"No cell can be kept: {', '.join(f'{n:,} {why}' for why, n in left_out.items())}.")

    def write_panels(self) -> None:
        """The genes that were counted in each study at all."""
        measured: dict[str, np.ndarray] = {}
        for shard in self.shards:
            for study, genes in shard["measured"].items():
                measured[study] = measured.get(study, 0) | genes
        panels = [np.flatnonzero(np.unpackbits(genes)) for _, genes in sorted(measured.items())]
        table = pa.table({"study": pa.array(sorted(measured)), "token_ids": pa.array(panels, pa.list_(pa.uint32()))})
        atomic_write(self.output / PANELS, _arrow(table))

    def write_manifest(self) -> None:
        """What was made of what; with it the corpus is whole."""
        sources = []
        for source in self.sources:
            shards = [shard for shard in self.shards if shard["source"] == source.name]
            left_out = sum((Counter(shard["left_out"]) for shard in shards), Counter())
            counts = {"kept": sum(shard["cells"] for shard in shards), "left_out": dict(sorted(left_out.items()))}
            sources.append(
                {"name": source.name, "location": Path(source.location).name, **self.inspected[source.name]} | counts
            )
        manifest = {
            "format": FORMAT,
            "settings": asdict(self.settings) | {"gene_info": Path(self.settings.gene_info).name},
            "checksums": self._checksums(),
            "cells": sum(shard["cells"] for shard in self.shards),
            "genes": len(json.loads((self.output / GENES).read_text())["ensembl_ids"]),
            "sources": sources,
            "unfit": self.unfit,
            "shards": [{name: shard[name] for name in ("file", "cells", "sha256")} for shard in self.shards],
        }
        require_shards(self.output, manifest["shards"])
        for path in self._found():
            if self._own_name(path) not in (None, path.name):
                path.unlink(missing_ok=True)  # A process that was killed has left it half-written.
        atomic_write(self.output / MANIFEST, _json(manifest))

    def clear_up(self) -> None:
        """Removes what only the making needed; the plan last, so that being killed here too can be gone on from."""
        for path in self._found():
            if path.parent == self.unfinished and path.name != PLAN.name and self._own_name(path):
                path.unlink()
        (self.output / PLAN).unlink()
        with suppress(OSError):  # Something was put there meanwhile: it stays.
            self.unfinished.rmdir()

    def _undo(self) -> None:
        """Removes all that was made, of a corpus that there cannot be."""
        for path in self._found():
            if path.parent != self.unfinished and self._own_name(path):
                path.unlink()
        with suppress(OSError):
            (self.output / SHARDS).rmdir()
        self.clear_up()
        if self.is_new:
            with suppress(OSError):
                self.output.rmdir()

    def _found(self) -> Iterator[Path]:
        """What is in the folder, and in those that a corpus has in it; these themselves left out."""
        for folder in self.names:
            if folder == self.output or _is_folder(folder):
                yield from (path for path in [*folder.iterdir()] if path not in self.names or not _is_folder(path))

    def _own_name(self, path: Path) -> str | None:
        """The name of the corpus's file that this is or, half-written, was to be; `None` of what it did not make."""
        half_written = _HALF_WRITTEN.fullmatch(path.name)
        name = half_written[1] if half_written else path.name
        return name if name in self.names[path.parent] and path.is_file() and not path.is_symlink() else None

    def _checksums(self) -> dict[str, str | None]:
        """Of what the settings name besides the sources."""
        vocabulary = None if self.vocabulary is None else hashlib.sha256(_json(self.vocabulary)).hexdigest()
        return {"gene_info": self.gene_info.sha256, "vocabulary": vocabulary}

    def _chunks(self) -> list[_Chunk]:
        size = self.settings.chunk_cells
        return [
            _Chunk(source, number, size)
            for source in self.sources
            for number in range(-(-self.inspected[source.name]["asked_for"] // size))
        ]

    def _fit(
        self, sources: Sequence[Source], results: Iterable[Any], may_skip: bool = True
    ) -> list[tuple[Source, Any]]:
        """Each result with its source, but for those of sources found unfit, which are left out or an error."""
        pairs = list(zip(sources, results, strict=True))
        faults = {source.name: result.fault for source, result in reversed(pairs) if isinstance(result, _Unfit)}
        self._leave_out(faults)
        if faults and (self.on_unfit == "refuse" or not may_skip or not self.sources):
            raise InputError("\n".join(faults[name] for name in sorted(faults)))
        return [(source, result) for source, result in pairs if source.name not in faults]

    def _leave_out(self, faults: dict[str, str]) -> None:
        self.unfit |= faults
        self.sources = [source for source in self.sources if source.name not in faults]


# ---------------------------------------------------------------------- tasks


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """What is wrong with the counts is said of the source."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source.location}: {error}") from error


@dataclass(frozen=True)
class _Unfit:
    """What a task says of a source that cannot be used."""

    fault: str


def _telling_faults(task):
    """A task that returns what is wrong with its source and does not raise it."""

    @wraps(task)
    def telling(*arguments):
        try:
            return task(*arguments)
        except InputError as error:
            return _Unfit(str(error))

    return telling


@dataclass(frozen=True)
class _File:
    """A file that tasks read, and what it holds now: a process may remember another of its name."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str | Path) -> "_File":
        """
        Raises:
            InputError: It cannot be read.
        """
        try:
            return cls(str(path), hashlib.sha256(Path(path).read_bytes()).hexdigest())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error


@lru_cache(maxsize=1)
def _known_genes(gene_info: _File) -> tuple[list[Gene], LangCellFeatureExtractor]:
    genes = read_gene_info(gene_info.path)
    return genes, every_gene(genes)


@lru_cache(maxsize=1)
def _extractor(genes: _File, max_genes: int) -> LangCellFeatureExtractor:
    return LangCellFeatureExtractor(json.loads(Path(genes.path).read_text()), max_length=max_genes)


@_telling_faults
def _inspect(source: Source, gene_info: _File) -> dict[str, Any]:
    """Opens a source and tries its first cells."""
    asked_for = len(source.rows)
    if asked_for:
        _, every = _known_genes(gene_info)
        with _naming(source):
            every.read_counts(source.read(source.rows[:1]))
    facts = {"sha256": source.checksum(), "cells": source.stored, "asked_for": asked_for}
    about = source.about()
    return facts | ({"about": about} if about else {})


@_telling_faults
def _sketch(chunk: _Chunk, gene_info: _File, path: str) -> str:
    """Writes the sketch of a chunk's gene values."""
    if not Path(path).exists():
        _, every = _known_genes(gene_info)
        adata, facts = chunk.read()
        with _naming(chunk.source):
            counts, totals = every.read_counts(adata)
        primary = facts["primary"].to_numpy()
        MedianSketch.of(counts[primary], totals[primary]).save(path)
    return path


@_telling_faults
def _encode(chunk: _Chunk, genes: _File, max_genes: int, path: str) -> dict[str, Any]:
    """Writes a shard, and says what is in it."""
    if not Path(path).exists():
        extractor = _extractor(genes, max_genes)
        adata, facts = chunk.read()
        with _naming(chunk.source):
            ranked = extractor.rank(adata, empty_cells="mark")
        reasons = np.select([~facts["primary"], ranked.without_genes], ["not primary data", "no known gene"], "")
        kept = np.flatnonzero(reasons == "")
        id_type = pa.uint16() if len(extractor) <= 2**16 else pa.uint32()
        offsets = np.concatenate([[0], np.cumsum(ranked.lengths[kept])]).astype(np.int32)
        flat = np.concatenate([ranked[int(cell)] for cell in kept] or [np.empty(0)]).astype(id_type.to_pandas_dtype())
        columns = {
            "token_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            "length": pa.array(ranked.lengths[kept].astype(np.uint16)),
            "study": pa.array(facts["study"].to_numpy()[kept], pa.string()),
        } | {aspect: pa.array(facts[aspect].to_numpy()[kept], pa.string()) for aspect in ASPECTS}
        left_out = dict(sorted(Counter(reasons[reasons != ""].tolist()).items()))
        table = pa.table(columns).replace_schema_metadata({"left_out": json.dumps(left_out)})
        atomic_write(path, _arrow(table))
    return _describe_shard(Path(path))


def _describe_shard(path: Path) -> dict[str, Any]:
    """What the manifest and the panels need to know of a shard; `measured` has a bit for every gene."""
    content = path.read_bytes()
    table = pa.ipc.open_stream(content).read_all()
    measured = {}
    for study in table["study"].unique().to_pylist():
        token_ids = table.filter(pc.equal(table["study"], study))["token_ids"].combine_chunks().flatten()
        seen = np.zeros(2**16 if token_ids.type == pa.uint16() else 2**20, dtype=bool)
        seen[token_ids.to_numpy()] = True
        measured[study] = np.packbits(seen)
    return {
        "file": path.name,
        "cells": table.num_rows,
        "left_out": json.loads(table.schema.metadata[b"left_out"]),
        "sha256": hashlib.sha256(content).hexdigest(),
        "measured": measured,
    }


def _arrow(table: pa.Table) -> bytes:
    """As `datasets` reads it from disk."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def _is_folder(path: Path) -> bool:
    """Whether it is one, and not a link to one elsewhere."""
    return path.is_dir() and not path.is_symlink()


def _read_plan(path: Path) -> Any:
    """What a corpus was begun with; `None` where no corpus was."""
    if not path.is_file() or path.is_symlink():
        return None
    try:
        plan = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return plan if isinstance(plan, dict) and "format" in plan else None


def _read_vocabulary(source: str) -> dict[str, list]:
    if (Path(source) / MANIFEST).is_file():
        return Corpus(source).gene_vocabulary
    if (Path(source) / GENEFORMER[0]).is_file():
        return read_gene_vocabulary(*(Path(source) / name for name in GENEFORMER))
    try:
        return LangCellFeatureExtractor.from_pretrained(source).gene_vocabulary
    except OSError as error:  # transformers says where it would look for files of its own.
        raise InputError(f"{source} is neither a corpus nor a checkpoint with a gene vocabulary.") from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


# ---------------------------------------------------------------------- reading


__all__ = ["CorpusSettings", "make_corpus"]
