# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""One annotation run, chunk by chunk, shared by annotation in memory and annotation of files."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..io.columns import CLUSTER, probability_columns
from ..io.progress import progress_bar
from ..model.errors import InputError
from ..model.feature_extraction_langcell import RankedCells
from ..model.zero_shot import Shortlist, read_cells
from ..ontology import Labels, short_name
from . import neighbours
from .clusters import ClusterLabels, require_clusters
from .neighbours import LEAST_CELLS, SMOOTHING
from .predictions import DecisionRule, Predictions
from .predictor import Predictor
from .tissues import find_tissues

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedCells:
    """
    An annotated chunk of cells. Cells without known genes have missing values.

    Args:
        embeds: `(cells, width)` float32, L2-normalised.
        scores: `(cells, labels)` float32 from 0 to 1.
        predictions: The predictions that follow from the scores.
    """

    embeds: np.ndarray
    scores: np.ndarray
    predictions: Predictions

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays by name; the scores are `(labels, cells)`, the order in which they are merged."""
        return {"embeds": self.embeds, "scores": np.ascontiguousarray(self.scores.T), **vars(self.predictions)}


class AnnotationRun:
    """
    An annotation of the cells of an AnnData, in chunks.

    Args:
        predictor: The checkpoint.
        adata: Cells with counts, in memory or backed. They are read and not changed.
        cell_options: Arguments of `LangCellFeatureExtractor` that say how the cells are read.
        labels, alpha, shortlist, check, error_rate, cluster_key, cluster, smooth, tissue, with_markers: Same as for
            `LangCellAnnotator.annotate`.
        candidates: `marker_weight` and `accept_text`, same as there.

    Raises:
        InputError: Same as for `LangCellAnnotator.annotate`.
    """

    def __init__(
        self,
        predictor: Predictor,
        adata: ad.AnnData,
        cell_options: Mapping[str, Any],
        labels: Labels | None = None,
        *,
        alpha: float | None = None,
        shortlist: Shortlist = "auto",
        check: int = 0,
        error_rate: float | None = None,
        cluster_key: str | None = None,
        cluster: bool = False,
        smooth: bool = False,
        tissue: str | Sequence[str] | None = None,
        with_markers: bool = True,
        **candidates: Any,
    ):
        if check < 0:
            raise InputError(f"check={check} is not a number of cells: give 0 or more.")
        if cluster and cluster_key is not None:
            raise InputError("Give either cluster_key, for clusters that the file has, or cluster, to make them.")
        if cluster or smooth:
            neighbours.require_packages()
        if cluster and adata.n_obs < 3:
            raise InputError(f"There are {adata.n_obs} cells: clusters need at least 3.")
        if cluster_key is not None:
            require_clusters(adata.obs, cluster_key)
        self.predictor, self.check = predictor, check
        self.cluster_key, self.makes_clusters = CLUSTER if cluster else cluster_key, cluster
        #: True if the scores are smoothed over each cell's neighbours.
        self.smooths = smooth and adata.n_obs >= LEAST_CELLS
        if smooth and not self.smooths:
            logger.warning(
                "The scores are not smoothed: with only %d cells, neighbours are often of other types. Smoothing helps "
                "from %d cells.",
                adata.n_obs,
                LEAST_CELLS,
            )
        from_catalogue = labels is None and (tissue is not None or not predictor.has_labels)
        judges_tissue = from_catalogue and tissue is None and with_markers
        chunks = predictor.chunks(adata, **cell_options)
        if judges_tissue:
            tissue = find_tissues(predictor.processor, chunks)
        self._candidates_from = _origin(from_catalogue, tissue, judges_tissue)
        self.scorer = predictor.scorer(labels, alpha, shortlist, tissue=tissue, with_markers=with_markers, **candidates)
        self.rule = DecisionRule(self.scorer, error_rate)
        _check_columns(probability_columns(self.rule.labels), adata.obs_names.name)
        self.chunks = chunks.watching(self.scorer.marker_ids)

    def annotate(
        self, number: int, ranked: RankedCells, advance: Callable[[int], Any] = lambda cells: None
    ) -> AnnotatedCells:
        """
        Annotates a chunk.

        Args:
            number: Number of the chunk.
            ranked: The chunk's cells.
            advance: Called with the number of cells read since the last call.
        """
        scorer, budget, device = self.scorer, self.scorer.budget, self.predictor.device
        embeds = np.full((len(ranked), self.predictor.width), np.nan, dtype=np.float32)
        scores = np.full((len(ranked), len(scorer.descriptions)), np.nan, dtype=np.float32)
        max_cosine = np.full(len(ranked), np.nan, dtype=np.float32)
        shortlist_is_exact = np.zeros(len(ranked), dtype=bool)
        best_of_all = np.full(len(ranked), -1, dtype=np.int32)
        lead = np.full(len(ranked), np.nan)
        for rows, found in read_cells(ranked, scorer, budget, device):
            if found.lead is not None:
                lead[rows] = found.lead.numpy()
            embeds[rows], scores[rows] = found.embeds.cpu().numpy(), found.scores.cpu().numpy()
            max_cosine[rows] = found.max_cosine.cpu().numpy()
            shortlist_is_exact[rows] = found.shortlist_is_exact.numpy()
            advance(len(rows))
        checked = _rows_to_check(self.chunks.rows(number), self.chunks.n_cells, self.check)
        if self.rule.has_shortlist and len(checked):
            for rows, found in read_cells(ranked, scorer.reading(None), budget, device, checked):
                best_of_all[rows] = found.scores.argmax(dim=1).cpu().numpy()
        if without_genes := int(ranked.without_genes.sum()):
            logger.info("%d cells of chunk %d have no known gene and get no label.", without_genes, number)
        fit = self.rule.fit(lead)
        predictions = self.rule(scores, max_cosine, shortlist_is_exact, best_of_all, ranked.matched_counts, fit)
        return AnnotatedCells(embeds, scores, predictions)

    def annotate_all(self) -> list[AnnotatedCells]:
        """Annotates all chunks, with a progress bar."""
        with progress_bar() as progress:
            task = progress.add_task("Cells", total=self.chunks.n_cells)
            return [
                self.annotate(number, ranked, lambda n: progress.advance(task, n))
                for number, ranked in enumerate(self.chunks)
            ]

    def by_chunk(self, scores: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the `(cells, labels)` scores of all cells chunk by chunk."""
        for number in range(len(self.chunks)):
            rows = self.chunks.rows(number)
            yield scores[rows.start : rows.stop]

    @cached_property
    def graph(self) -> sp.csr_matrix:
        """The neighbours of all cells; it is found when it is first needed, since it takes a while."""
        logger.info("Finding the neighbours of all cells.")
        return neighbours.neighbour_graph(self.chunks)

    def smooth(self, read: Callable[[slice], np.ndarray], out: np.ndarray) -> None:
        """
        Smooths the scores over the neighbours of each cell.

        Args:
            read: Returns the `(some labels, cells)` scores of a slice of the labels.
            out: `(labels, cells)` array for the smoothed scores.
        """
        neighbours.smooth(read, self.graph, SMOOTHING, out)

    def revise(self, predictions: Predictions, scores: Iterable[np.ndarray]) -> Predictions:
        """
        Makes the predictions anew from smoothed scores.

        Args:
            predictions: The predictions before.
            scores: `(cells, labels)` smoothed scores of each chunk, in order.
        """
        parts = []
        for number, chunk_scores in enumerate(scores):
            before = predictions.take(self.chunks.rows(number))
            nothing_proven = np.zeros_like(before.shortlist_is_exact)
            revised = self.rule(
                chunk_scores, 1 - before.novelty, nothing_proven, before.best_of_all, before.matched_counts, before.fit
            )
            parts.append(revised)
        return Predictions.concatenate(parts)

    def write_obs(self, obs: pd.DataFrame, predictions: Predictions, scores: Iterable[np.ndarray]) -> None:
        """
        Writes predictions, and the labels of the clusters where there are any, into `obs`.

        Args:
            obs: `obs` of all cells.
            predictions: Predictions for all cells.
            scores: `(cells, labels)` scores of each chunk, in order. They are read only where there are clusters.
        """
        self.rule.write(obs, predictions)
        if self.makes_clusters:
            obs[CLUSTER] = pd.Categorical(neighbours.cluster(self.graph))
        if self.cluster_key is not None:
            labels = ClusterLabels(obs[self.cluster_key], self.rule)
            for number, chunk_scores in enumerate(scores):
                labels.add(self.chunks.rows(number), chunk_scores)
            labels.write(obs, predictions)

    def record(self, predictions: Predictions) -> dict[str, Any]:
        """
        Returns the record for `uns["langcell"]`: everything needed to repeat the run, and a summary of its shortlist.
        """
        return self.predictor.run_record(self.chunks, predictions.matched_counts) | {
            "labels": np.array(list(self.scorer.descriptions)),
            "short_names": np.array([short_name(label) for label in self.scorer.descriptions]),
            "descriptions": np.array([_one_text_per_line(texts) for texts in self.scorer.descriptions.values()]),
            **(
                {}
                if self.cluster_key is None
                else {"cluster_key": self.cluster_key, "clusters_made": self.makes_clusters}
            ),
            **({"smoothing": SMOOTHING} if self.smooths else {}),
            **self._candidates_from,
            **self._genes(),
            **self.scorer.settings,
            **self.rule.settings,
            **self.rule.summarize_shortlist(predictions),
        }

    def _genes(self) -> dict[str, np.ndarray]:
        """Returns the symbols of the genes that mark each label (`markers`) and that it lacks (`absent`)."""
        named = self.scorer.markers.values()
        symbol = self.predictor.processor.feature_extractor.genes.symbol_of
        kinds = {"markers": [one.present for one in named], "absent": [one.absent for one in named]}
        return {kind: np.array([" ".join(map(symbol, ids)) for ids in found]) for kind, found in kinds.items() if found}


