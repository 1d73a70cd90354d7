# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What of the cells that were read should make one careful with what is found of them."""

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from ..io.columns import CELL_TYPE, NOVELTY, RUN
from ..model.feature_extraction_langcell import LangCellFeatureExtractor

_BLOCKS, _BLOCK = 16, 256  # What is looked at: so many stretches of so many cells, spread evenly.

_FEW_GENES, _SHALLOW = (
    200,
    0.1,
)  # A cell with fewer genes says little; and the share of such cells that is worth a word.
_PANEL = 5000  # Fewer known genes than this are a selection, or a small panel.
_MATCHED = 0.7  # Share of the median cell's counts in known genes, below which much is not read.
_AMBIENT = 0.1
_ALIKE = (
    0.1  # Totals that spread no more than this share of their mean were made alike: those of real cells do by more.
)
_UNLIKE = 0.2  # Share of cells that are less like any candidate than cells of known types usually are.

#: For the share of ambient RNA: of a label so many cells, of a gene so many counts expected of nothing but the mixture,
#: another label with so many times its share; and of such genes so many, the least of which are taken.
_CELLS, _EXPECTED, _TIMES, _GENES, _LEAST = 20, 10, 8, 10, 30


@dataclass(frozen=True)
class InputQuality:
    """
    What cells look like.

    Args:
        cells: How many were looked at, spread evenly over all.
        genes: Of the median cell.
        counts: Of the median cell; none where the values are no counts.
        ambient: Share of the counts that look like a mixture of all cells; none where that cannot be told.
        cautions: What should make one careful, a sentence or two each.
    """

    cells: int
    genes: float
    counts: float | None
    ambient: float | None
    cautions: tuple[str, ...]


def examine(
    extractor: LangCellFeatureExtractor,
    cells: ad.AnnData,
    annotated: ad.AnnData,
    **where: Any,
) -> InputQuality:
    """
    Looks at some of the cells that were annotated.

    Args:
        extractor: The checkpoint's.
        cells: In memory or backed.
        annotated: What was found of them, as `LangCellAnnotator.annotate` or `read_annotation` gives it.
        where: `layer`, `use_raw`, `gene_column`, as they were annotated.
    """
    source, match = extractor.open(cells, **where)
    starts = range(0, len(source), max(_BLOCK, -(-len(source) // _BLOCKS)))
    blocks = [range(start, min(start + _BLOCK, len(source))) for start in starts]
    rows = np.concatenate(blocks)
    values = sp.vstack([source.rows(block.start, block.stop) for block in blocks], format="csr")
    values.eliminate_zeros()  # Those that are stored were not counted either.

    run, obs = annotated.uns[RUN], annotated.obs
    kind = str(run["input"]["counts"])
    genes = values.getnnz(axis=1)
    totals = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    labels = obs[CELL_TYPE].cat.codes.to_numpy()[rows]
    ambient = ambient_share(values, labels) if kind == "raw" else None
    cautions = [
        *_of_genes(genes, int((match.token_ids >= 0).sum()), float(run["input"]["matched_counts"])),
        *_of_values(values, totals, kind),
        *_of_ambient(ambient),
        *_of_novelty(annotated),
    ]
    counts = float(np.median(totals)) if kind == "raw" else None
    return InputQuality(len(rows), float(np.median(genes)), counts, ambient, tuple(cautions))


def _of_genes(genes: np.ndarray, known: int, matched_counts: float) -> list[str]:
    found = []
    if (few := float((genes < _FEW_GENES).mean())) > _SHALLOW:
        found.append(
            f"Low depth: {few:.0%} of the cells have fewer than {_FEW_GENES} genes, which says little of them. "
            "Leave such cells out, or trust their labels less."
        )
    if known < _PANEL:
        found.append(
            f"Few genes: only {known:,} that the checkpoint knows. If they are a selection, of variable genes for "
            "instance, give all genes that were counted."
        )
    if matched_counts < _MATCHED:
        found.append(
            f"Unmatched genes: the known ones have only {matched_counts:.0%} of the median cell's counts. Look whether "
            "their names are human Ensembl ids or gene symbols, all of one kind."
        )
    return found


def _of_values(values: sp.csr_matrix, totals: np.ndarray, kind: str) -> list[str]:
    if not values.nnz:
        return []
    largest = float(values.data.max())
    if kind == "raw" and largest <= 1:
        return ["Probably no counts: no value is above 1, so genes that were counted at all have no order."]
    if kind == "raw" and len(totals) >= _CELLS and totals.std() < _ALIKE * totals.mean():
        return [
            f"Probably normalised and rounded: all cells have about the same total ({totals.mean():,.0f}). Give the "
            "counts as they were."
        ]
    if kind == "normalized" and largest < 16:
        return [
            f"Probably logarithms: no value is above {largest:.1f}, though they were said to be normalised counts. "
            "If they are logarithms, say so: counts='log1p'."
        ]
    return []


def _of_ambient(ambient: float | None) -> list[str]:
    if ambient is None or ambient < _AMBIENT:
        return []
    return [
        f"Ambient RNA: about {ambient:.0%} of the counts, or more, look like a mixture of all cells, in which genes of "
        "one label are found in the cells of the others. Remove the background (SoupX, CellBender, DecontX), or look "
        "whether the labels fit."
    ]


def _of_novelty(annotated: ad.AnnData) -> list[str]:
    run = annotated.uns[RUN]
    if "usual_novelty" not in run or NOVELTY not in annotated.obs:
        return []
    if (unlike := float((annotated.obs[NOVELTY] > run["usual_novelty"]).mean())) <= _UNLIKE:
        return []
    return [
        f"Unlike the candidates: {unlike:.0%} of the cells are less like any candidate than cells of known types "
        "usually are. A type may be missing among the candidates, or the checkpoint does not know such cells."
    ]


def ambient_share(counts: sp.csr_matrix, labels: np.ndarray) -> float | None:
    """
    How much of the counts looks like a mixture of all cells.

    What floats in a droplet around a cell is counted with it (Young & Behjati, 2020, "SoupX"). A gene that a type does
    not express is counted in its cells all the same, as often as the mixture has it, times the share of the mixture.
    Which genes a type does not express is not known; those are taken that are counted least, beside what the mixture
    alone would give, so that the share is rather too small.

    Args:
        counts: `(cells, genes)`.
        labels: `(cells,)` number of each cell's label, -1 for none.

    Returns:
        The share of the median label, from 0 to 1; none where there are too few labels that differ, cells, or counts.
    """
    numbers, sizes = np.unique(labels[labels >= 0], return_counts=True)
    numbers = numbers[sizes >= _CELLS]
    if len(numbers) < 2:
        return None
    of_label = np.array([np.asarray(counts[labels == number].sum(axis=0)).ravel() for number in numbers])
    totals = of_label.sum(axis=1, keepdims=True)
    mixture, shares = of_label.sum(axis=0) / totals.sum(), of_label / totals
    found = []
    for label in range(len(numbers)):
        expected = mixture * totals[label]
        elsewhere = np.delete(shares, label, axis=0).max(axis=0)
        telling = np.flatnonzero((expected >= _EXPECTED) & (elsewhere >= _TIMES * shares[label]))
        if len(telling) >= _GENES:
            ratios = of_label[label, telling] / expected[telling]
            least = telling[np.argsort(ratios)[:_LEAST]]
            found.append(of_label[label, least].sum() / expected[least].sum())
    return float(np.median(found)) if found else None


__all__ = ["InputQuality", "ambient_share", "examine"]
