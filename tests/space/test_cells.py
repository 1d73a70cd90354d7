# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Files that visitors may send: their sizes are known before any of their parts is read."""

import re
import shutil
import sys

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from modeling_langcell import InputError
from tests.support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "space"))
import cells as work


def ignore(share, what):
    pass


@pytest.fixture
def folder(tmp_path):
    adata = ad.AnnData(sp.random(30, 20, 0.3, "csr", np.float32), layers={"counts": sp.eye(30, 20, format="csr")})
    adata.var_names = ["CD3E", "LYZ", "MS4A1", *(f"spot{number}" for number in range(17))]
    adata.raw = adata
    adata.obs["donor"] = ["one", "two"] * 15
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path


def change(folder):
    return h5py.File(folder / "cells.h5ad", "r+")


def test_a_file_is_described(folder):
    found = work.describe(str(folder), ignore)
    assert found.pop("counts") == "layers['counts'] holds raw counts; 3 of 20 human genes are known."
    arrays = ["layer counts", "raw.X"]
    assert found == {"cells": 30, "genes": 20, "arrays": arrays, "columns": ["donor"]}


def test_counts_are_detected(folder):
    work.load_example().write_h5ad(folder / "cells.h5ad")
    found = work.describe(str(folder), ignore)
    assert "bulk_labels" in found["columns"]
    assert "n_genes" not in found["columns"]
    assert "choose 'raw.X' under 'Array with the counts'" in found["counts"]
    of_example = work.write_example(str(folder), ignore)["counts"]
    assert of_example == "raw.X holds log-transformed counts; 748 of 765 human genes are known."
    adata = work.load_example().raw.to_adata()
    adata.X = np.round(adata.X.expm1())
    adata.write_h5ad(folder / "cells.h5ad")
    assert re.match(
        "X holds raw counts; 7[0-9][0-9] of 765 human genes are known.", work.describe(str(folder), ignore)["counts"]
    )


def of_shape(name):
    def enlarge(file):
        del file[name]
        if name.endswith("_index"):
            file.create_dataset(name, (20_001,), "i1", chunks=(1000,), compression="gzip")
        else:
            file.create_dataset(name, (3, 100_001), "i1", chunks=(1, 1000), compression="gzip")

    return enlarge


def stated(file):
    file["X"].attrs["shape"] = np.array([10**12, 20])


def test_progress_never_goes_back(folder, shared):
    told = []
    shutil.copyfile(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad", folder / "cells.h5ad")
    asked = {"labels": ["B cell", "T cell"], "error_rate": None, "cluster": False, "tissue": None}
    work.annotate(str(folder), "cells", asked, {}, None, None, lambda share, what: told.append((share, what)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert len({what for _, what in told}) == 4
    assert sum(0.05 < share < 0.6 for share in shares) >= 1
    told.clear()
    found = work.search(str(folder), "B cell", {}, lambda share, what: told.append(what))
    assert told == ["Searching"], "an annotated file has the embeddings"
    assert found["found"][0]["label"] == "B cell"


@pytest.mark.parametrize("enlarge", [*map(of_shape, ("X", "raw/X", "layers/counts", "obs/_index")), stated])
def test_shapes_are_limited_before_anything_is_read(folder, enlarge, monkeypatch):
    monkeypatch.setattr(ad.io, "read_elem", None)
    with change(folder) as file:
        enlarge(file)
    with pytest.raises(InputError, match="are more than this app takes"):
        work.describe(str(folder), ignore)


def compressed(file, name, bytes_):
    file.create_dataset(name, (bytes_ // 8,), "f8", chunks=(10**6,), compression="gzip")


def column(file):
    compressed(file, "obs/more", 201 * 2**20)


def hard_links(file):
    compressed(file, "obs/more", 50 * 2**20)
    for number in range(4):
        file[f"obs/more{number}"] = file["obs/more"]


def soft_links(file):
    compressed(file, "uns/more", 50 * 2**20)
    for number in range(5):
        file[f"var/more{number}"] = h5py.SoftLink("/uns/more")


def matrices(file):
    for number in range(9):
        compressed(file, f"obsm/m{number}", 2**30)


@pytest.mark.parametrize("enlarge", [column, hard_links, soft_links, matrices])
def test_what_unpacks_to_much(folder, enlarge):
    with change(folder) as file:
        enlarge(file)
    with pytest.raises(InputError, match="Unpacked, this file is larger than this app takes"):
        work.describe(str(folder), ignore)


def circle(file):
    file["uns/again"] = file["uns"]


def many(file):
    for number in range(10_001):
        file["uns"].create_group(str(number))


@pytest.mark.parametrize("enlarge", [circle, many])
def test_files_with_many_parts(folder, enlarge):
    with change(folder) as file:
        enlarge(file)
    with pytest.raises(InputError, match="more than 10,000 parts"):
        work.describe(str(folder), ignore)


def test_a_link_that_leads_nowhere(folder):
    with change(folder) as file:
        file["obs/nothing"] = h5py.SoftLink("/nowhere")
    with pytest.raises(InputError, match="cannot be read"):
        work.describe(str(folder), ignore)
