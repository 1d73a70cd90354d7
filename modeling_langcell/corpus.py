# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""From `.h5ad` files to what pre-training reads: a gene vocabulary with medians, and ranked, labelled cells."""

import csv
import gzip
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
from rich.progress import track

from .feature_extraction_langcell import InputError, LangCellFeatureExtractor, RankedCells

#: What `n_counts` is scaled to before a median is taken (Geneformer; LangCell, section 3.1).
TARGET_COUNTS = 10_000
CELL_TYPE_COLUMN = "cell_type_ontology_term_id"
_CHUNK = 2048


@dataclass(frozen=True)
class Gene:
    """A gene of NCBI's `gene_info`: names for matching, and the full name for a text start of its embedding."""

    ensembl_id: str
    symbol: str
    synonyms: tuple[str, ...]
    full_name: str


def read_gene_info(path: str | Path) -> list[Gene]:
    """
    The genes of an NCBI `gene_info(.gz)` table that have an Ensembl id, each id once.

    Raises:
        InputError: The file is missing or lacks NCBI's columns.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"No gene_info table at {path}.")
    genes: dict[str, Gene] = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        table = csv.DictReader(lines, delimiter="\t")
        if not {"Symbol", "Synonyms", "dbXrefs", "description"} <= set(table.fieldnames or ()):
            raise InputError(f"{path} is not an NCBI gene_info table: its header lacks Symbol, Synonyms or dbXrefs.")
        for row in table:
            synonyms = () if row["Synonyms"] == "-" else tuple(row["Synonyms"].split("|"))
            for ensembl_id in re.findall(r"Ensembl:(ENSG\d+)", row["dbXrefs"]):
                genes.setdefault(ensembl_id, Gene(ensembl_id, row["Symbol"], synonyms, row["description"]))
    return list(genes.values())


def build_gene_vocabulary(files: Sequence[str | Path], genes: Sequence[Gene], min_cells: int = 10) -> dict[str, list]:
    """
    The genes counted in a corpus and their medians, as `LangCellFeatureExtractor(gene_vocabulary=...)` takes them.

    A gene's median is that of its non-zero values over all cells, each cell scaled to 10,000 counts in all the genes
    of its matrix, known or not (METHOD of Geneformer V1).

    Args:
        files: `.h5ad` files with raw counts in `X`, read in chunks.
        genes: The genes to look for.
        min_cells: Genes counted in fewer cells are left out.
    """
    everything = LangCellFeatureExtractor(
        {
            "ensembl_ids": [gene.ensembl_id for gene in genes],
            "medians": [1.0] * len(genes),
            "names": ["|".join((gene.symbol, *gene.synonyms)) for gene in genes],
        }
    )
    token_ids, values = [], []
    for file in track(files, description="Medians", disable=not sys.stdout.isatty()):
        adata = ad.read_h5ad(file, backed="r")
        source, match = everything.open(adata)
        for start in range(0, len(source), _CHUNK):
            counts = source.rows(start, min(start + _CHUNK, len(source)))
            totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
            by_gene = everything.by_gene(counts, match)
            per_cell = np.repeat(TARGET_COUNTS / np.maximum(totals, 1), np.diff(by_gene.indptr))
            token_ids.append(by_gene.indices.astype(np.int32))
            values.append((by_gene.data * per_cell).astype(np.float32))
        adata.file.close()
    ids, normalized = np.concatenate(token_ids), np.concatenate(values)
    by_gene_and_value = np.lexsort((normalized, ids))
    ids, normalized = ids[by_gene_and_value], normalized[by_gene_and_value]
    counted, starts, n_cells = np.unique(ids, return_index=True, return_counts=True)
    medians = (normalized[starts + (n_cells - 1) // 2].astype(np.float64) + normalized[starts + n_cells // 2]) / 2
    kept = n_cells >= min_cells
    chosen = sorted(zip(counted[kept] - 2, medians[kept], strict=True), key=lambda item: genes[item[0]].ensembl_id)
    return {
        "ensembl_ids": [genes[gene].ensembl_id for gene, _ in chosen],
        "medians": [float(f"{median:.6g}") for _, median in chosen],
        "names": ["|".join((genes[gene].symbol, *genes[gene].synonyms)) for gene, _ in chosen],
    }


@dataclass(frozen=True)
class LabelledCells:
    """
    Ranked cells with the Cell Ontology term of each.

    Args:
        cells: The cells.
        term_ids: `(cells,)` `CL:` ids.
        studies: `(cells,)` the file that each cell is from.
        panels: The ids of the genes that each study's matrix has.
    """

    cells: RankedCells
    term_ids: np.ndarray
    studies: np.ndarray
    panels: dict[str, np.ndarray]


def read_labelled_cells(
    files: Sequence[str | Path], extractor: LangCellFeatureExtractor, max_length: int
) -> LabelledCells:
    """
    Reads the cells of `.h5ad` files whose `obs` has a Cell Ontology id, ranked; cells marked `unknown` are left out.

    Args:
        files: Files with raw counts in `X` and `cell_type_ontology_term_id` in `obs`.
        extractor: Ranks the cells.
        max_length: Genes kept of a cell, `<cls>` included.

    Raises:
        InputError: A file without the column, or whose counts are refused.
    """
    parts: list[RankedCells] = []
    terms: list[np.ndarray] = []
    studies: list[np.ndarray] = []
    panels: dict[str, np.ndarray] = {}
    for file, adata in _open_all(files):
        if CELL_TYPE_COLUMN not in adata.obs:
            raise InputError(f"{file} has no column {CELL_TYPE_COLUMN} in obs.")
        term_ids = adata.obs[CELL_TYPE_COLUMN].astype(str).to_numpy()
        labelled = np.flatnonzero(np.char.startswith(term_ids.astype(str), "CL:"))
        if len(labelled):
            parts.append(extractor.rank(adata[labelled].to_memory(), max_length=max_length, empty_cells="mark"))
            terms.append(term_ids[labelled])
            studies.append(np.full(len(labelled), Path(file).stem, dtype=object))
            token_ids = extractor.open(adata)[1].token_ids
            panels[Path(file).stem] = np.unique(token_ids[token_ids >= 0])
    if not parts:
        raise InputError(f"No cell of the {len(files)} files has a Cell Ontology id in {CELL_TYPE_COLUMN}.")
    return LabelledCells(RankedCells.concatenate(parts), np.concatenate(terms), np.concatenate(studies), panels)


def _open_all(files: Sequence[str | Path]) -> Iterator[tuple[str | Path, ad.AnnData]]:
    for file in track(files, description="Cells", disable=not sys.stdout.isatty()):
        adata = ad.read_h5ad(file, backed="r")
        yield file, adata
        adata.file.close()


__all__ = ["Gene", "LabelledCells", "build_gene_vocabulary", "read_gene_info", "read_labelled_cells"]
