# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Matrices in Matrix Market's format, with all the files that programs write beside them."""

import gzip
import io

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from modeling_langcell import InputError
from modeling_langcell.io import open_cells


@pytest.fixture
def cells():
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(0.5, (6, 9)).astype(np.float32))
    var = pd.DataFrame(
        {"symbol": [f"GENE{gene}" for gene in range(9)]}, index=[f"ENSG{gene:011d}" for gene in range(9)]
    )
    return ad.AnnData(counts, obs=pd.DataFrame(index=[f"AAAC{cell}-1" for cell in range(6)]), var=var)


def write(folder, cells, names, columns=3, transposed=True):
    """Writes a matrix and its tables under the names; those that end in `.gz` are packed."""
    matrix = io.BytesIO()
    scipy.io.mmwrite(matrix, (cells.X.T if transposed else cells.X).tocoo().astype(int))
    rows = [(name, symbol, "Gene Expression")[:columns] for name, symbol in cells.var["symbol"].items()]
    contents = {
        "mtx": matrix.getvalue(),
        "genes": "".join("\t".join(row) + "\n" for row in rows).encode(),
        "barcodes": ("\n".join(cells.obs_names) + "\n").encode(),
    }
    for kind, name in zip(contents, names, strict=False):
        (folder / name).write_bytes(gzip.compress(contents[kind]) if name.endswith(".gz") else contents[kind])
    return folder


@pytest.mark.parametrize("columns", [3, 2, 1])
@pytest.mark.parametrize("prefix", ["", "GSM123_blood_"])
@pytest.mark.parametrize(
    "names",
    [
        ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"),
        ("matrix.mtx", "features.tsv", "barcodes.tsv"),
        ("matrix.mtx", "genes.tsv", "barcodes.tsv"),
        ("matrix.mtx.gz", "genes.tsv.gz", "barcodes.tsv.gz"),
        ("matrix.mtx.gz", "features.tsv", "barcodes.tsv"),
        ("matrix.mtx", "features.tsv.gz", "barcodes.tsv"),
    ],
)
def test_every_layout_is_read(cells, tmp_path, names, prefix, columns):
    write(tmp_path, cells, [f"{prefix}{name}" for name in names], columns)
    for path in (tmp_path, tmp_path / f"{prefix}{names[0]}"):
        found = open_cells(path)
        assert (found.X != cells.X).nnz == 0
        assert found.var_names.tolist() == cells.var_names.tolist()
        assert found.obs_names.tolist() == cells.obs_names.tolist()
        assert found.var.columns.tolist() == ["gene_symbols", "feature_types"][: columns - 1]


def test_cells_in_rows_are_told_by_the_names(cells, tmp_path):
    write(tmp_path, cells, ["matrix.mtx", "features.tsv", "barcodes.tsv"], transposed=False)
    assert (open_cells(tmp_path).X != cells.X).nnz == 0


def test_a_matrix_that_is_there_packed_and_unpacked_is_one(cells, tmp_path):
    write(tmp_path, cells, ["matrix.mtx", "features.tsv", "barcodes.tsv"])
    write(tmp_path, cells, ["matrix.mtx.gz"])
    assert open_cells(tmp_path).shape == cells.shape


def test_what_is_missing_is_named(cells, tmp_path):
    write(tmp_path, cells, ["S1_matrix.mtx.gz", "S1_features.tsv.gz", "S1_barcodes.tsv.gz"])
    (tmp_path / "S1_barcodes.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"There is no S1_barcodes\.tsv beside .*S1_matrix\.mtx\.gz: put it there"):
        open_cells(tmp_path)
    (tmp_path / "S1_features.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"There is no S1_features\.tsv or S1_genes\.tsv beside"):
        open_cells(tmp_path)


def test_tables_of_another_sample_are_refused(cells, tmp_path):
    write(tmp_path, cells, ["matrix.mtx", "features.tsv", "barcodes.tsv"])
    (tmp_path / "barcodes.tsv").write_text("AAAC\n")
    with pytest.raises(InputError, match="has 9 rows and 6 columns, but there are names for 9 genes and 1 cells"):
        open_cells(tmp_path)
