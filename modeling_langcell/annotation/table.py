# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""An annotation as a table, for a spreadsheet or another program."""

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import pandas as pd

from ..io.columns import PREFIX, require_column
from ..io.tables import write_table
from .records import candidate_labels


def to_table(adata: ad.AnnData, path: str | Path | None = None, *, columns: Sequence[str] = ()) -> pd.DataFrame:
    """
    Returns an annotation as a table with a row for each cell, and writes it if there is a path.

    Args:
        adata: Annotated cells.
        path: File for the table: `.csv`, `.tsv` or `.xlsx`.
        columns: Further columns of `obs`, such as the sample or the donor, which come first.

    Returns:
        A table by the names of the cells, with the columns of `obs` that the annotation wrote, without their
        `langcell_`.

    Raises:
        InputError: The cells are not annotated, there is no such column, or the file cannot be written.
    """
    candidate_labels(adata)
    for name in columns:
        require_column(adata.obs, name)
    own = {name: name.removeprefix(PREFIX) for name in map(str, adata.obs.columns) if name.startswith(PREFIX)}
    table = adata.obs[[*(name for name in columns if name not in own), *own]].rename(columns=own)
    table.index.name = "cell"
    if path is not None:
        write_table(table, path, index=True)
    return table


__all__ = ["to_table"]
