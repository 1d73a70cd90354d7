# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Names of columns that an annotation writes."""

import anndata as ad
import pandas as pd

from modeling_langcell.io.columns import PROBABILITIES, probability_columns


def test_labels_with_slashes_are_columns_of_a_file(cells, tmp_path):
    columns = probability_columns(["CD4/CD8 T cell", "B cell"])
    assert columns == ["CD4|CD8 T cell", "B cell"]
    cells.obsm[PROBABILITIES] = pd.DataFrame(0.5, columns=columns, index=cells.obs_names)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert list(ad.read_h5ad(tmp_path / "cells.h5ad").obsm[PROBABILITIES]) == columns
