# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Tables and charts of the page, as data from the annotated cells."""

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from ..annotation.clusters import in_order
from ..annotation.expression import MARKERS
from ..annotation.metrics import agreement, compare, describe_agreement
from ..annotation.ontology_backoff import UNKNOWN
from ..annotation.predictions import UNLIKE
from ..annotation.quality import InputQuality
from ..annotation.records import unlike_every_candidate
from ..io.colours import GREY
from ..io.columns import ANSWER, CELL_TYPE, MARGIN, NOVELTY, SCORE, SECOND
from .name_colours import NameColours

_LEAST_CERTAIN = 100  # Cells in the table of the least certain cells.
_GENES = 10  # Genes shown for each label.
_CLOSE = 0.1  # A margin below this is a reason for uncertainty.
_BINS = 30
_HISTOGRAMS = {
    "genes": ("Genes per cell", "{:,.0f}"),
    "counts": ("Counts per cell", "{:,.0f}"),
    "mitochondrial": ("Mitochondrial share of the counts", "{:.1%}"),
}


def composition(obs: pd.DataFrame, colour_of: NameColours) -> list[dict[str, Any]]:
    """Returns the labels with their cells, their median scores, and the shares that are answered."""
    found = obs.groupby(CELL_TYPE, observed=True)[SCORE].agg(["size", "median"])
    found = found.sort_values("size", ascending=False, kind="stable")
    answered = obs[ANSWER] != UNKNOWN if ANSWER in obs else pd.Series(False, index=obs.index)
    answered = answered.groupby(obs[CELL_TYPE], observed=True).mean()
    return [
        {
            "label": label,
            "colour": colour_of[str(label)],
            "cells": int(cells),
            "share": cells / len(obs),
            "score": score,
            "answered": float(answered[label]),
        }
        for label, cells, score in found.itertuples()
    ]


def names_and_shares(values: pd.Series, colour_of: NameColours) -> list[dict[str, Any]]:
    """Returns the names in a column of `obs` with their cells, the most frequent first; those without a name last."""
    sizes = values.astype("string").value_counts()
    rows = [
        {"name": str(name), "colour": colour_of[str(name)], "cells": int(cells), "share": cells / len(values)}
        for name, cells in sizes.items()
    ]
    if missing := int(values.isna().sum()):
        rows.append({"name": "no label", "colour": GREY, "cells": missing, "share": missing / len(values)})
    return rows


def by_sample(values: pd.Series, samples: pd.Series, colour_of: NameColours) -> list[dict[str, Any]]:
    """Returns the names and shares within each sample, the samples in the order of their names."""
    groups = values.groupby(samples.astype("string"), observed=True)
    found = {str(sample): names_and_shares(cells, colour_of) for sample, cells in groups}
    return [
        {
            "sample": sample,
            "cells": sum(row["cells"] for row in rows),
            "parts": rows,
            "shares": {row["name"]: row["share"] for row in rows},
        }
        for sample, rows in sorted(found.items(), key=lambda one: in_order(one[0]))
    ]


def dot_plot(expressed: ad.AnnData) -> dict[str, Any]:
    """
    Returns the dots of labels and markers: the share of a label's cells that express a gene, and the mean expression
    on a scale from 0 to 1, the highest among the labels.

    Args:
        expressed: Expression of the markers, from `express_markers`.
    """
    markers, labels = expressed.uns[MARKERS], expressed.obs[CELL_TYPE].astype("string").fillna("")
    present = [label for label in markers if (labels == label).any()]
    values = [expressed.X[(labels == label).to_numpy()] for label in present]
    shares = np.array([of_label.getnnz(axis=0) / of_label.shape[0] for of_label in values]).reshape(len(present), -1)
    means = np.array([np.asarray(of_label.mean(axis=0)).ravel() for of_label in values]).reshape(len(present), -1)
    levels = means / np.maximum(means.max(axis=0, initial=0), 1e-9)
    columns = [(label, gene, expressed.var_names.get_loc(gene)) for label in present for gene in markers[label]]
    rows = []
    for row, label in enumerate(present):
        own = [levels[row, gene] == 1 for of_label, _, gene in columns if of_label == label]
        dots = [
            {
                "share": float(shares[row, gene]),
                "level": float(levels[row, gene]),
                "mean": float(means[row, gene]),
                "own": of_label == label,
            }
            for of_label, _, gene in columns
        ]
        rows.append(
            {"label": label, "cells": values[row].shape[0], "highest": sum(own), "markers": len(own), "dots": dots}
        )
    groups = [{"label": label, "genes": markers[label]} for label in present if markers[label]]
    return {"groups": groups, "rows": rows}


def histograms(quality: InputQuality) -> list[dict[str, Any]]:
    """Returns a histogram for each column of the examined cells: heights from 0 to 1, and what is read from it."""
    found = []
    for column, (title, form) in _HISTOGRAMS.items():
        if column not in quality.per_cell:
            continue
        values = quality.per_cell[column].to_numpy(dtype=float)
        top = float(np.quantile(values, 0.99)) or 1.0
        heights, _ = np.histogram(values.clip(max=top), bins=_BINS, range=(0, top))
        low, middle, high = (form.format(value) for value in np.quantile(values, (0.05, 0.5, 0.95)))
        found.append(
            {
                "title": title,
                "heights": (heights / heights.max()).round(3).tolist(),
                "median": float(np.median(values)) / top,
                "top": form.format(top),
                "said": f"median {middle}; nine of ten cells from {low} to {high}",
            }
        )
    return found


def comparison(adata: ad.AnnData, reference: str) -> dict[str, Any]:
    """Returns how the cells with each known type were labelled, and how well that agrees."""
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


def least_certain(adata: ad.AnnData) -> dict[str, Any]:
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


def driving_genes(explained: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the genes that drive each label, and the places of its markers, from a table of `explain`."""
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


__all__ = [
    "by_sample",
    "comparison",
    "composition",
    "dot_plot",
    "driving_genes",
    "histograms",
    "least_certain",
    "names_and_shares",
]
