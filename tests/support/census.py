# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A TileDB-SOMA experiment of some cells, laid out like the CELLxGENE Census, which is out of reach of a test."""

from pathlib import Path
from unittest.mock import patch

import anndata as ad


def write_census(adata: ad.AnnData, folder: Path) -> Path:
    """
    Writes cells with raw counts in `X` and CELLxGENE's columns in `obs`, and returns the folder.

    As in the Census, genes have numbers for names, and their ids and symbols in the columns `feature_id` and
    `feature_name`.
    """
    import tiledbsoma.io

    cells = ad.AnnData(adata.X, obs=adata.obs)
    cells.var["feature_id"] = adata.var["ensembl_id"].astype(str).to_numpy()
    cells.var["feature_name"] = adata.var["symbol"].astype(str).to_numpy()
    with patch.object(type(cells.layers), "items", _named_layers):
        tiledbsoma.io.from_anndata(str(folder), cells, measurement_name="RNA", X_layer_name="raw")
    return folder


def _named_layers(layers) -> list:
    """Leaves out X, which anndata 0.13 counts among the layers, and which tiledbsoma 2.3 takes for one of no name."""
    return [(name, layers[name]) for name in layers if name is not None]
