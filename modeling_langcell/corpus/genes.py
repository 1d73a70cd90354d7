# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The genes of a corpus: their names from NCBI, and their medians from one pass over the counts."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..io.atomic import atomic_write
from ..io.documents import read_gzip_text
from ..model.errors import InputError, reason_of
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from .orthologs import Orthologs, with_orthologs

#: Most bytes of a table of genes, unpacked; that of the human genes has 14 MB.
_MAX_BYTES = 128 << 20
TARGET_COUNTS = 10_000
#: Names of the organisms that NCBI numbers.
_TAXA = {"9606": "human", "10090": "mouse", "10116": "rat", "7955": "zebrafish", "9823": "pig", "9544": "macaque"}
_FIRST_GENE = 2  # Ids 0 and 1 are <pad> and <mask>.


@dataclass(frozen=True)
class Gene:
    """
    A gene of NCBI's `gene_info`: its names, the full name that its embedding can be initialized from, and its organism.
    """

    ensembl_id: str
    symbol: str
    synonyms: tuple[str, ...]
    full_name: str
    organism: str = "human"

    @property
    def names(self) -> str:
        """Symbol and synonyms as `LangCellFeatureExtractor` takes them."""
        return "|".join((self.symbol, *self.synonyms))


def read_gene_info(path: str | Path) -> list[Gene]:
    """
    Reads the genes of an NCBI `gene_info(.gz)` table that have an Ensembl id, each id once, in the order of their ids.
    A synonym that is the symbol of another gene of the table is left out: it would give one gene's counts to the other.

    Raises:
        InputError: The file is missing or damaged, lacks NCBI's columns, or has no gene with an Ensembl id or those of
            several organisms.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"No gene_info table at {path}.")
    genes: dict[str, Gene] = {}
    symbols: dict[str, set[str]] = {}  # Of all genes, with the Ensembl ids of each.
    try:
        table = csv.DictReader(io.StringIO(read_gzip_text(path, _MAX_BYTES)), delimiter="\t", restval="")
        if not {"Symbol", "Synonyms", "dbXrefs", "description"} <= set(table.fieldnames or ()):
            raise InputError(
                f"{path} is not an NCBI gene_info table: its header lacks Symbol, Synonyms, dbXrefs or description."
            )
        for row in table:
            synonyms = () if row["Synonyms"] == "-" else tuple(row["Synonyms"].split("|"))
            taxon = row.get("#tax_id", "9606")
            organism = _TAXA.get(taxon, f"NCBI taxon {taxon}")
            ensembl_ids = re.findall(r"Ensembl:(ENS[A-Z]*G\d+)", row["dbXrefs"])
            symbols.setdefault(row["Symbol"], set()).update(ensembl_ids)
            for ensembl_id in ensembl_ids:
                gene = Gene(ensembl_id, row["Symbol"], synonyms, row["description"], organism)
                if (first := genes.setdefault(ensembl_id, gene)) is not gene:  # One Ensembl gene, two of NCBI's.
                    genes[ensembl_id] = replace(first, synonyms=(*first.synonyms, gene.symbol))
    except csv.Error as error:
        raise InputError(f"{path} is not a complete gene_info table: {reason_of(error)}. Download it again.") from error
    if len(organisms := {gene.organism for gene in genes.values()}) != 1:
        found = f"of {' and '.join(sorted(organisms)[:5])}" if organisms else "none with an Ensembl id"
        raise InputError(f"{path} must have the genes of one organism; here: {found}.")
    for ensembl_id, gene in genes.items():
        own = (name for name in gene.synonyms if ensembl_id in symbols.get(name, {ensembl_id}))
        genes[ensembl_id] = replace(gene, synonyms=tuple(own))
    return [genes[ensembl_id] for ensembl_id in sorted(genes)]


def all_genes_extractor(genes: Sequence[Gene], orthologs: Sequence[Orthologs] = ()) -> LangCellFeatureExtractor:
    """Returns an extractor that knows all the genes but no medians yet, for a corpus's first pass over the counts."""
    return LangCellFeatureExtractor(with_orthologs(_vocabulary(genes, [1.0] * len(genes)), orthologs))


