# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The report of an annotation: one HTML file."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from ..annotation.clusters import MIXED, count_clusters
from ..annotation.metrics import agreement, compare, describe_agreement
from ..annotation.ontology_backoff import UNKNOWN
from ..annotation.predictions import UNLIKE
from ..annotation.quality import InputQuality
from ..annotation.records import (
    count_answers,
    count_unknown,
    describe_error_rate,
    describe_input,
    describe_unknown,
    label_colours,
    label_descriptions,
    unlike_every_candidate,
)
from ..io.colours import colours
from ..io.columns import ANSWER, CELL_TYPE, MARGIN, NOVELTY, RUN, SCORE, SECOND
from ..model.prompts import Description
from ..model.zero_shot import SHORTLIST
from .html import write_page
from .plots import Layout

_LEAST_CERTAIN = 100  # Cells in the table of the least certain cells.
_GENES = 10  # Genes shown for each label.
_COLOURED = 20  # Names that get their own colour.
_CLOSE = 0.1  # A margin below this is a reason for uncertainty.
_OTHER_COLOUR = "#9aa4af"
_RAMP = ("#3b7dd8", "#9a6fb0", "#e0453a")  # From low to high; visible on white and on black.


def write_report(
    adata: ad.AnnData,
    path: str | Path,
    layout: Layout,
    *,
    quality: InputQuality | None = None,
    genes: pd.DataFrame | None = None,
    reference: str | None = None,
    command: str | None = None,
) -> Path:
    """
    Writes a report: a page with the input, a map of the cells, their labels and answers with their certainty, the
    genes that drive them, and the code that repeats the run. The page is self-contained and opens offline.

    Args:
        adata: Annotated cells, as `LangCellAnnotator.annotate` or `read_annotation` (with embeddings) returns them.
        path: Path of the page.
        layout: Positions of the cells on the map.
        quality: Quality of the input, from `examine`.
        genes: Table of driving genes, from `explain`.
        reference: Column of `obs` with known labels to compare with.
        command: The command that was run; by default the page shows Python code that does the same.

    Returns:
        The path.

    Raises:
        InputError: There is no such column, none of its labels is a candidate, or the page cannot be written.
    """
    run, obs = adata.uns[RUN], adata.obs
    comparison = None if reference is None else _comparison(adata, reference)
    summary = describe_input(adata)
    if unlabelled := int(obs[CELL_TYPE].isna().sum()):
        summary += f" {unlabelled:,} cells have no known gene and no label."
    shows_all = len(layout.rows) + unlabelled == len(obs)
    sample = "" if shows_all else f"The map shows {len(layout.rows):,} cells, chosen at random."
    return write_page(
        path,
        "annotation.html",
        title="LangCell annotation",
        run=run,
        summary=summary,
        tiles=_tiles(adata),
        quality=quality,
        total=len(obs),
        sample=sample,
        cells=_cells(adata, layout, reference),
        composition=_composition(obs),
        answers=count_answers(obs),
        error_rate=describe_error_rate(run) if "error_rate" in run else "",
        unknown=describe_unknown(count_unknown(obs)),
        clusters=count_clusters(obs, str(run["cluster_key"])) if "cluster_key" in run else {},
        mixed=MIXED,
        comparison=comparison,
        uncertain=_least_certain(adata),
        genes=None if genes is None else _genes(genes),
        descriptions=label_descriptions(run),
        code=command or _python_code(run),
        facts=_facts(run),
    )


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


# ---------------------------------------------------------------------- the map


def _cells(adata: ad.AnnData, layout: Layout, reference: str | None) -> dict[str, Any]:
    """Returns the data of the map: row, name and position (0 to 1) of each drawn cell, and the views to colour by."""
    run, obs = adata.uns[RUN], adata.obs.iloc[layout.rows]
    low = layout.coordinates.min(axis=0, initial=np.inf)
    extent = np.maximum(layout.coordinates.max(axis=0, initial=-np.inf) - low, 1e-9)
    x, y = ((layout.coordinates - low) / extent).round(4).T.tolist()
    own = dict(zip(adata.obs[CELL_TYPE].cat.categories, label_colours(adata), strict=True))
    views = [_by_name("label", obs[CELL_TYPE], own)]
    if ANSWER in obs:
        views.append(_by_name("answer", obs[ANSWER]))
    views.append(_by_number("uncertainty", 1 - obs[SCORE], (0, 1), ("certain", "uncertain")))
    if NOVELTY in obs:
        usual = float(run.get("usual_novelty", obs[NOVELTY].median()))
        most = max(usual, float(obs[NOVELTY].quantile(0.99)))
        views.append(_by_number("novelty", obs[NOVELTY], (0, most), ("like a candidate", "unlike all candidates")))
    for column in dict.fromkeys(filter(None, (reference, run.get("cluster_key")))):
        views.append(_by_name(str(column), obs[column].astype("string").astype("category")))
    return {
        "rows": layout.rows.tolist(),
        "names": obs.index.astype(str).tolist(),
        "x": x,
        "y": y,
        "views": views,
        "ramp": _RAMP,
        "other": _OTHER_COLOUR,
    }


