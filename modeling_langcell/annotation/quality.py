# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checks of the cells that were annotated: depth, known genes, values, ambient RNA and novelty."""

import re
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..io.columns import ANSWER, CELL_TYPE, RUN
from ..model.count_values import LARGEST_LOGARITHM, recognise
from ..model.errors import Remedy
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.gene_matching import GeneMatch
from .records import PANEL, cell_options, known_genes, unlike_every_candidate
from .tissues import BLOOD

_BLOCKS, _BLOCK = 16, 256  # Up to 16 blocks of 256 cells, spread evenly, are examined.

_FEW_GENES = 200  # A cell with fewer genes is shallow.
_SHALLOW = 0.1  # Share of shallow cells above which there is a caution.
_LOST = 0.001  # Share of the counts from which an unknown gene is named.
_NAMED = 5  # Number of unknown genes that are named.
_MITOCHONDRIAL = re.compile(r"(?:^|[^A-Z0-9])MT-", re.IGNORECASE)
_MATCHED = 0.7  # Share of the median cell's counts in known genes below which there is a caution.
_AMBIENT = 0.1  # Share of ambient RNA from which there is a caution.
_SAME_TOTALS = 0.1  # Relative spread of the cells' totals below which they were normalised; real cells spread more.
_UNUSUAL = 0.2  # Share of cells of unusual novelty above which there is a caution.

# Limits of the estimate of ambient RNA.
_CELLS = 20  # Fewest cells of a label.
_EXPECTED = 10  # Fewest counts of a gene that the mixture alone would give the label.
_TIMES = 8  # Least ratio of the gene's share in another label to its share in this one.
_GENES = 10  # Fewest such genes.
_LEAST = 30  # Number of those genes, the ones with the fewest counts, that the estimate uses.


@dataclass(frozen=True)
class InputQuality:
    """
    Quality of the cells that were annotated.

    Args:
        cells: Number of examined cells, spread evenly over all.
        genes: Number of genes of the median cell.
        counts: Number of counts of the median cell; None where the values are not counts.
        ambient: Share of the counts that look like a mixture of all cells; None where it cannot be estimated.
        per_cell: For each examined cell the number of `genes`, the number of `counts` where the values are counts, and
            the share of `mitochondrial` counts where genes are called `MT-...`.
        cautions: Reasons to be careful, a sentence or two each: `str(caution)` names arguments as Python does,
            `caution.on_command_line()` as options.
    """

    cells: int
    genes: float
    counts: float | None
    ambient: float | None
    per_cell: pd.DataFrame
    cautions: tuple[Remedy, ...]


