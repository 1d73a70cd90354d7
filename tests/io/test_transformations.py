# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Whatever people do to a file of cells before they give it to us, its cells stay the same: after any three of these
transformations, one after the other, real cells get the embeddings of the plain file, or a refusal whose advice,
followed, gives them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import example, given
from hypothesis import strategies as st

from modeling_langcell import InputError, LangCellAnnotator, annotate_file
from modeling_langcell.io import open_cells, read_annotation
from tests.io.test_containers import (
    write_10x,
    write_10x_of_two,
    write_loom,
    write_matrix_market,
    write_mudata,
    write_zarr,
)

N_CELLS = 20


@dataclass
class File:
    """
    Cells on their way through transformations.

    Args:
        adata: The cells.
        counts: Where raw counts are: "X", "raw" or the name of a layer; None if they are nowhere.
        folder: A folder for files.
        options: Options that a person would know to give.
        path: The file that holds the cells as they are now; None if they have changed since.
    """

    adata: ad.AnnData
    counts: str | None
    folder: Path
    options: dict = field(default_factory=dict)
    path: Path | None = None

    def changed(self, adata: ad.AnnData, **changes) -> "File":
        return replace(self, adata=adata, path=None, **changes)

    def with_var(self, var: pd.DataFrame, **changes) -> "File | None":
        """Returns the file with another table of genes, for raw too; None if raw has more genes."""
        adata = self.adata.copy()
        if adata.raw is not None:
            keep = adata.raw.var_names.isin(self.adata.var_names)
            if not keep.all():
                return None  # raw has genes that X lacks.
            adata.raw = ad.AnnData(adata.raw.X, var=var)
        adata.var = var
        return self.changed(adata, **changes)


def has_layers(adata: ad.AnnData) -> bool:
    return any(name is not None for name in adata.layers)  # None is X, since anndata 0.13.


TRANSFORMATIONS: dict[str, Callable[[File], File | None]] = {}


def transformation(function: Callable[[File], File | None]) -> Callable[[File], File | None]:
    TRANSFORMATIONS[function.__name__] = function
    return function


# ---------------------------------------------------------------------- names


def renamed(form: str) -> Callable[[File], File | None]:
    """Returns a transformation that writes the names of genes in one form, and nothing else about them."""

    def rename(file: File) -> File | None:
        symbols, ids = file.adata.var.get("symbol"), file.adata.var.get("ensembl_id")
        if symbols is None or ids is None:
            return None
        names = [form.format(s=symbol, e=gene) for symbol, gene in zip(symbols, ids, strict=True)]
        return file.with_var(pd.DataFrame(index=names))

    return rename


for name, form in {
    "ids": "{e}",
    "symbols": "{s}",
    "ids with a version": "{e}.7",
    "ids of GENCODE's lift": "{e}.5_2",
    "symbol and id": "{s}_{e}",
    "id and symbol": "{e}|{s}",
    "id of a repeated name": "{e}-1",
    "prefixed ids": "GRCh38_{e}",
    "prefixed symbols": "hg19-{s}",
    "symbols in Seurat": "GRCh38-{s}",
    "symbols in spaces": " {s} ",
}.items():
    TRANSFORMATIONS[name] = renamed(form)


@transformation
def names_of_r(file: File) -> File | None:
    symbols = file.adata.var.get("symbol")
    if symbols is None:
        return None
    names = [re.sub(r"[^A-Za-z0-9._]", ".", symbol) for symbol in symbols]
    return file.with_var(pd.DataFrame(index=[f"X{name}" if name[:1].isdigit() else name for name in names]))


@transformation
def numbers_and_a_usual_column(file: File) -> File | None:
    symbols = file.adata.var.get("symbol")
    if symbols is None:
        return None
    var = pd.DataFrame({"gene_short_name": pd.Categorical(symbols)}, index=list(map(str, range(len(symbols)))))
    return file.with_var(var)


@transformation
def an_unusual_column(file: File) -> File | None:
    symbols = file.adata.var.get("symbol")
    if symbols is None:
        return None
    var = pd.DataFrame({"my_names": symbols.to_numpy()}, index=[f"probe{number}" for number in range(len(symbols))])
    return file.with_var(var, options=file.options | {"gene_column": "my_names"})


