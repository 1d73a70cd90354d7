# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Support of the markers in the catalogue of cell types: keeps a marker only if cells or two independent lists support it,
and writes beside it in how many studies it is high and how many lists name it.

    python eval/experiments/marker_support.py --cells ../shared/data/train --cells ../shared/data/more/cells \
        --cells ../shared/data/more/profiles --lists ../shared/data/more/markers_cl.tsv.gz \
        --genes ../shared/data/genes/Homo_sapiens.gene_info.gz --statistics runs/places.npz

A gene is high in a type of a study if its mean place in the type's cells (1 for the first of a cell's expressed genes,
towards 0 for the last, 0 where it is not expressed) is among the highest quarter of the study's types that are neither
kinds of the type nor above it, and of all such types of all studies; or if it is half as high again as in any of them.
A type's markers are also looked for in the kinds above it, where lists or other cells name them: what marks a T cell
marks a CD4-positive T cell. A gene proposed by hand is written without numbers, and gets them here or is dropped. A
gene that is said to be absent is dropped if it is high in the type in more than a third of its studies.
"""

import csv
import gzip
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import typer

from modeling_langcell import ontology
from modeling_langcell.corpus.genes import MedianSketch, all_genes_extractor, merge_gene_vocabulary, read_gene_info
from modeling_langcell.corpus.places import PlaceSums
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor
from modeling_langcell.ontology.catalogue import TABLE

#: Files of one study, or of one atlas, count once.
SAME_STUDY = {
    "pbmc_sorted_zheng_mudan": "pbmc_facs_zheng",
    "zheng_sorted_safe": "pbmc_facs_zheng",
    "nsclc_dc_zilionis_rogue": "nsclc_zilionis_scgate",
    "hcl_types_full": "hcl_profiles",
    "mca_extra_profiles": "mca_profiles",
    "mca_types_full": "mca_profiles",
}
#: Cultured cells: they lose much of what their type expresses in the body, and so contradict nothing.
CULTURED = "encode_primary_cells"
_TYPE = "cell_type_ontology_term_id"
_FEWEST_CELLS = 5
_SOURCES_NEEDED = 2


@dataclass(frozen=True)
class Study:
    """
    Mean places of genes in the types of a file.

    Args:
        name: Name of the study.
        types: Ids of the types with enough cells.
        places: `(types, genes)` mean places; NaN for genes that the file does not measure.
    """

    name: str
    types: tuple[str, ...]
    places: np.ndarray


def read_studies(folders: list[Path], gene_info: Path) -> tuple[list[str], list[Study]]:
    """Returns the symbols of the genes that were counted, and the studies of the `.h5ad` files in some folders."""
    genes, paths = read_gene_info(gene_info), sorted(path for folder in folders for path in folder.glob("*.h5ad"))
    unranked = all_genes_extractor(genes)
    unranked.min_matched_genes = 0.01
    sketches = [MedianSketch.from_counts(*unranked.read_counts(ad.read_h5ad(path))) for path in paths]
    vocabulary = merge_gene_vocabulary(sketches, genes, min_cells=1)
    extractor = LangCellFeatureExtractor(vocabulary, min_matched_genes=0.01)
    studies = [study for path in paths if (study := read_study(path, extractor)) is not None]
    return vocabulary["names"], studies


def read_study(path: Path, extractor: LangCellFeatureExtractor) -> Study | None:
    """Reads the types of a file; returns None if it has none."""
    adata = ad.read_h5ad(path)
    if _TYPE not in adata.obs:
        return None
    ids, sizes = np.unique(adata.obs[_TYPE].astype(str), return_counts=True)
    fewest = 1 if "profile" in adata.obs and adata.obs["profile"].all() else _FEWEST_CELLS
    types = [term for term, size in zip(ids, sizes, strict=True) if size >= fewest and ontology.is_term(term)]
    if not types:
        return None
    ranked = extractor.rank(adata, max_length=len(extractor), empty_cells="mark")
    measured = extractor.open(adata)[1].token_ids
    of_cell = adata.obs[_TYPE].astype(str).to_numpy(dtype=str)
    kept = np.where(np.isin(of_cell, types), of_cell, "")
    sums = PlaceSums.from_cells(ranked, kept, measured[measured >= 0], len(extractor))
    means = np.where(sums.measured, sums.sums.toarray() / sums.cells[:, None], np.nan)
    name = SAME_STUDY.get(path.stem, path.stem)
    return Study(name, tuple(sums.groups.tolist()), np.asarray(means[:, 2:-1], dtype=np.float32))


def read_lists(path: Path) -> dict[str, dict[str, set[str]]]:
    """Returns, by type and gene, the sources whose list for the type has the gene."""
    lists: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            term = str(row["cl_id"] or ontology.id_of(row["author_label"]) or "")
            for gene in row["genes"].split() if term else ():
                lists[term][gene].add(row["source"])
    return lists


class Support:
    """
    Looks for markers in studies and lists.

    Args:
        names: Symbol and synonyms of each gene, joined by `|`.
        studies: Mean places of these genes.
        lists: Sources by type and gene.
    """

    def __init__(self, names: list[str], studies: list[Study], lists: dict[str, dict[str, set[str]]]):
        self.studies, self.lists = studies, lists
        self.types = sorted({term for study in studies for term in study.types})
        self.number = {name: gene for gene, joined in enumerate(names) for name in joined.split("|")[1:]}
        self.number |= {joined.split("|")[0]: gene for gene, joined in enumerate(names)}
        self.unrelated = cache(lambda a, b: not ontology.related(a, b))
        totals, numbers = np.zeros((2, len(self.types), len(names)))
        for study in studies:
            rows = [self.types.index(term) for term in study.types]
            totals[rows] += np.nan_to_num(study.places)
            numbers[rows] += ~np.isnan(study.places)
        with np.errstate(invalid="ignore"):
            self.mean = totals / numbers

    def studies_with(self, term: str, gene: str) -> set[str]:
        """Returns the studies in which a gene is high in a type."""
        if gene not in self.number or term not in self.types:
            return set()
        number, found = self.number[gene], set()
        others = self.mean[[self.unrelated(term, other) for other in self.types], number]
        others = others[~np.isnan(others)]
        for study in self.studies:
            if term not in study.types or np.isnan(place := study.places[study.types.index(term), number]):
                continue
            here = study.places[[self.unrelated(term, other) for other in study.types], number]
            above = len(others) and place >= np.quantile(others, 0.75) and place > np.median(others) + 0.05
            above &= len(here) < 3 or (place >= np.quantile(here, 0.75) and place > np.median(here) + 0.05)
            alone = len(here) >= 4 and place >= 0.01 and place > 1.5 * here.max()
            if (above and place >= 0.08) or alone:
                found.add(study.name)
        return found

    def __call__(self, term: str, gene: str) -> tuple[int, int]:
        """Returns the number of studies in which a gene is high in a type, and of lists that name it for the type."""
        above = ontology.ancestors(term) - ontology.UNINFORMATIVE
        sources = set().union(*(self.lists[kind][gene] for kind in (term, *above) if kind in self.lists))
        studies = self.studies_with(term, gene)
        measured = {study.name for study in self.studies if term in study.types} - {CULTURED}
        if not studies and (sources or not measured):
            studies = set().union(*(self.studies_with(kind, gene) for kind in above))
        if not studies and not measured:
            below = [kind for kind in self.types if term in ontology.ancestors(kind)]
            high = [found for kind in below if (found := self.studies_with(kind, gene))]
            studies = set().union(*high) if len(high) > len(below) / 2 else set()
        return len(studies), len(sources)


def main(
    cells: Annotated[list[Path], typer.Option(help="Folders of .h5ad files of cells with known types.")],
    lists: Annotated[Path, typer.Option(help="Table of published marker lists: source, cl_id, author_label, genes.")],
    genes: Annotated[Path, typer.Option(help="NCBI's gene_info table.")],
    statistics: Annotated[Path, typer.Option(help="File of the mean places, made if it is missing.")],
    table: Annotated[Path, typer.Option(help="The catalogue.")] = TABLE,
) -> None:
    """Keeps the supported markers of the catalogue, and says which ones it drops."""
    if not statistics.exists():
        names, studies = read_studies(cells, genes)
        statistics.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{number}|{one.name}|{'|'.join(one.types)}": one.places for number, one in enumerate(studies)}
        np.savez_compressed(statistics, allow_pickle=False, names=np.array(names), **arrays)
    with np.load(statistics) as saved:
        names = saved["names"].tolist()
        studies = [
            Study(key.split("|")[1], tuple(key.split("|")[2:]), saved[key]) for key in saved.files if key != "names"
        ]
    support = Support(names, studies, read_lists(lists))
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    for row in rows:
        row["name"] = ontology.get_term(row["id"]).name
        kept: list[tuple[str, int, int]] = []
        dropped: list[tuple[str, int, int]] = []
        for gene in dict.fromkeys(marker.split(":")[0] for marker in row["markers"].split()):
            n_studies, n_lists = support(row["id"], gene)
            (kept if n_studies or n_lists >= _SOURCES_NEEDED else dropped).append((gene, n_studies, n_lists))
        row["markers"] = " ".join(f"{gene}:{n_studies}/{n_lists}" for gene, n_studies, n_lists in kept)
        of_type = {study.name for study in studies if row["id"] in study.types}
        high = [gene for gene in row["absent"].split() if len(support.studies_with(row["id"], gene)) > len(of_type) / 3]
        row["absent"] = " ".join(gene for gene in row["absent"].split() if gene not in high)
        if dropped or high or len(kept) < 3:
            print(len(kept), row["id"], row["short_name"], "dropped:", *(gene for gene, *_ in dropped), "high:", *high)
    with table.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
