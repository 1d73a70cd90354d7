# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Slices of rows, of matrices in memory and on disk."""

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from modeling_langcell import InputError
from modeling_langcell.model.count_matrix import CountMatrix


@pytest.fixture
def counts():
    drawn = sp.random(50, 30, density=0.2, format="csr", random_state=np.random.default_rng(0))
    drawn.data = np.ceil(9 * drawn.data).astype(np.float32)
    return drawn


@pytest.fixture(params=["memory", "hdf5", "zarr"])
def stored(request, counts, tmp_path):
    """The same matrix in memory and on disk."""
    if request.param == "memory":
        yield counts
        return
    if request.param == "hdf5":
        with h5py.File(tmp_path / "x.h5", "w") as file:
            ad.io.write_elem(file, "X", counts)
            yield ad.io.sparse_dataset(file["X"])
    else:
        group = zarr.open_group(tmp_path / "x.zarr", mode="w")
        ad.io.write_elem(group, "X", counts)
        yield ad.io.sparse_dataset(group["X"])


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (0, 1), (7, 31), (49, 50), (40, 90), (5, 5)])
def test_rows_are_those_of_the_matrix(counts, stored, start, stop):
    rows = CountMatrix(stored, "X").rows(start, stop)
    assert rows.dtype == np.float32
    assert rows.shape == counts[start:stop].shape
    np.testing.assert_array_equal(rows.toarray(), counts[start:stop].toarray())


def test_columns_that_are_no_genes_are_left_out(counts, stored):
    genes = np.array([3, 4, 29])
    rows = CountMatrix(stored, "X", columns=genes).rows(10, 20)
    np.testing.assert_array_equal(rows.toarray(), counts[10:20].toarray()[:, genes])


@pytest.mark.parametrize("rows", [[], [7], [40, 3, 3, 21, 22, 44, 49]])
def test_rows_of_some_numbers_are_taken(counts, stored, rows):
    taken = CountMatrix(stored, "X").take(np.array(rows, dtype=int))
    np.testing.assert_array_equal(taken.toarray(), counts[rows].toarray())


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint16", "int64", "float64", "bool"])
def test_files_of_any_numbers_are_read(counts, tmp_path, dtype):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        ad.io.write_elem(file, "X", counts)
        values = file["X/data"][:].astype(dtype)
        del file["X/data"]
        file["X/data"] = values
        rows = CountMatrix(ad.io.sparse_dataset(file["X"]), "X").rows(3, 30)
    np.testing.assert_array_equal(rows.toarray(), counts[3:30].toarray().astype(dtype))


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_damaged_files_are_named(counts, tmp_path, part):
    """A slice of rows is not all that a fault reaches: its own rows tell of it, wherever it is."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        ad.io.write_elem(file, "X", counts)
        values = file[f"X/{part}"][:]
        del file[f"X/{part}"]
        file[f"X/{part}"] = values[:20] if part != "indices" else np.full_like(values, 99)
        matrix = CountMatrix(ad.io.sparse_dataset(file["X"]), "X", file="x.h5")
        with pytest.raises(InputError, match=r"X of x\.h5 cannot be read: .* damaged"):
            matrix.rows(10, 50)


def test_rows_on_disk_are_read_without_anndatas_slices(counts, tmp_path, monkeypatch):
    """They fail in anndata 0.11 with SciPy 1.17, and take ten milliseconds in newer ones."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        ad.io.write_elem(file, "X", counts)
        matrix = ad.io.sparse_dataset(file["X"])
        monkeypatch.setattr(type(matrix), "__getitem__", None)
        assert CountMatrix(matrix, "X").rows(0, 10).nnz == counts[:10].nnz