@transformation
def retired_ids(file: File) -> File | None:
    """A third of the genes have ids that nobody knows, beside their symbols."""
    var = file.adata.var
    if "symbol" not in var or "ensembl_id" not in var:
        return None
    ids = [f"ENSG009{gene[-8:]}" if gene[-1:] in ("0", "3", "6") else gene for gene in var["ensembl_id"].astype(str)]
    return file.with_var(pd.DataFrame({"feature_name": var["symbol"].to_numpy()}, index=ids))


@transformation
def genes_in_two_rows(file: File) -> File | None:
    """The counts of some genes are divided between two rows, whose names were made unique."""
    if file.counts != "X" or file.adata.raw is not None or has_layers(file.adata):
        return None
    counts = sp.csc_matrix(file.adata.X).astype(float)
    chosen = np.arange(0, counts.shape[1], 97)
    half = counts[:, chosen].copy()
    half.data = np.floor(half.data / 2)
    rest = counts.tolil()
    rest[:, chosen] = (counts[:, chosen] - half).tolil()
    var = file.adata.var.copy()
    copies = var.iloc[chosen].copy()
    copies.index = [f"{name}-1" for name in copies.index]
    x = sp.hstack([rest.tocsr(), half], format="csr")
    return file.changed(ad.AnnData(x, obs=file.adata.obs.copy(), var=pd.concat([var, copies])))


# ---------------------------------------------------------------------- arrays


def normalized(x, total: float = 1e4) -> np.ndarray:
    counts = np.asarray(x.todense() if sp.issparse(x) else x, dtype=np.float64)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1) * total


def log_transformed(base: float | None, noted: bool) -> Callable[[File], File | None]:
    def transform(file: File) -> File | None:
        if file.counts != "X":
            return None
        adata = file.adata.copy()
        values = np.log1p(normalized(adata.X)) / (np.log(base) if base else 1)
        adata.X = sp.csr_matrix(values.astype(np.float32))
        if noted:
            adata.uns["log1p"] = {"base": base}
        return file.changed(adata, counts=None)

    return transform


TRANSFORMATIONS |= {
    "natural logarithms": log_transformed(None, noted=True),
    "logarithms that nothing notes": log_transformed(None, noted=False),
    "logarithms to base 2": log_transformed(2, noted=False),
    "noted logarithms to base 10": log_transformed(10, noted=True),
}


@transformation
def counts_per_million(file: File) -> File | None:
    if file.counts != "X":
        return None
    adata = file.adata.copy()
    adata.X = sp.csr_matrix(normalized(adata.X, 1e6).astype(np.float32))
    return file.changed(adata, counts=None)


def moved_to_a_layer(layer: str) -> Callable[[File], File | None]:
    """X becomes logarithms, and its counts a layer beside others that are no counts of genes."""

    def move(file: File) -> File | None:
        if file.counts != "X" or has_layers(file.adata):
            return None
        adata = file.adata.copy()
        adata.layers["a_mask"] = sp.csr_matrix(adata.X).astype(bool).astype(np.float32)
        adata.layers[layer] = adata.X.copy()
        adata.X = sp.csr_matrix(np.log1p(normalized(adata.X)).astype(np.float32))
        return file.changed(adata, counts=layer)

    return move


TRANSFORMATIONS |= {f"a layer {layer}": moved_to_a_layer(layer) for layer in ("counts", "raw_counts", "my layer")}


