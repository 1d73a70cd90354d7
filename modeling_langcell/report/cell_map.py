# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The map of the cells on the page: their positions, and what they can be coloured by."""

import base64
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..io.colours import GREY
from ..io.columns import NOVELTY, RUN, SCORE
from .name_colours import NameColours
from .plots import Layout

_RAMP = ("#3b7dd8", "#9a6fb0", "#e0453a")  # From low to high; visible on white and on black.
_MISSING = 2**16 - 1  # Stands for a value that is missing.


def map_data(
    adata: ad.AnnData,
    layout: Layout,
    columns: Mapping[str, str],
    colour_of: NameColours,
    expressed: ad.AnnData | None,
) -> dict[str, Any]:
    """
    Returns the data of the map: row, name and position of each drawn cell, and the views to colour by.

    Args:
        adata: Annotated cells.
        layout: Positions of the drawn cells.
        columns: Columns of `obs` with names, and what the page calls them, the first view first.
        colour_of: The colours of names.
        expressed: Expression of genes in the drawn cells, or None.
    """
    run, obs = adata.uns[RUN], adata.obs.iloc[layout.rows]
    low = layout.coordinates.min(axis=0, initial=np.inf)
    extent = np.maximum(layout.coordinates.max(axis=0, initial=-np.inf) - low, 1e-9)
    x, y = ((layout.coordinates - low) / extent).T
    views = [_by_name(title, obs[column], colour_of) for column, title in columns.items()]
    views.append(_by_number("uncertainty", 1 - obs[SCORE], (0, 1), ("certain", "uncertain")))
    if NOVELTY in obs:
        usual = float(run.get("usual_novelty", obs[NOVELTY].median()))
        most = max(usual, float(obs[NOVELTY].quantile(0.99)))
        views.append(_by_number("novelty", obs[NOVELTY], (0, most), ("like a candidate", "unlike all candidates")))
    if expressed is not None:
        values = expressed.X.toarray()  # A few markers of the drawn cells, of which there are at most 20,000.
        for number, gene in enumerate(expressed.var_names):
            highest = max(1e-9, float(values[:, number].max(initial=0)))
            of_gene = pd.Series(values[:, number])
            views.append(_by_number(str(gene), of_gene, (0, highest), ("none", "high")) | {"gene": True})
    return {
        "rows": layout.rows.tolist(),
        "names": obs.index.astype(str).tolist(),
        "x": _pack(x * _MISSING),
        "y": _pack(y * _MISSING),
        "views": views,
        "ramp": _RAMP,
        "other": GREY,
    }


def _by_name(title: str, values: pd.Series, colour_of: NameColours) -> dict[str, Any]:
    """Returns a view by name, the most frequent first."""
    values = values.astype("string")
    sizes = values.value_counts()
    names = [{"name": str(name), "cells": int(cells), "colour": colour_of[str(name)]} for name, cells in sizes.items()]
    return {"title": title, "names": names, "codes": _pack(sizes.index.get_indexer(pd.Index(values)) % 2**16)}


def _by_number(title: str, values: pd.Series, limits: tuple[float, float], ends: tuple[str, str]) -> dict[str, Any]:
    """Returns a view by number: values from the first limit to the second, as 0 to 65534."""
    low, high = limits
    shares = ((values.astype(float) - low) / max(high - low, 1e-9)).clip(0, 1) * (_MISSING - 1)
    return {"title": title, "values": _pack(shares.fillna(_MISSING).to_numpy()), "range": limits, "ends": ends}


def _pack(values: np.ndarray) -> str:
    """Returns numbers from 0 to 65535 as text that a page holds: two bytes each, the lower first, in base 64."""
    return base64.b64encode(np.rint(values).astype("<u2").tobytes()).decode()


__all__ = ["map_data"]
