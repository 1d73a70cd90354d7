# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The labelled rows that `langcell-mini` was trained on, for baselines that learn from the same cells."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import scipy.sparse as sp

from modeling_langcell.corpus.profiles import draw_cells
from modeling_langcell.corpus.sources import cell_facts
from modeling_langcell.eval.baselines import counts_by_gene, restrict_to_genes
from modeling_langcell.model.errors import InputError
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor
from modeling_langcell.ontology import ancestors, depth, id_of

_FOLDERS = ("train", "more/cells", "more/profiles")
#: Most rows of one type of one source: types count about equally.
MOST_ROWS = 60


class Rows(NamedTuple):
    """
    Rows of a source.

    Args:
        counts: `(rows, vocabulary)` counts by gene.
        types: `(rows,)` ids of their types.
        genes: Sorted ids of the genes that were measured.
    """

    counts: sp.csr_matrix
    types: np.ndarray
    genes: np.ndarray


def training_files(data: Path) -> list[Path]:
    """Returns the files of the training, which are in the folders `train`, `more/cells` and `more/profiles`."""
    return sorted(path for folder in _FOLDERS for path in (data / folder).glob("*.h5ad"))


def read_rows(path: Path, extractor: LangCellFeatureExtractor, seed: int) -> Rows:
    """Reads the rows of a source: at most 60 of a type, and for each average of cells five that are drawn from it."""
    adata = ad.read_h5ad(path)
    facts = cell_facts(adata.obs, path.stem)
    counts, genes = counts_by_gene(adata, extractor, {})
    counts, row_of = draw_cells(counts, facts["profile"].to_numpy(), seed)
    types = facts["cell_type"].to_numpy()[row_of]
    order = np.random.default_rng(seed).permutation(len(types))
    chosen = np.concatenate([order[types[order] == one][:MOST_ROWS] for one in np.unique(types)])
    return Rows(counts[chosen], types[chosen], genes)


def types_seen(sources: Iterable[Rows]) -> frozenset[str]:
    """Returns the ids of the types that have rows, and of all types above them."""
    types = {one for source in sources for one in source.types if one.startswith("CL:")}
    return frozenset(types.union(*map(ancestors, types)))


def rows_of(sources: Iterable[Rows], candidates: Iterable[str], genes: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
    """
    Returns the rows of some types. A row belongs to the candidate that is its type, or to the nearest one above it.

    Args:
        sources: The rows.
        candidates: Names of the types.
        genes: Ids of the genes to keep. A source that measured less than half of them is left out.

    Returns:
        `(rows, vocabulary)` counts, and the name of each row's candidate.

    Raises:
        InputError: No candidate has rows.
    """
    by_id = {term: str(name) for name in candidates if (term := id_of(str(name))) is not None}
    counts, labels = [], []
    for source in sources:
        nearest = {one: nearest_candidate(one, by_id) for one in np.unique(source.types)}
        own = np.array([nearest[one] for one in source.types])
        if (own != "").any() and len(np.intersect1d(source.genes, genes)) >= len(genes) / 2:
            counts.append(source.counts[own != ""])
            labels.append(own[own != ""])
    if not counts:
        named = ", ".join(map(str, candidates))
        raise InputError(f"No row of the training is of the types {named}: name the folder with --data.")
    return restrict_to_genes(sp.vstack(counts).tocsr(), genes), np.concatenate(labels)


def nearest_candidate(term: str, candidates: dict[str, str]) -> str:
    """Returns the candidate, of a mapping by id, that is a term or the deepest one above it; empty if there is none."""
    if term in candidates:
        return candidates[term]
    above = ancestors(term) & candidates.keys() if term.startswith("CL:") else ()
    return candidates[max(above, key=depth)] if above else ""