def _vocabulary(genes: Sequence[Gene], medians: Sequence[float]) -> dict[str, Any]:
    """Returns some genes as `LangCellFeatureExtractor(gene_vocabulary=...)` takes them."""
    organism = genes[0].organism if genes else "human"
    return ({} if organism == "human" else {"organism": organism}) | {
        "ensembl_ids": [gene.ensembl_id for gene in genes],
        "medians": [*medians],
        "names": [gene.names for gene in genes],
    }


@dataclass(frozen=True)
class MedianSketch:
    """
    A histogram of each gene's non-zero values in narrow bins, from which medians are computed. The sketches of
    different cells add up, in any order and to the last bit, to the sketch of all the cells.

    Values are a cell's counts scaled to a sum of 10,000 over all genes of its matrix. A bin spans a factor of
    2 ** (1/64) and is represented by its middle, so the error of a median is at most 0.55% (even for an even number of
    values, where the median is the mean of the two middle ones).

    Args:
        bins: Sorted codes `gene * BINS + bin`, with genes by their index in the table.
        values: Number of values in each bin.
    """

    bins: np.ndarray
    values: np.ndarray

    PER_DOUBLING = 64
    #: Bins reach from 2 ** -12, one count among forty million, to beyond 2 ** 13, a cell with a single gene.
    LOWEST, BINS = -12 * PER_DOUBLING, 26 * PER_DOUBLING

    @classmethod
    def from_counts(cls, counts: sp.csr_matrix, totals: np.ndarray) -> "MedianSketch":
        """
        Sketches some cells.

        Args:
            counts: `(cells, ids)` counts, by the ids of `all_genes_extractor`.
            totals: `(cells,)` sums of the counts over all genes of the matrix, known or not.
        """
        per_cell = np.repeat(TARGET_COUNTS / np.maximum(totals, 1), np.diff(counts.indptr))
        level = np.floor(np.log2(counts.data * per_cell) * cls.PER_DOUBLING).astype(np.int64) - cls.LOWEST
        gene = counts.indices.astype(np.int64) - _FIRST_GENE
        return cls(*np.unique(gene * cls.BINS + level.clip(0, cls.BINS - 1), return_counts=True))

    def save(self, path: str | Path) -> None:
        """Writes the sketch to an `.npz` file, atomically."""
        content = io.BytesIO()
        np.savez_compressed(content, bins=self.bins, values=self.values)
        atomic_write(path, content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "MedianSketch":
        """Reads a sketch that `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["bins"], arrays["values"])


def merge_gene_vocabulary(sketches: Iterable[MedianSketch], genes: Sequence[Gene], min_cells: int) -> dict[str, Any]:
    """
    Merges sketches into the genes that are counted in at least `min_cells` cells and their medians, as
    `LangCellFeatureExtractor(gene_vocabulary=...)` takes them. Memory depends on the number of genes, not on the number
    of sketches.
    """
    values = np.zeros((len(genes), MedianSketch.BINS), dtype=np.uint32)
    for sketch in sketches:
        values.reshape(-1)[sketch.bins] += sketch.values.astype(np.uint32)
    middle = 2.0 ** ((np.arange(MedianSketch.BINS) + MedianSketch.LOWEST + 0.5) / MedianSketch.PER_DOUBLING)
    chosen, medians = [], []
    for gene, histogram in zip(genes, values, strict=True):
        cumulative = histogram.cumsum(dtype=np.int64)
        if cumulative[-1] >= min_cells:
            middle_two = np.searchsorted(cumulative, [(cumulative[-1] + 1) // 2, cumulative[-1] // 2 + 1])
            chosen.append(gene)
            medians.append(float(f"{middle[middle_two].mean():.6g}"))
    return _vocabulary(chosen, medians)


__all__ = ["Gene", "MedianSketch", "all_genes_extractor", "merge_gene_vocabulary", "read_gene_info"]
