# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The example: 700 real blood cells that scanpy ships (a sample of the 68,000 of Zheng et al. 2017)."""

import warnings

import anndata as ad
import pandas as pd

#: The Cell Ontology's names for the authors' labels.
CELL_TYPES = {
    "CD14+ Monocyte": "CD14-positive monocyte",
    "CD19+ B": "B cell",
    "CD34+": "hematopoietic precursor cell",
    "CD4+/CD25 T Reg": "CD4-positive, CD25-positive, alpha-beta regulatory T cell",
    "CD4+/CD45RA+/CD25- Naive T": "naive thymus-derived CD4-positive, alpha-beta T cell",
    "CD4+/CD45RO+ Memory": "CD4-positive, alpha-beta memory T cell",
    "CD56+ NK": "natural killer cell",
    "CD8+ Cytotoxic T": "CD8-positive, alpha-beta cytotoxic T cell",
    "CD8+/CD45RA+ Naive Cytotoxic": "naive thymus-derived CD8-positive, alpha-beta T cell",
    "Dendritic": "dendritic cell",
}
LABEL_COLUMN = "author_cell_type"

#: The main type of each of them: the five kinds of T cells count as one, since these 765 genes hardly tell them apart.
MAIN_TYPES = {name: "T cell" if name.endswith("T cell") else name for name in CELL_TYPES.values()}
MAIN_TYPE_COLUMN = "author_main_type"

#: What a reader of the results must know.
CAPTION = (
    "700 blood cells of Zheng et al. 2017; .raw holds log1p values of 765 genes, read as such.",
    "Training saw none of them, but other cells of that publication. The authors' kinds of T cells count as one type.",
)

#: Options for reading the example: its `.raw` holds logarithms of normalised counts for 765 genes.
CELL_OPTIONS = {"use_raw": True, "counts": "log1p"}


def load_example() -> ad.AnnData:
    """
    Returns the cells. `obs["author_cell_type"]` has the authors' labels, renamed as in the Cell Ontology, and
    `obs["author_main_type"]` the same with the five kinds of T cells as one.
    """
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The bundled file was written by an older anndata.
        adata = scanpy.datasets.pbmc68k_reduced()
    adata.obs[LABEL_COLUMN] = pd.Categorical(adata.obs["bulk_labels"].map(CELL_TYPES))
    adata.obs[MAIN_TYPE_COLUMN] = pd.Categorical(adata.obs[LABEL_COLUMN].map(MAIN_TYPES))
    return adata


__all__ = ["CAPTION", "CELL_OPTIONS", "CELL_TYPES", "LABEL_COLUMN", "MAIN_TYPES", "MAIN_TYPE_COLUMN", "load_example"]
