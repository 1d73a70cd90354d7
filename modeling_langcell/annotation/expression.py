# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The expression of the labels' markers in annotated cells: the first thing to check a label with."""

from collections.abc import Iterable, Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..io.columns import CELL_TYPE, RUN
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..ontology import cell_type, id_of
from .records import candidate_labels, cell_options, label_descriptions

_TARGET_COUNTS = 1e4
_BLOCK = 4096  # Cells whose counts are in memory at once.
_LABELS, _MARKERS = 20, 3  # The most frequent labels, and the best markers of each.
MARKERS = "markers"


def express(
    extractor: LangCellFeatureExtractor,
    cells: ad.AnnData,
    annotated: ad.AnnData,
    genes: Iterable[str],
    rows: np.ndarray | None = None,
) -> ad.AnnData:
    """
    Returns the expression of genes, read as the annotation read the cells: by any name of a gene, and whatever array
    holds the counts.

    Args:
        extractor: The checkpoint's feature extractor.
        cells: The cells, in memory or backed.
        annotated: Their annotation.
        genes: Symbols; those that the cells do not measure are left out.
        rows: `(chosen,)` row numbers of cells, in order; all cells by default.

    Returns:
        An AnnData of the chosen cells with the annotation's `obs` and log(1 + counts per 10,000), float32.

    Raises:
        InputError: The cells are not annotated, or cannot be read.
    """
    candidate_labels(annotated)
    source, match = extractor.open(cells, **cell_options(annotated.uns[RUN]))
    measured = {*match.token_ids.tolist()}
    token_ids = {gene: extractor.genes.id_of(gene) for gene in dict.fromkeys(genes)}
    chosen = {gene: number for gene, number in token_ids.items() if number is not None and number in measured}
    rows = np.arange(len(source)) if rows is None else np.asarray(rows)
    parts = [sp.csr_matrix((0, len(chosen)), dtype=np.float32)]
    for start in range(0, len(source), _BLOCK):
        inside = rows[(rows >= start) & (rows < start + _BLOCK)]
        if not len(inside):
            continue
        matrix = source.rows(start, min(start + _BLOCK, len(source)))[inside - start]
        matrix.data = source.kind.undo(matrix.data)
        totals = np.asarray(matrix.sum(axis=1)).ravel()
        per_cell = np.divide(_TARGET_COUNTS, totals, out=np.zeros(len(totals)), where=totals > 0)
        counts = extractor.by_gene(matrix, match)[:, [*chosen.values()]]
        parts.append(counts.multiply(per_cell[:, None]).tocsr().log1p().astype(np.float32))
    return ad.AnnData(
        sp.vstack(parts, format="csr"), obs=annotated.obs.iloc[rows].copy(), var=pd.DataFrame(index=[*chosen])
    )


def express_markers(
    extractor: LangCellFeatureExtractor, cells: ad.AnnData, annotated: ad.AnnData, rows: np.ndarray | None = None
) -> ad.AnnData:
    """
    Returns the expression of the markers of the most frequent labels.

    Args: same as for `express`.

    Returns:
        As `express`, with the measured markers of each label, at most three, in `uns["markers"]`.

    Raises:
        InputError: Same as for `express`.
    """
    found = annotated.obs[CELL_TYPE].value_counts()
    frequent = [str(label) for label in found[found > 0].index[:_LABELS]]
    by_label = {label: markers_of(annotated, label) for label in frequent}
    expressed = express(extractor, cells, annotated, (gene for own in by_label.values() for gene in own), rows)
    shown = {label: measured_markers(own, expressed.var_names, _MARKERS) for label, own in by_label.items()}
    expressed = expressed[:, [*dict.fromkeys(gene for own in shown.values() for gene in own)]].copy()
    expressed.uns[MARKERS] = shown
    return expressed


def markers_of(annotated: ad.AnnData, name: str) -> list[str]:
    """Returns the markers of a label, the best first: those that the annotation read, or else the catalogue's."""
    candidate_labels(annotated)
    described = label_descriptions(annotated.uns[RUN]).get(name)
    own = list(described.markers or ()) if described is not None else []
    known = cell_type(id_of(name))
    return own or ([] if known is None else list(known.markers))


def measured_markers(markers: Sequence[str], measured: Iterable[str], number: int) -> list[str]:
    """Returns the first markers of those that are measured."""
    there = set(measured)
    return [gene for gene in markers if gene in there][:number]


__all__ = ["MARKERS", "express", "express_markers", "markers_of", "measured_markers"]
