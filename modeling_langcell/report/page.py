# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The report of an annotation: one HTML file."""

from datetime import date
from pathlib import Path

import anndata as ad
import pandas as pd

from ..annotation.clusters import MIXED, count_clusters
from ..annotation.ontology_backoff import UNKNOWN
from ..annotation.quality import InputQuality
from ..annotation.records import (
    count_answers,
    count_unknown,
    describe_error_rate,
    describe_input,
    describe_unknown,
    label_descriptions,
    unlike_every_candidate,
)
from ..io.columns import ANSWER, CELL_TYPE, CLUSTER_ANSWER, CLUSTER_LABEL, RUN, SCORE, require_column
from .cell_map import map_data
from .html import write_page
from .name_colours import NameColours
from .plots import Layout
from .repetition import facts, python_code
from .tables import (
    by_sample,
    comparison,
    composition,
    dot_plot,
    driving_genes,
    histograms,
    least_certain,
    names_and_shares,
)

_AGREED = 0.75  # Share of cells that must have the label of their cluster: otherwise clusters are not of one type.
#: The columns that say what the cells are, the one to use first, with what the page calls them and why.
_COLUMNS = {
    CLUSTER_ANSWER: (
        "answer of the cluster",
        "the type that the cells of a cluster agree on, a broader one where they are not sure, and unknown where no "
        "candidate fits",
    ),
    CLUSTER_LABEL: (
        "label of the cluster",
        "the candidate that fits all cells of a cluster best. Some candidate always fits best: check its markers below",
    ),
    ANSWER: (
        "answer",
        "the type of a cell where that is probable enough, else a broader one that is, and unknown where no candidate "
        "fits",
    ),
    CELL_TYPE: (
        "label",
        "the candidate that fits a cell best. Some candidate always fits best, even where none is right: check its "
        "markers below",
    ),
}


def write_report(
    adata: ad.AnnData,
    path: str | Path,
    layout: Layout,
    *,
    quality: InputQuality | None = None,
    genes: pd.DataFrame | None = None,
    expressed: ad.AnnData | None = None,
    reference: str | None = None,
    sample_key: str | None = None,
    name: str | None = None,
    command: str | None = None,
) -> Path:
    """
    Writes a report: a page with what the cells are, the markers of the labels, a map of the cells, the quality of the
    input, the certainty of labels and answers, and the code that repeats the run. The page is self-contained and opens
    offline.

    Args:
        adata: Annotated cells, as `LangCellAnnotator.annotate` or `read_annotation` (with embeddings) returns them.
        path: Path of the page.
        layout: Positions of the cells on the map.
        quality: Quality of the input, from `examine`.
        genes: Table of driving genes, from `explain`.
        expressed: Expression of the markers in the cells of the layout, from `express_markers`.
        reference: Column of `obs` with known labels to compare with.
        sample_key: Column of `obs` with samples, donors or conditions, whose compositions are compared.
        name: What the page calls the cells, such as the name of their file.
        command: The command that was run; by default the page shows Python code that does the same.

    Returns:
        The path.

    Raises:
        InputError: There is no such column, none of its labels is a candidate, or the page cannot be written.
    """
    run, obs = adata.uns[RUN], adata.obs
    if sample_key is not None:
        require_column(obs, sample_key)
    compared = None if reference is None else comparison(adata, reference)
    colour_of = NameColours(adata)
    columns = {column: title for column, (title, _) in _COLUMNS.items() if column in obs}
    main = _column_to_use(obs)
    columns = {main: columns[main]} | columns
    others = dict.fromkeys(filter(None, (sample_key, reference, run.get("cluster_key"))))
    unlabelled = int(obs[CELL_TYPE].isna().sum())
    shows_all = len(layout.rows) + unlabelled == len(obs)
    return write_page(
        path,
        "annotation.html",
        title=name or "LangCell annotation",
        origin=_origin(adata),
        run=run,
        summary=describe_input(adata) + (f" {unlabelled:,} cells have no known gene and no label." * bool(unlabelled)),
        headline={"column": main, "title": columns[main], "meaning": _COLUMNS[main][1]},
        parts=names_and_shares(obs[main], colour_of),
        samples=[] if sample_key is None else by_sample(obs[main], obs[sample_key], colour_of),
        sample_key=sample_key,
        tiles=_tiles(adata),
        quality=quality,
        histograms=[] if quality is None else histograms(quality),
        total=len(obs),
        shown="" if shows_all else f"The map shows {len(layout.rows):,} cells, chosen at random.",
        cells=map_data(adata, layout, columns | {str(key): str(key) for key in others}, colour_of, expressed),
        dots=None if expressed is None else dot_plot(expressed),
        composition=composition(obs, colour_of),
        answers=count_answers(obs),
        error_rate=describe_error_rate(run) if "error_rate" in run else "",
        unknown=describe_unknown(count_unknown(obs)),
        clusters=count_clusters(obs, str(run["cluster_key"])) if "cluster_key" in run else {},
        mixed=MIXED,
        comparison=compared,
        uncertain=least_certain(adata),
        genes=None if genes is None else driving_genes(genes),
        descriptions=label_descriptions(run),
        code=command or python_code(run),
        facts=facts(run),
    )


def _column_to_use(obs: pd.DataFrame) -> str:
    """Returns the column that says what the cells are: that of the clusters only if the cells agree with them."""
    agreed = CLUSTER_LABEL in obs and (obs[CLUSTER_LABEL].astype(str) == obs[CELL_TYPE].astype(str)).mean() >= _AGREED
    of_clusters = (CLUSTER_ANSWER, CLUSTER_LABEL) if agreed else ()
    return next(column for column in (*of_clusters, ANSWER, CELL_TYPE) if column in obs)


def _origin(adata: ad.AnnData) -> str:
    """Returns a line on where the page comes from."""
    run = adata.uns[RUN]
    tool = f"LangCell {run['versions']['modeling-langcell']}"
    return f"{adata.n_obs:,} cells, annotated by {tool} ({run['checkpoint'] or 'a model in memory'}); {date.today()}"


def _tiles(adata: ad.AnnData) -> list[dict[str, str]]:
    run, obs = adata.uns[RUN], adata.obs
    tiles = [{"value": f"{len(obs):,}", "caption": "cells"}]
    tiles.append({"value": f"{obs[CELL_TYPE].nunique()} of {len(run['labels'])}", "caption": "candidates found"})
    if ANSWER in obs:
        answered = (obs[ANSWER].notna() & (obs[ANSWER] != UNKNOWN)).mean()
        tiles.append(
            {
                "value": f"{answered:.0%}",
                "caption": f"of cells answered, {describe_error_rate(run)}",
            }
        )
    else:
        median = f"{obs[SCORE].median():.2f}" if obs[SCORE].notna().any() else "none"
        tiles.append({"value": median, "caption": "median score (not calibrated)"})
    if (unlike := unlike_every_candidate(adata)) is not None:
        tiles.append({"value": f"{unlike.mean():.0%}", "caption": "of cells unlike every candidate"})
    return tiles


__all__ = ["write_report"]