@transformation
def scaled_with_raw(file: File) -> File | None:
    """As in scanpy's tutorial: X holds scaled values of some genes, and raw what was there before."""
    if file.adata.raw is not None or has_layers(file.adata):
        return None
    adata = file.adata.copy()
    adata.raw = adata
    adata = adata[:, :: max(1, adata.n_vars // 500)].copy()
    values = np.asarray(adata.X.todense() if sp.issparse(adata.X) else adata.X, dtype=float)
    adata.X = ((values - values.mean(0)) / (values.std(0) + 1e-6)).astype(np.float32)
    return file.changed(adata, counts="raw" if file.counts == "X" else None)


@transformation
def no_x(file: File) -> File | None:
    if file.counts in (None, "X", "raw"):
        return None
    adata = file.adata.copy()
    del adata.X
    return file.changed(adata)


def stored(how: Callable) -> Callable[[File], File]:
    """Returns a transformation of how X is stored."""

    def store(file: File) -> File | None:
        if file.adata.X is None:
            return None
        adata = file.adata.copy()
        adata.X = how(adata.X)
        return file.changed(adata)

    return store


def dense(x) -> np.ndarray:
    return np.asarray(x.todense() if sp.issparse(x) else x)


def whole_numbers(dtype: type) -> Callable:
    def convert(x):
        values = sp.csr_matrix(x)
        return values.astype(dtype) if np.all(values.data == np.rint(values.data)) else values

    return convert


def unsorted(x) -> sp.csr_matrix:
    x = sp.csr_matrix(x)
    order = np.concatenate([np.arange(start, stop)[::-1] for start, stop in zip(x.indptr, x.indptr[1:], strict=False)])
    return sp.csr_matrix((x.data[order], x.indices[order], x.indptr), shape=x.shape)


def with_stored_zeros(x) -> sp.csr_matrix:
    x = sp.csr_matrix(x)
    return sp.csr_matrix((np.append(x.data, 0), np.append(x.indices, 0), np.append(x.indptr[:-1], x.nnz + 1)), x.shape)


TRANSFORMATIONS |= {
    "columns": stored(sp.csc_matrix),
    "dense": stored(dense),
    "dense by columns": stored(lambda x: np.asfortranarray(dense(x))),
    "unsorted": stored(unsorted),
    "stored zeros": stored(with_stored_zeros),
    "double precision": stored(lambda x: sp.csr_matrix(x).astype(np.float64)),
    "int32": stored(whole_numbers(np.int32)),
    "uint16": stored(whole_numbers(np.uint16)),
    "int64": stored(whole_numbers(np.int64)),
    "sparse arrays": stored(sp.csr_array),
}


# ---------------------------------------------------------------------- rows and cells


def with_other_rows(kind: str, names: Callable[[int], str], n_rows: int) -> Callable[[File], File | None]:
    """Returns a transformation that appends rows that are no genes, as Cell Ranger does."""

    def append(file: File) -> File | None:
        if file.counts != "X" or file.adata.raw is not None or has_layers(file.adata):
            return None
        others = np.random.default_rng(0).poisson(5, (file.adata.n_obs, n_rows)).astype(np.float32)
        var = file.adata.var.copy()
        var["feature_types"] = var.get("feature_types", "Gene Expression")
        more = pd.DataFrame({"feature_types": kind}, index=[names(row) for row in range(n_rows)])
        x = sp.hstack([sp.csr_matrix(file.adata.X), sp.csr_matrix(others)], format="csr")
        return file.changed(
            ad.AnnData(x, obs=file.adata.obs.copy(), var=pd.concat([var.astype(object), more]).fillna(""))
        )

    return append


TRANSFORMATIONS |= {
    "antibodies": with_other_rows("Antibody Capture", lambda row: f"CD{row + 1}", 60),
    "peaks": with_other_rows("Peaks", lambda row: f"chr1:{1000 * row}-{1000 * row + 500}", 30_000),
}


@transformation
def repeated_names_of_cells(file: File) -> File:
    adata = file.adata.copy()
    adata.obs_names = ["cell"] * adata.n_obs
    return file.changed(adata)


@transformation
def columns_that_are_hard_to_write(file: File) -> File:
    adata = file.adata.copy()
    adata.obs["text"] = pd.array(["a", None, *["b"] * (adata.n_obs - 2)], dtype="string")
    adata.obs["maybe"] = pd.array([True, None, *[False] * (adata.n_obs - 2)], dtype="boolean")
    adata.obs["kind"] = pd.Categorical(["x/y", *[None] * (adata.n_obs - 1)])
    return file.changed(adata)


@transformation
def categories_in_var(file: File) -> File | None:
    return file.with_var(file.adata.var.astype("category"))


@transformation
def a_view(file: File) -> File:
    return file.changed(file.adata[np.arange(file.adata.n_obs)])


# ---------------------------------------------------------------------- containers


def written(write: Callable[[ad.AnnData, Path], Path], *, counts_alone: bool = True) -> Callable[[File], File | None]:
    """Returns a transformation that writes the cells into a container, and reads them from it."""

    def through(file: File) -> File | None:
        var = file.adata.var
        if counts_alone and (file.counts != "X" or "symbol" not in var or "ensembl_id" not in var):
            return None
        folder = Path(mkdtemp(dir=file.folder))
        adata = file.adata.copy()
        if counts_alone:
            adata.X = sp.csr_matrix(adata.X).astype(np.float32)
            adata.var_names = pd.Index(var["ensembl_id"].to_numpy(), name=None)
            for name in [name for name in adata.layers if name is not None]:
                del adata.layers[name]
        path = write(adata, folder)
        read = ad.read_h5ad(path) if path.suffix == ".h5ad" else open_cells(path)
        if counts_alone and "symbol" not in read.var:
            # The container has its own names for the columns: a later transformation needs them by ours.
            read.var["symbol"], read.var["ensembl_id"] = var["symbol"].to_numpy(), var["ensembl_id"].to_numpy()
        return replace(file, adata=read, path=path)

    return through


def write_h5ad(adata: ad.AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def write_compressed(adata: ad.AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "cells.h5ad", compression="gzip")
    return folder / "cells.h5ad"


TRANSFORMATIONS |= {
    "h5ad": written(write_h5ad, counts_alone=False),
    "compressed h5ad": written(write_compressed, counts_alone=False),
    "zarr": written(write_zarr, counts_alone=False),
    "10x": written(write_10x),
    "10x of two": written(write_10x_of_two),
    "matrix market": written(write_matrix_market),
    "loom": written(write_loom),
    "MuData": written(write_mudata),
}


# ---------------------------------------------------------------------- the property


@pytest.fixture(scope="module")
def annotator():
    return LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")


@pytest.fixture(scope="module")
def plain(shared, annotator):
    """Real cells, with the genes that are the same by symbol and by id."""
    adata = ad.read_h5ad(shared / "data/validation/pbmc_kang_ctrl.h5ad")[: 30 * N_CELLS : 30].copy()
    symbols, ids = (adata.var[column].astype(str).tolist() for column in ("symbol", "ensembl_id"))
    match = annotator.processor.feature_extractor.match_genes
    by_symbol, by_id = match(symbols).token_ids, match(ids).token_ids
    same = np.flatnonzero((by_symbol == by_id) & (by_symbol >= 0))
    _, first = np.unique(by_symbol[same], return_index=True)
    adata = adata[:, same[np.sort(first)]]
    names = adata.var[["symbol", "ensembl_id"]].astype(str)
    names.index = pd.Index(names["symbol"].to_numpy(), name=None)
    return ad.AnnData(adata.X.copy(), obs=adata.obs[["cell_type"]].copy(), var=names)


@pytest.fixture(scope="module")
def expected(annotator, plain):
    return annotator.embed(plain.copy()).obsm["X_langcell"]


def embeddings(annotator, file: File) -> np.ndarray:
    """Embeds the cells, with the options that refusals advise."""
    options: dict = {}
    for _ in range(3):
        try:
            if file.path is None:
                return annotator.embed(file.adata.copy(), **options).obsm["X_langcell"]
            out = annotate_file(annotator, file.path, file.folder / "annotated.h5ad", ["B cell", "T cell"], **options)
            return read_annotation(out, embeds=True).obsm["X_langcell"]
        except InputError as error:
            advised = advised_options(error, file)
            if not advised or advised.items() <= options.items():
                raise
            options |= advised
    raise AssertionError(f"No advice helped: {options}")


def advised_options(error: InputError, file: File) -> dict:
    """Returns the options of the first advice that can be followed, with what a person would know to fill in."""
    for remedy in error.remedies:
        if remedy.option and remedy.value is not None:
            return {remedy.option: remedy.value, **dict(remedy.also)}
        if remedy.option in file.options:
            return {remedy.option: file.options[remedy.option]}
    return {}


@pytest.mark.long
@given(names=st.permutations(sorted(TRANSFORMATIONS)))
@example(names=["a layer my layer", "an_unusual_column", "zarr"])
@example(names=["natural logarithms", "scaled_with_raw", "h5ad"])
@example(names=["genes_in_two_rows", "peaks", "columns"])
@example(names=["10x", "retired_ids", "logarithms to base 2"])
def test_three_transformations_change_nothing(names, annotator, plain, expected, tmp_path_factory):
    file = File(plain.copy(), "X", tmp_path_factory.mktemp("files"))
    done = []
    for name in names:  # One that cannot be done after the others is left out.
        if len(done) < 3 and (changed := TRANSFORMATIONS[name](file)) is not None:
            file = changed
            done.append(name)
    assert len(done) == 3
    np.testing.assert_allclose(embeddings(annotator, file), expected, atol=1e-5, err_msg=str(done))