def _origin(from_catalogue: bool, tissue: str | Sequence[str] | None, found: bool) -> dict[str, Any]:
    """Returns where the candidates come from, for the record; empty if they were named, or are a checkpoint's own."""
    if not from_catalogue:
        return {}
    origin: dict[str, Any] = {"from_catalogue": True}
    if tissue:
        origin |= {"tissues": np.array([tissue] if isinstance(tissue, str) else list(tissue)), "tissues_found": found}
    return origin


def _check_columns(columns: list[str], index: Any) -> None:
    """
    Checks, before any work, that a table with these columns can be written to a file.

    Raises:
        InputError: A column has the name of the index or of another column, or a name that HDF5 does not accept.
    """
    taken = {"_index" if index is None else index, ".", ""}
    for number, column in enumerate(columns):
        if column in taken:
            raise InputError(f"A table cannot have a column {column!r}: give label {number + 1} another name.")
        taken.add(column)


def _one_text_per_line(texts: Sequence[str]) -> str:
    """
    Joins a label's texts with line breaks. Line breaks in a text become spaces, which a tokenizer reads the same way.
    """
    return "\n".join(" ".join(text.splitlines()) for text in texts)


def _rows_to_check(rows: range, n_cells: int, check: int) -> np.ndarray:
    """Returns the rows of a chunk, counted from its first, that belong to `check` rows spread evenly over all."""
    chosen = np.unique(np.linspace(0, n_cells - 1, min(check, n_cells)).astype(int))
    return chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start


__all__ = ["AnnotatedCells", "AnnotationRun"]