def _by_name(title: str, values: pd.Series, own: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Returns a view by name, the most frequent first; `own` has the colours of names that have some."""
    sizes = values.value_counts()
    sizes = sizes[sizes > 0]
    palette = [*colours(min(len(sizes), _COLOURED)), *[_OTHER_COLOUR] * (len(sizes) - _COLOURED)]
    by_name = dict(zip(sizes.index.astype(str), palette, strict=True)) if own is None else own
    names = [
        {"name": str(name), "cells": int(size), "colour": _OTHER_COLOUR if name == UNKNOWN else by_name[str(name)]}
        for name, size in sizes.items()
    ]
    return {"title": title, "names": names, "codes": sizes.index.get_indexer(pd.Index(values.astype(object))).tolist()}


def _by_number(title: str, values: pd.Series, limits: tuple[float, float], ends: tuple[str, str]) -> dict[str, Any]:
    rounded = values.astype(float).round(3).astype(object)
    return {"title": title, "values": rounded.where(values.notna(), None).tolist(), "range": limits, "ends": ends}


# ---------------------------------------------------------------------- the tables


def _composition(obs: pd.DataFrame) -> list[dict[str, Any]]:
    found = obs.groupby(CELL_TYPE, observed=True)[SCORE].agg(["size", "median"])
    found = found.sort_values("size", ascending=False, kind="stable")
    answered = obs[ANSWER] != UNKNOWN if ANSWER in obs else pd.Series(False, index=obs.index)
    answered = answered.groupby(obs[CELL_TYPE], observed=True).mean()
    return [
        {
            "label": label,
            "cells": int(cells),
            "share": cells / len(obs),
            "score": score,
            "answered": float(answered[label]),
        }
        for label, cells, score in found.itertuples()
    ]


def _comparison(adata: ad.AnnData, reference: str) -> dict[str, Any]:
    compared, scores = compare(adata, reference), agreement(adata, reference)
    truth, predicted = compared.known, compared.found
    names = sorted(set(truth) | set(predicted))
    shares = confusion_matrix(truth, predicted, labels=names, normalize="true")
    rows = [
        {"name": name, "cells": int((truth == name).sum()), "shares": row.tolist()}
        for name, row in zip(names, shares, strict=True)
    ]
    return {
        "reference": reference,
        "names": names,
        "rows": rows,
        "sentences": describe_agreement(scores, reference),
        **scores,
    }


def _least_certain(adata: ad.AnnData) -> dict[str, Any]:
    """Returns the cells with the lowest scores, with reasons."""
    obs, unlike = adata.obs, unlike_every_candidate(adata)
    labelled = np.flatnonzero(obs[SCORE].notna())
    rows = labelled[np.argsort(obs[SCORE].to_numpy()[labelled], kind="stable")][:_LEAST_CERTAIN]
    found = []
    for row, cell in zip(rows.tolist(), obs.iloc[rows].itertuples(), strict=True):
        second = getattr(cell, SECOND, "")
        reasons = []
        if unlike is not None and unlike.iloc[row]:
            reasons.append(UNLIKE)
        if second and getattr(cell, MARGIN) < _CLOSE:
            reasons.append("two candidates with similar scores")
        found.append(
            {
                "row": row,
                "cell": str(cell.Index),
                "best": getattr(cell, CELL_TYPE),
                "score": getattr(cell, SCORE),
                "second": second,
                "margin": getattr(cell, MARGIN),
                "answer": getattr(cell, ANSWER, ""),
                "novelty": getattr(cell, NOVELTY, None),
                "reason": "; ".join(reasons) or "low score",
            }
        )
    caption = f"The {len(found):,} cells with the lowest scores, of {len(labelled):,}."
    return {"rows": found, "caption": caption}


def _genes(explained: pd.DataFrame) -> list[dict[str, Any]]:
    most = explained.groupby("label")["contribution"].transform("max")
    explained = explained.assign(share=explained["contribution"] / most)
    return [
        {
            "label": label,
            "cells": int(genes["cells"].iloc[0]),
            "genes": [
                {"name": gene.gene, "contribution": gene.contribution, "width": gene.share}
                for gene in genes[genes["contribution"] > 0].head(_GENES).itertuples()
            ],
            "named": [
                {"name": gene.gene, "absent": gene.named == "absent", "place": gene.place, "usual": gene.usual_place}
                for gene in _named(genes).itertuples()
            ],
        }
        for label, genes in explained.groupby("label", sort=False)
    ]


def _named(genes: pd.DataFrame) -> pd.DataFrame:
    """Returns the measured genes that a label's description names, those that should be absent last."""
    named = genes[genes["named"].ne("") & genes["place"].notna()]
    return named.sort_values("named", ascending=False, kind="stable")


# ---------------------------------------------------------------------- repetition


def _python_code(run: Mapping[str, Any]) -> str:
    """Returns code that repeats a run: with the same checkpoint, candidates and settings, reading the same values."""
    read = run["input"]
    origin = [f"{name}={str(run[name])!r}" for name in ("revision", "adapter") if run[name]]
    origin = [repr(str(run["checkpoint"])), *origin, f"dtype={str(run['dtype'])!r}"]
    loaded = f"LangCellAnnotator.from_pretrained({', '.join(origin)})" if run["checkpoint"] else "...  # in memory"

    described = label_descriptions(run)
    # Classifiers and prototypes have their own labels.
    own = "prototype_weight" in run or "alpha" not in run
    with_genes = "marker_weight" in run
    labels = (
        "" if own else "".join(f"    {label!r}: {_given(one, with_genes)!r},\n" for label, one in described.items())
    )
    options = [] if own else ["labels"]
    options += [f"alpha={float(run['alpha'])!r}"] if "alpha" in run and not own else []
    if "shortlist" in run:
        options.append(f"shortlist={int(run['shortlist'])}")
    elif len(described) > SHORTLIST and run.get("alpha", 1) < 1:
        options.append("shortlist=None")
    options += [f"marker_weight={float(run['marker_weight'])!r}"] if with_genes and not own else []
    options += [f"error_rate={float(run['error_rate'])!r}"] if "error_rate" in run else []
    if "cluster_key" in run:
        options.append("cluster=True" if run["clusters_made"] else f"cluster_key={str(run['cluster_key'])!r}")
    options += ["smooth=True"] if "smoothing" in run else []
    array, defaults = str(read["array"]), {"counts": "raw", "empty_cells": "error", "gene_column": None}
    options += ["use_raw=True"] if array == "raw.X" else []
    options += [f"layer={array.removeprefix('layers[').removesuffix(']')}"] if array.startswith("layers[") else []
    options += [f"organism={str(read['chosen_organism'])!r}"] if "chosen_organism" in read else []
    options += [f"{name}={str(read[name])!r}" for name, usual in defaults.items() if read.get(name, usual) != usual]
    return (
        "import anndata as ad\nfrom modeling_langcell import LangCellAnnotator\n\n"
        f"annotator = {loaded}\n"
        + (f"labels = {{\n{labels}}}\n" if labels else "")
        + f'annotator.annotate(ad.read_h5ad("cells.h5ad"), {", ".join(options)})\n'
    )


def _given(described: Description, with_genes: bool) -> Any:
    """Returns what describes a label in the form that `annotate` takes it."""
    texts = list(described.texts)
    if not with_genes:
        return texts
    return {"description": texts, "markers": list(described.markers or ()), "absent": list(described.absent)}


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("Checkpoint", f"{run['checkpoint'] or 'a model in memory'} ({run['revision'] or 'local'})")]
    if run.get("adapter"):
        facts.append(("Adapter", str(run["adapter"])))
    settings = (
        "alpha",
        "marker_weight",
        "prototype_weight",
        "shortlist",
        "temperature",
        "error_rate",
        "threshold",
        "usual_novelty",
    )
    values = [f"{name.replace('_', ' ')} {run[name]:.4g}" for name in settings if name in run]
    facts.append(("Settings", ", ".join([*values, str(run["dtype"])])))
    facts.append(("Versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())))
    facts.append(("Written", date.today().isoformat()))
    return facts


__all__ = ["write_report"]
