# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""One HTML file that holds all there is to say of an annotation."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from ..annotation.clusters import count_clusters
from ..annotation.metrics import agreement, compared
from ..annotation.ontology_backoff import UNKNOWN
from ..annotation.quality import InputQuality
from ..annotation.records import count_answers, describe_input, label_texts
from ..io.columns import ANSWER, CELL_TYPE, MARGIN, NOVELTY, RUN, SCORE, SECOND
from ..model.zero_shot import SHORTLIST
from .html import write_page
from .plots import Layout, colours

_DOUBTFUL = 100  # Cells in the table.
_GENES = 10  # Of each label.
_COLOURED = 20  # Names with a colour of their own.
_CLOSE = 0.1  # A second candidate this near is worth a word.
_OTHER = "#9aa4af"
_SURE, _BETWEEN, _IN_DOUBT = "#3b7dd8", "#9a6fb0", "#e0453a"  # Seen on white and on black.


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
    Writes one self-contained page: what was run on what, the cells on a map, what was found of them and how sure it is,
    the genes that it rests on, and how to repeat it. It opens offline.

    Args:
        adata: Annotated cells, as `LangCellAnnotator.annotate` or `read_annotation` (with embeddings) gives them.
        path: Of the page.
        layout: Where the cells are drawn.
        quality: Of the input.
        genes: As `explain` gives them.
        reference: Column of obs with known labels, to compare with.
        command: What was run; by default what does the same in Python.

    Raises:
        InputError: No such column, none of its labels is a candidate, or the page cannot be written.
    """
    run, obs = adata.uns[RUN], adata.obs
    known = None if reference is None else _known(adata, reference)
    read = describe_input(adata)
    if unlabelled := int(obs[CELL_TYPE].isna().sum()):
        read += f" {unlabelled:,} cells have no known gene and no label."
    drawn = "" if len(layout.rows) + unlabelled == len(obs) else f"{len(layout.rows):,} of the cells, drawn at random."
    return write_page(
        path,
        "annotation.html",
        title="LangCell annotation",
        run=run,
        read=read,
        tiles=_tiles(adata),
        quality=quality,
        total=len(obs),
        drawn=drawn,
        cells=_cells(adata, layout, reference),
        composition=_composition(obs),
        answers=count_answers(obs),
        clusters=count_clusters(obs, str(run["cluster_key"])) if "cluster_key" in run else {},
        known=known,
        doubtful=_doubtful(obs, run),
        genes=None if genes is None else _genes(genes),
        descriptions=label_texts(run),
        code=command or _in_python(run),
        facts=_facts(run),
    )


def _tiles(adata: ad.AnnData) -> list[dict[str, str]]:
    run, obs = adata.uns[RUN], adata.obs
    tiles = [{"value": f"{len(obs):,}", "caption": "cells"}]
    tiles.append({"value": f"{obs[CELL_TYPE].nunique()} of {len(run['labels'])}", "caption": "candidates found"})
    if ANSWER in obs:
        answered = (obs[ANSWER].notna() & (obs[ANSWER] != UNKNOWN)).mean()
        tiles.append({"value": f"{answered:.0%}", "caption": f"answered, at {run['error_rate']:.0%} expected errors"})
    else:
        median = f"{obs[SCORE].median():.2f}" if obs[SCORE].notna().any() else "none"
        tiles.append({"value": median, "caption": "median score, not calibrated"})
    if "usual_novelty" in run and NOVELTY in obs:
        unlike = (obs[NOVELTY] > run["usual_novelty"]).mean()
        tiles.append({"value": f"{unlike:.0%}", "caption": "of the cells are unlike every candidate"})
    return tiles


# ---------------------------------------------------------------------- the map


def _cells(adata: ad.AnnData, layout: Layout, reference: str | None) -> dict[str, Any]:
    """What the page's script draws: of each drawn cell its row, name and place from 0 to 1; views to colour it by."""
    run, obs = adata.uns[RUN], adata.obs.iloc[layout.rows]
    low = layout.coordinates.min(axis=0, initial=np.inf)
    extent = np.maximum(layout.coordinates.max(axis=0, initial=-np.inf) - low, 1e-9)
    x, y = ((layout.coordinates - low) / extent).round(4).T.tolist()
    views = [_by_name("label", obs[CELL_TYPE])]
    if ANSWER in obs:
        views.append(_by_name("answer", obs[ANSWER]))
    views.append(_by_number("doubt", 1 - obs[SCORE], (0, 1), ("sure", "in doubt")))
    if NOVELTY in obs:
        usual = float(run.get("usual_novelty", obs[NOVELTY].median()))
        most = max(usual, float(obs[NOVELTY].quantile(0.99)))
        views.append(_by_number("novelty", obs[NOVELTY], (0, most), ("like a candidate", "unlike all")))
    for column in dict.fromkeys(filter(None, (reference, run.get("cluster_key")))):
        views.append(_by_name(str(column), obs[column].astype("string").astype("category")))
    return {
        "rows": layout.rows.tolist(),
        "names": obs.index.astype(str).tolist(),
        "x": x,
        "y": y,
        "views": views,
        "ramp": [_SURE, _BETWEEN, _IN_DOUBT],
        "other": _OTHER,
    }


