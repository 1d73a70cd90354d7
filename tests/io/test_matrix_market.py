# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Matrices in Matrix Market's format, with all the files that programs write beside them."""

import gzip
import io
from pathlib import Path

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
        ("cells_x_genes.mtx", "cells_x_genes.genes.txt", "cells_x_genes.barcodes.txt"),
        ("quants_mat.mtx.gz", "quants_mat_cols.txt", "quants_mat_rows.txt"),
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


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: ["x", *lines],
        lambda lines: ["gene_id\tname\tkind", *lines],
        lambda lines: [f'"{line}"' for line in lines],
        lambda lines: [f"{number}\t{line}" for number, line in enumerate(lines, 1)],
        lambda lines: ['"x"', *(f'"{number}"\t"{line}"' for number, line in enumerate(lines, 1))],
        lambda lines: [lines[0], *(f"{line}\tone more\tand more" for line in lines[1:])],
        lambda lines: [line + "\tmore" * 20 for line in lines],
    ],
    ids=["x", "names", "quotes", "numbers", "R", "ragged", "wide"],
)
@pytest.mark.parametrize("table", ["features.tsv", "barcodes.tsv"])
def test_what_programs_write_around_the_names_is_left_out(cells, tmp_path, table, change):
    write(tmp_path, cells, ("matrix.mtx", "features.tsv", "barcodes.tsv"), columns=1)
    lines = (tmp_path / table).read_text().splitlines()
    (tmp_path / table).write_text("\n".join(change(lines)) + "\n")
    found = open_cells(tmp_path)
    assert (found.X != cells.X).nnz == 0
    assert found.var_names.tolist() == cells.var_names.tolist()
    assert found.obs_names.tolist() == cells.obs_names.tolist()


def test_a_table_with_one_name_more_is_of_another_sample(cells, tmp_path):
    write(tmp_path, cells, ("matrix.mtx", "features.tsv", "barcodes.tsv"))
    with (tmp_path / "barcodes.tsv").open("a") as file:
        file.write("CCCC-1\n")
    with pytest.raises(InputError, match="names for 9 genes and 7 cells: give the files of one sample"):
        open_cells(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    """Simulated, since root may read all folders."""
    closed = tmp_path / "lost+found"
    closed.mkdir()
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path) if path == closed else iterdir(path))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(InputError, match="is a folder without cells: neither"):
        open_cells(tmp_path)
    with pytest.raises(InputError, match=r"lost\+found cannot be read: Permission denied\."):
        open_cells(closed)
