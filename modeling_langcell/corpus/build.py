# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Building a pre-training corpus: many studies as sharded Arrow, each cell as ranked gene ids and ontology term ids.

A build consists of small tasks, each of a few thousand cells of one source, that write one file each: a sketch of the
gene values in the first pass, a shard in the second. What a task writes depends on its cells alone, files appear
complete or not at all, and files that exist are not written again. So the corpus is the same to the last byte, however
many processes share the work, wherever they run, and however often they are killed.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..conversion.published import read_gene_vocabulary
from ..io.documents import read_json
from ..io.outputs import writing_into
from ..model.errors import InputError
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.gene_matching import GeneVocabulary
from .corpus import Corpus, require_shards
from .folder import FORMAT, MANIFEST, PLAN, BuildFolder, to_json
from .genes import MedianSketch, merge_gene_vocabulary, read_gene_info
from .orthologs import read_orthologs, with_orthologs
from .parallel import WorkerPool
from .places import PlaceSums, merge_usual_places
from .sources import Source
from .tasks import Chunk, GeneTables, HashedFile, UnfitSource, encode_chunk, inspect_source, sketch_chunk, to_arrow

logger = logging.getLogger(__name__)

#: The files of Geneformer's gene vocabulary: ids, medians, symbols.
GENEFORMER = ("token_dictionary.pkl", "gene_median_dictionary.pkl", "gene_name_id_dict.pkl")


@dataclass(frozen=True)
class CorpusSettings:
    """
    The settings that, besides the sources, determine a corpus.

    Args:
        gene_info: NCBI `gene_info` table of the genes to look for.
        orthologs: Tables of Ensembl BioMart with orthologs of these genes in other organisms, whose cells can then be
            read, too: see `read_orthologs`.
        vocabulary: A corpus, a checkpoint, or a folder of Geneformer's three dictionaries to take genes and medians
            from; by default they are computed from this corpus.
        max_genes: Number of genes kept per cell, including `<cls>`.
        min_cells: Genes counted in fewer cells of the corpus get no id.
        chunk_cells: Number of cells of a task and of a shard; memory grows with it.
    """

    gene_info: str
    vocabulary: str | None = None
    orthologs: tuple[str, ...] = ()
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
) -> Corpus:
    """
    Builds a corpus, or resumes a build of the same sources and settings.

    Args:
        sources: The cells.
        output: Folder of the corpus.
        settings: Genes and sizes.
        on_unfit: Treatment of a source that is damaged, or that holds no counts or too few known genes: `refuse`
            raises an error, `skip` leaves the source out and names it in the manifest.
        processes: Number of processes on this machine.
        scheduler: Address of a Dask scheduler whose workers do the work; they must see the same files.

    Raises:
        InputError: There are no sources, an unfit source, or only unfit sources; or the folder holds something else or
            cannot be written.
    """
    output = Path(output)
    if (output / MANIFEST).exists() and not (output / PLAN).exists():
        raise InputError(f"{output} already holds a corpus: choose a new folder.")
    continues = writing_into(output, "The same command continues the build.")
    with WorkerPool(processes, scheduler) as workers, continues:
        builder = CorpusBuilder(sources, output, settings, on_unfit, workers)
        builder.inspect_sources()
        builder.claim_folder()
        if not (output / MANIFEST).exists():  # Otherwise the build was killed while it cleaned up.
            builder.write_vocabulary()
            builder.write_shards()
            builder.write_panels()
            builder.write_places()
            builder.write_manifest()
        builder.clean_up()
    return Corpus(output)