def _by_name(title: str, values: pd.Series) -> dict[str, Any]:
    sizes = values.value_counts()
    sizes = sizes[sizes > 0]
    palette = [*colours(min(len(sizes), _COLOURED)), *[_OTHER] * (len(sizes) - _COLOURED)]
    names = [
        {"name": str(name), "cells": int(size), "colour": _OTHER if name == UNKNOWN else colour}
        for (name, size), colour in zip(sizes.items(), palette, strict=True)
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


def _known(adata: ad.AnnData, reference: str) -> dict[str, Any]:
    truth, predicted = compared(adata, reference)
    names = sorted(set(truth) | set(predicted))
    shares = confusion_matrix(truth, predicted, labels=names, normalize="true")
    rows = [
        {"name": name, "cells": int((truth == name).sum()), "shares": row.tolist()}
        for name, row in zip(names, shares, strict=True)
    ]
    return {"reference": reference, "names": names, "rows": rows, **agreement(adata, reference)}


def _doubtful(obs: pd.DataFrame, run: Mapping[str, Any]) -> dict[str, Any]:
    """The cells whose best candidate is the least sure, and why."""
    labelled = np.flatnonzero(obs[SCORE].notna())
    rows = labelled[np.argsort(obs[SCORE].to_numpy()[labelled], kind="stable")][:_DOUBTFUL]
    usual = run.get("usual_novelty", np.inf)
    found = []
    for row, cell in zip(rows.tolist(), obs.iloc[rows].itertuples(), strict=True):
        novelty = getattr(cell, NOVELTY, None)
        second = getattr(cell, SECOND, "")
        reasons = []
        if novelty is not None and novelty > usual:
            reasons.append("unlike every candidate")
        if second and getattr(cell, MARGIN) < _CLOSE:
            reasons.append("two candidates nearly alike")
        found.append(
            {
                "row": row,
                "cell": str(cell.Index),
                "best": getattr(cell, CELL_TYPE),
                "score": getattr(cell, SCORE),
                "second": second,
                "margin": getattr(cell, MARGIN),
                "answer": getattr(cell, ANSWER, ""),
                "novelty": novelty,
                "reason": "; ".join(reasons) or "a low score",
            }
        )
    said = f"The {len(found):,} of {len(labelled):,} cells with the lowest scores."
    return {"rows": found, "said": said}


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
        }
        for label, genes in explained.groupby("label", sort=False)
    ]


# ---------------------------------------------------------------------- how to repeat it


def _in_python(run: Mapping[str, Any]) -> str:
    """What does the same again: the same checkpoint, candidates and settings, of cells that are read as they were."""
    read = run["input"]
    where = [f"{name}={str(run[name])!r}" for name in ("revision", "adapter") if run[name]]
    where = [repr(str(run["checkpoint"])), *where, f"dtype={str(run['dtype'])!r}"]
    made = f"LangCellAnnotator.from_pretrained({', '.join(where)})" if run["checkpoint"] else "...  # it was in memory"

    texts = label_texts(run)
    # What classifies, or compares with cells that were learnt from, has labels of its own.
    own = "prototype_weight" in run or "alpha" not in run
    labels = "" if own else "".join(f"    {label!r}: {found!r},\n" for label, found in texts.items())
    how = [] if own else ["labels"]
    how += [f"alpha={float(run['alpha'])!r}"] if "alpha" in run and not own else []
    if "shortlist" in run:
        how.append(f"shortlist={int(run['shortlist'])}")
    elif len(texts) > SHORTLIST and run.get("alpha", 1) < 1:
        how.append("shortlist=None")
    how += [f"error_rate={float(run['error_rate'])!r}"] if "error_rate" in run else []
    how += [f"cluster_key={str(run['cluster_key'])!r}"] if "cluster_key" in run else []
    array, defaults = str(read["array"]), {"counts": "raw", "empty_cells": "error", "gene_column": None}
    how += ["use_raw=True"] if array == "raw.X" else []
    how += [f"layer={array.removeprefix('layers[').removesuffix(']')}"] if array.startswith("layers[") else []
    how += [f"{name}={str(read[name])!r}" for name, usual in defaults.items() if read.get(name, usual) != usual]
    return (
        "import anndata as ad\nfrom modeling_langcell import LangCellAnnotator\n\n"
        f"annotator = {made}\n"
        + (f"labels = {{\n{labels}}}\n" if labels else "")
        + f'annotator.annotate(ad.read_h5ad("cells.h5ad"), {", ".join(how)})\n'
    )


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("Checkpoint", f"{run['checkpoint'] or 'a model in memory'} ({run['revision'] or 'local'})")]
    if run.get("adapter"):
        facts.append(("Adapter", str(run["adapter"])))
    settings = ("alpha", "prototype_weight", "shortlist", "temperature", "error_rate", "threshold", "usual_novelty")
    said = [f"{name.replace('_', ' ')} {run[name]:.4g}" for name in settings if name in run]
    facts.append(("Settings", ", ".join([*said, str(run["dtype"])])))
    facts.append(("Versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())))
    facts.append(("Written", date.today().isoformat()))
    return facts


__all__ = ["write_report"]