def examine(extractor: LangCellFeatureExtractor, cells: ad.AnnData, annotated: ad.AnnData) -> InputQuality:
    """
    Examines up to 4,096 of the cells that were annotated.

    Args:
        extractor: The checkpoint's feature extractor.
        cells: The cells, in memory or backed.
        annotated: Their annotation, as `LangCellAnnotator.annotate` or `read_annotation` returns it.
    """
    run, obs = annotated.uns[RUN], annotated.obs
    source, match = extractor.open(cells, **cell_options(run))
    starts = range(0, len(source), max(_BLOCK, -(-len(source) // _BLOCKS)))
    blocks = [range(start, min(start + _BLOCK, len(source))) for start in starts]
    rows = np.concatenate(blocks)
    values = sp.vstack([source.rows(block.start, block.stop) for block in blocks], format="csr")
    values.eliminate_zeros()  # Stored zeros are not counts.

    kind = source.kind.counts
    genes = values.getnnz(axis=1)
    totals = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    labels = obs[CELL_TYPE].cat.codes.to_numpy()[rows]
    ambient = ambient_share(values, labels) if kind == "raw" else None
    cautions = [
        *_gene_cautions(genes, known_genes(run), float(run["input"]["matched_counts"]), match.organism),
        *_lost_genes(values, match),
        *_value_cautions(values, totals, kind),
        *_ambient_cautions(ambient),
        *_novelty_cautions(annotated),
        *_candidate_cautions(annotated),
    ]
    per_cell = pd.DataFrame({"genes": genes}, index=annotated.obs_names[rows])
    if kind == "raw":
        per_cell["counts"] = totals
    if len(mitochondrial := _mitochondrial_genes(match)):
        values.data = source.kind.undo(values.data)
        of_all = np.asarray(values.sum(axis=1)).ravel()
        of_these = np.asarray(values[:, mitochondrial].sum(axis=1)).ravel()
        per_cell["mitochondrial"] = np.divide(of_these, of_all, out=np.zeros(len(of_all)), where=of_all > 0)
    counts = float(np.median(totals)) if kind == "raw" else None
    return InputQuality(len(rows), float(np.median(genes)), counts, ambient, per_cell, tuple(cautions))


def _gene_cautions(genes: np.ndarray, known: int, matched_counts: float, organism: str) -> list[Remedy]:
    found = []
    if (shallow := float((genes < _FEW_GENES).mean())) > _SHALLOW:
        found.append(
            Remedy(
                f"Low depth: {shallow:.0%} of the cells have fewer than {_FEW_GENES} genes, too few for a reliable "
                "label. Leave such cells out, or trust their labels less."
            )
        )
    if known < PANEL:
        found.append(
            Remedy(
                f"Few genes: only {known:,} that the checkpoint knows. If they are a selection, for example of "
                "variable genes, give all genes that were counted. No error rate of the answers is promised."
            )
        )
    if matched_counts < _MATCHED:
        found.append(
            Remedy(
                f"Unmatched genes: the known ones have only {matched_counts:.0%} of the median cell's counts. Check "
                f"that the names are {organism} Ensembl ids or gene symbols, all of one kind."
            )
        )
    return found


def _lost_genes(values: sp.csr_matrix, match: GeneMatch) -> list[Remedy]:
    """
    Returns a caution that names the genes with many counts that are not known. Mitochondrial ones are left out: NCBI
    has no Ensembl ids for them, and they tell the state of a cell rather than its type.
    """
    by_gene = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel()
    shares = np.where((match.token_ids < 0) & ~match.is_foreign, by_gene, 0) / max(by_gene.sum(), 1)
    many = np.argsort(-shares, kind="stable")[: (shares >= _LOST).sum()].tolist()
    lost = [gene for gene in many if not _is_mitochondrial(match, gene)]
    if not lost:
        return []
    named = ", ".join(f"{' / '.join(match.names_of(gene))} ({shares[gene]:.1%})" for gene in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    return [
        Remedy(
            f"Unknown genes with many of the counts: {named}{more}. If other names of them are known, put these in a "
            "column of var."
        )
    ]


def _mitochondrial_genes(match: GeneMatch) -> list[int]:
    return [gene for gene in range(len(match.token_ids)) if _is_mitochondrial(match, gene)]


def _is_mitochondrial(match: GeneMatch, gene: int) -> bool:
    return any(map(_MITOCHONDRIAL.search, match.names_of(gene)))


def _value_cautions(values: sp.csr_matrix, totals: np.ndarray, kind: str) -> list[Remedy]:
    if not values.nnz:
        return []
    largest = float(values.data.max())
    if kind == "raw" and largest <= 1:
        return [Remedy("Probably no counts: no value is above 1, so the expressed genes of a cell cannot be ranked.")]
    if kind == "raw" and len(totals) >= _CELLS and totals.std() < _SAME_TOTALS * totals.mean():
        return [
            Remedy(
                f"Probably normalised and rounded: all cells have about the same total ({totals.mean():,.0f}). Give "
                "the original counts."
            )
        ]
    if kind in ("corrected", "normalized") and largest < LARGEST_LOGARITHM and recognise(values) is None:
        return [
            Remedy(
                f"Small values: none is above {largest:.1f}, as in shallow cells, but also in logarithms. They were "
                f"read as {kind} counts, as you say. If they are logarithms, say so: {{option}}.",
                "counts",
                "log1p",
            )
        ]
    return []


def _ambient_cautions(ambient: float | None) -> list[Remedy]:
    if ambient is None or ambient < _AMBIENT:
        return []
    return [
        Remedy(
            f"Ambient RNA: about {ambient:.0%} of the counts, or more, look like a mixture of all cells: genes of one "
            "label are found in the cells of the others. Remove the background (SoupX, CellBender, DecontX), or check "
            "that the labels fit."
        )
    ]


def _novelty_cautions(annotated: ad.AnnData) -> list[Remedy]:
    unlike = unlike_every_candidate(annotated)
    if unlike is None or (share := float(unlike.mean())) <= _UNUSUAL:
        return []
    return [
        Remedy(
            f"Unlike the candidates: {share:.0%} of the cells are unlike every candidate. A type may be missing among "
            "the candidates, or the checkpoint may not know such cells."
        )
    ]


def _candidate_cautions(annotated: ad.AnnData) -> list[Remedy]:
    run = annotated.uns[RUN]
    if "from_catalogue" not in run:
        return []
    found = []
    if run.get("tissues_found"):
        tissues = [str(tissue) for tissue in run["tissues"] if tissue != BLOOD] or [BLOOD]
        there = "there" if tissues == [BLOOD] else f"there and in {BLOOD}"
        found.append(
            Remedy(
                f"Tissue: {' and '.join(tissues)}, judged by the markers of the cells, since none was named. The "
                f"candidates are the {len(run['labels'])} types that the catalogue has {there}. If that is wrong, set "
                "{option} to the right one.",
                "tissue",
            )
        )
    if ANSWER in annotated.obs:
        found.append(
            Remedy(
                "Candidates of the catalogue: the error rate was calibrated among a few named types. Among so many, "
                "more answers may be wrong. Name the types that may be present."
            )
        )
    return found


def ambient_share(counts: sp.csr_matrix, labels: np.ndarray) -> float | None:
    """
    Estimates the share of the counts that looks like a mixture of all cells.

    RNA that floats around the cells is counted with them (Young & Behjati, 2020, "SoupX"). A gene that a type does not
    express is therefore still counted in its cells, as often as its share in the mixture times the share of the mixture
    in the counts. Which genes a type does not express is unknown, so the estimate uses those with the fewest counts
    compared with what the mixture alone would give. It is therefore on the low side.

    Args:
        counts: `(cells, genes)` counts.
        labels: `(cells,)` number of each cell's label, -1 for none.

    Returns:
        The estimate for the median label, from 0 to 1; None where there are too few different labels, cells or counts.
    """
    numbers, sizes = np.unique(labels[labels >= 0], return_counts=True)
    numbers = numbers[sizes >= _CELLS]
    if len(numbers) < 2:
        return None
    label_counts = np.array([np.asarray(counts[labels == number].sum(axis=0)).ravel() for number in numbers])
    totals = label_counts.sum(axis=1, keepdims=True)
    mixture, shares = label_counts.sum(axis=0) / totals.sum(), label_counts / totals
    estimates = []
    for label in range(len(numbers)):
        expected = mixture * totals[label]
        elsewhere = np.delete(shares, label, axis=0).max(axis=0)
        unexpressed = np.flatnonzero((expected >= _EXPECTED) & (elsewhere >= _TIMES * shares[label]))
        if len(unexpressed) >= _GENES:
            ratios = label_counts[label, unexpressed] / expected[unexpressed]
            least = unexpressed[np.argsort(ratios)[:_LEAST]]
            estimates.append(label_counts[label, least].sum() / expected[least].sum())
    return float(np.median(estimates)) if estimates else None


__all__ = ["InputQuality", "ambient_share", "examine"]