class CorpusBuilder:
    """The steps of a build, in order."""

    def __init__(
        self,
        sources: Sequence[Source],
        output: Path,
        settings: CorpusSettings,
        on_unfit: Literal["refuse", "skip"],
        workers: WorkerPool,
    ):
        if not sources:
            raise InputError("No sources: give files of cells, such as .h5ad, folders of them, or SOMA experiments.")
        self.output, self.settings, self.on_unfit, self.workers = output, settings, on_unfit, workers
        self.tables = GeneTables(HashedFile.at(settings.gene_info), tuple(map(HashedFile.at, settings.orthologs)))
        self.vocabulary = None if settings.vocabulary is None else _read_vocabulary(settings.vocabulary)
        self.sources: list[Source] = list(sources)
        self.inspected: dict[str, dict[str, Any]] = {}
        self.unfit: dict[str, str] = {}

    def inspect_sources(self) -> None:
        """Opens every source: counts its cells, computes its checksum, and looks for known genes."""
        found = self.workers.map("Sources", inspect_source, [(source, self.tables) for source in self.sources])
        self.inspected = {source.name: facts for source, facts in self._usable(self.sources, found)}
        if not any(facts["asked_for"] for facts in self.inspected.values()):
            raise InputError("No cell is selected: the sources are empty, or none of their cells meets the condition.")

    def claim_folder(self) -> None:
        """
        Starts in a folder that is empty or does not exist, or resumes in one that holds this corpus and nothing else.

        Raises:
            InputError: The folder holds a corpus of different sources, genes or settings, or other files.
        """
        plan = {
            "format": FORMAT,
            "settings": asdict(self.settings) | {"orthologs": [*self.settings.orthologs]},
            "checksums": self._checksums(),
            "sources": self.inspected,
            "unfit": self.unfit,
        }
        self.folder = BuildFolder(self.output, [chunk.name for chunk in self._chunks()])
        if self.folder.claim(plan):
            logger.info("Resuming the unfinished corpus in %s.", self.output)

    def write_vocabulary(self) -> None:
        """Writes the genes and their medians, merged from the chunks' sketches or taken from another vocabulary."""
        vocabulary = self.vocabulary
        if vocabulary is None and self.folder.unfit_sources.exists():
            self._leave_out(read_json(self.folder.unfit_sources))
            return
        if vocabulary is None:
            chunks = self._chunks()
            tasks = [(chunk, self.tables, self.folder.sketch(chunk.name)) for chunk in chunks]
            _log_existing("sketches", [path for *_, path in tasks])
            results = self.workers.map("Medians", sketch_chunk, tasks)
            sketches = (path for _, path in self._usable([chunk.source for chunk in chunks], results))
            genes = read_gene_info(self.tables.gene_info.path)
            vocabulary = merge_gene_vocabulary(map(MedianSketch.load, sketches), genes, self.settings.min_cells)
            if not vocabulary["ensembl_ids"]:
                self.folder.remove_corpus()
                least = self.settings.min_cells
                raise InputError(
                    f"No gene is counted in {least} cells of primary data: lower min_cells, or add sources."
                )
        orthologs = [read_orthologs(table.path) for table in self.tables.orthologs]
        self.folder.write(self.folder.genes, to_json(with_orthologs(vocabulary, orthologs)))
        self.folder.write(self.folder.unfit_sources, to_json(self.unfit))

    def write_shards(self) -> None:
        """Writes the ranked cells."""
        chunks = self._chunks()
        genes = HashedFile.at(self.folder.genes)
        shards = [self.folder.shard(chunk.name) for chunk in chunks]
        tasks = [
            (chunk, genes, self.settings.max_genes, shard, self.folder.place_sums(chunk.name))
            for chunk, shard in zip(chunks, shards, strict=True)
        ]
        _log_existing("shards", shards)
        results = self.workers.map("Shards", encode_chunk, tasks)
        # Medians computed from a source are in the vocabulary: such a source cannot be left out any more.
        may_skip = self.settings.vocabulary is not None
        described = self._usable([chunk.source for chunk in chunks], results, may_skip)
        self.shards = [shard | {"source": source.name} for source, shard in described]
        for chunk in chunks:
            if chunk.source.name in self.unfit:
                self.folder.shard(chunk.name).unlink(missing_ok=True)

        if not any(shard["cells"] for shard in self.shards):
            self.folder.remove_corpus()
            reasons = ", ".join(f"{cells:,} {reason}" for reason, cells in _sum_left_out(self.shards).items())
            raise InputError(f"No cell can be kept: {reasons}.")

    def write_panels(self) -> None:
        """
        Writes the genes that each source measured, whether its cells express them or not. A source of several studies
        may have genes that one of them did not measure: there the genes of a study are those that its cells express.
        """
        measured = {
            shard["source"]: PlaceSums.load(self.folder.place_sums(Path(shard["file"]).stem)).measured
            for shard in self.shards
        }
        expressed: dict[tuple[str, str], np.ndarray] = {}
        for shard in self.shards:
            for study, genes in shard["expressed"].items():
                key = shard["source"], study
                expressed[key] = expressed.get(key, 0) | genes
        n_studies = Counter(source for source, _ in expressed)
        panels = {
            (source, study): np.flatnonzero(measured[source] if n_studies[source] == 1 else np.unpackbits(genes))
            for (source, study), genes in sorted(expressed.items())
        }
        names = [pa.array(column, pa.string()) for column in ([key[i] for key in panels] for i in (0, 1))]
        columns = dict(zip(("source", "study"), names, strict=True))
        table = pa.table(columns | {"token_ids": pa.array([*panels.values()], pa.list_(pa.uint32()))})
        self.folder.write(self.folder.panels, to_arrow(table))

    def write_places(self) -> None:
        """Writes the usual places of the genes, merged from the chunks' sums."""
        sums = [self.folder.place_sums(Path(shard["file"]).stem) for shard in self.shards]
        n_genes = len(read_json(self.folder.genes)["ensembl_ids"])
        places = merge_usual_places(sums, GeneVocabulary.first_gene_id + n_genes + 1)
        self.folder.write(self.folder.places, to_json(places))

    def write_manifest(self) -> None:
        """Writes the manifest, the origin and the content of the corpus; with this file it is complete."""
        sources = []
        for source in self.sources:
            shards = [shard for shard in self.shards if shard["source"] == source.name]
            kept = sum(shard["cells"] for shard in shards)
            counts = {"kept": kept, "left_out": dict(sorted(_sum_left_out(shards).items()))}
            sources.append(
                {"name": source.name, "location": Path(source.location).name, **self.inspected[source.name]} | counts
            )
        manifest = {
            "format": FORMAT,
            "settings": asdict(self.settings) | self._names_of_tables(),
            "checksums": self._checksums(),
            "cells": sum(shard["cells"] for shard in self.shards),
            "genes": len(read_json(self.folder.genes)["ensembl_ids"]),
            "sources": sources,
            "unfit": self.unfit,
            "files": {
                file.name: HashedFile.at(file).sha256
                for file in (self.folder.genes, self.folder.panels, self.folder.places)
            },
            "shards": [{name: shard[name] for name in ("file", "cells", "sha256")} for shard in self.shards],
        }
        require_shards(self.output, manifest["shards"])
        self.folder.remove_incomplete_files()
        self.folder.write(self.folder.manifest, to_json(manifest))

    def clean_up(self) -> None:
        """Removes the files that only the build needed."""
        self.folder.remove_working_files()

    def _names_of_tables(self) -> dict[str, Any]:
        """Returns the names of the tables of genes without their folders, which differ from machine to machine."""
        orthologs = [Path(path).name for path in self.settings.orthologs]
        return {"gene_info": Path(self.settings.gene_info).name, "orthologs": orthologs}

    def _checksums(self) -> dict[str, Any]:
        """Returns the checksums of the files that the settings name besides the sources."""
        vocabulary = None if self.vocabulary is None else hashlib.sha256(to_json(self.vocabulary)).hexdigest()
        orthologs = [table.sha256 for table in self.tables.orthologs]
        return {"gene_info": self.tables.gene_info.sha256, "orthologs": orthologs, "vocabulary": vocabulary}

    def _chunks(self) -> list[Chunk]:
        size = self.settings.chunk_cells
        return [
            Chunk(source, number, size)
            for source in self.sources
            for number in range(-(-self.inspected[source.name]["asked_for"] // size))
        ]

    def _usable(
        self, sources: Sequence[Source], results: Iterable[Any], may_skip: bool = True
    ) -> list[tuple[Source, Any]]:
        """
        Pairs results with their sources, without the unfit sources.

        Raises:
            InputError: There is an unfit source and none may be skipped, or no other source is left.
        """
        pairs = list(zip(sources, results, strict=True))
        faults = {source.name: result.fault for source, result in reversed(pairs) if isinstance(result, UnfitSource)}
        refused = faults and (self.on_unfit == "refuse" or not may_skip)
        if not refused:
            self._leave_out({name: fault.message for name, fault in faults.items()})
        if refused or (faults and not self.sources):
            ordered = [faults[name] for name in sorted(faults)]
            remedies = dict.fromkeys(remedy for fault in ordered for remedy in fault.remedies)
            raise InputError("\n".join(fault.message for fault in ordered), *remedies)
        return [(source, result) for source, result in pairs if source.name not in faults]

    def _leave_out(self, faults: dict[str, str]) -> None:
        """Continues without unfit sources, given by their names and faults."""
        for name, fault in faults.items():
            logger.warning("Source %s is left out: %s", name, fault)
        self.unfit |= faults
        self.sources = [source for source in self.sources if source.name not in faults]


def _sum_left_out(shards: Iterable[dict[str, Any]]) -> Counter[str]:
    """Counts the cells that were left out of shards, by reason."""
    return sum((Counter(shard["left_out"]) for shard in shards), Counter())


def _log_existing(kind: str, paths: Sequence[Path]) -> None:
    """Logs how many files of an earlier build are used as they are."""
    if existing := sum(path.exists() for path in paths):
        logger.info("%d of %d %s exist already and are kept.", existing, len(paths), kind)


def _read_vocabulary(source: str) -> dict[str, list]:
    """
    Reads the gene vocabulary of a corpus, of a checkpoint, or of a folder of Geneformer's dictionaries.

    Raises:
        InputError: `source` is none of these.
    """
    if (Path(source) / MANIFEST).is_file():
        return Corpus(source).gene_vocabulary
    if (Path(source) / GENEFORMER[0]).is_file():
        return read_gene_vocabulary(*(Path(source) / name for name in GENEFORMER))
    try:
        return LangCellFeatureExtractor.from_pretrained(source).gene_vocabulary
    except OSError as error:  # The error of transformers would name its own files.
        raise InputError(f"{source} is neither a corpus nor a checkpoint with a gene vocabulary.") from error


__all__ = ["CorpusSettings", "make_corpus"]
