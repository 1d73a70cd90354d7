# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Containers of cells other than `.h5ad`: zarr stores, what Cell Ranger writes, loom, MuData. They are read into memory,
or copied into an `.h5ad` file: zarr, Cell Ranger's `.h5` and loom a block at a time.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from ..model.errors import InputError, reason_of
from .atomic import reserve, temporary_file
from .conversions import how_to_convert, is_store
from .matrix_market import files_of_matrix, is_matrix_market, matrices, read_matrix_market
from .strings import writing_missing_text

logger = logging.getLogger(__name__)

#: Names of the modality of MuData that holds genes, and words in names of others.
_GENES = re.compile(r"rna|gex|expr(?:ession)?|genes?(?:[ _-]?expression)?|transcript(?:s|ome|omics)?", re.IGNORECASE)
_NO_GENES = re.compile(r"prot|adt|atac|peak|hto|cite|antibod|chrom", re.IGNORECASE)
_LOOM_BLOCK = 1024  # Cells of a loom file, whose matrix is dense, that are read at once.
_BLOCK = 2**24  # Values of an array that are copied at once.


def require_container(path: Path) -> None:
    """
    Checks that cells can be read from a path, without reading them.

    Raises:
        InputError: There is nothing, or something else; the message says how to make an `.h5ad` file of it, if known.
    """
    try:
        if not path.exists():
            raise InputError(f"No file {path}.")
        if find_reader(path) is None and not _may_be_h5ad(path):
            raise InputError(how_to_convert(path))
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error


def _may_be_h5ad(path: Path) -> bool:
    """Returns false for what is no HDF5 file, and for one without tables of cells and genes."""
    if not is_hdf5(path):
        return False
    try:
        with h5py.File(path) as file:
            return not {"obs", "var"}.isdisjoint(file)
    except Exception:  # It is damaged, or in use: what reads it next says so.
        return True


def is_hdf5(path: Path) -> bool:
    """Returns true for a file in HDF5, as `.h5ad` files are."""
    return path.is_file() and h5py.is_hdf5(path)


def find_reader(path: Path) -> Callable[[Path], ad.AnnData] | None:
    """Returns what reads a container; None for an `.h5ad` file, and for what is no container."""
    try:
        if path.is_dir():
            if is_store(path):
                return _read_zarr
            return read_matrix_market if len(matrices(path)) == 1 else None
        if is_matrix_market(path):
            return read_matrix_market
        return _reader_of_hdf5(path) if is_hdf5(path) else None
    except Exception:  # It is damaged, in use, or may not be read: what reads it next says so.
        return None


def container_files(path: Path) -> list[Path]:
    """Returns the files that hold the cells of a container: the path itself, or what is in it or belongs to it."""
    if find_reader(path) is read_matrix_market:
        return files_of_matrix(path)
    return [one for one in (path.rglob("*") if path.is_dir() else [path]) if one.is_file()]


def _reader_of_hdf5(path: Path) -> Callable[[Path], ad.AnnData] | None:
    with h5py.File(path) as file:
        names = set(file)
        if "matrix" in names and {"row_attrs", "col_attrs"} <= names:
            return _read_loom
        if "mod" in names:
            return _read_mudata
        tables = [name for name in names if isinstance(file[name], h5py.Group) and "barcodes" in file[name]]
        return _read_10x if tables else None


def require_self_contained(path: Path) -> None:
    """
    Checks that an HDF5 file does not read other files, which its author could choose freely.

    Raises:
        InputError: It has an external link or dataset, or a virtual dataset.
    """

    def find_reference(name: str, item: h5py.Group | h5py.Dataset | h5py.Datatype) -> str | None:
        if isinstance(item, h5py.Dataset):
            return name if item.external or item.is_virtual else None
        if isinstance(item, h5py.Datatype):
            return None
        links = ((key, item.get(key, getlink=True)) for key in item)
        return next((f"{name}/{key}" for key, link in links if isinstance(link, h5py.ExternalLink)), None)

    with h5py.File(path) as file:
        found = find_reference("", file) or file.visititems(find_reference)
    if found is not None:
        raise InputError(
            f"{path} refers to another file for {found.lstrip('/')}, which is refused: write it again with all data "
            "inside."
        )


def read_container(path: Path) -> ad.AnnData:
    """
    Reads a container that is no `.h5ad` file into memory.

    Raises:
        InputError: It cannot be read; the message says how to make an `.h5ad` file of it, if known.
    """
    reader = find_reader(path)
    if reader is None:
        raise InputError(how_to_convert(path))
    with _naming(path):
        if is_hdf5(path):
            require_self_contained(path)
        adata = reader(path)
    logger.info("%s is read into memory: %d cells x %d genes.", path, *adata.shape)
    return adata


@contextmanager
def as_h5ad(path: Path, output: Path) -> Iterator[Path]:
    """
    Yields an `.h5ad` file with the cells of a container: the path itself if it is one, or else a copy beside `output`,
    which is deleted afterwards.

    Raises:
        InputError: Same as for `read_container`, or the copy cannot be written.
    """
    reader = find_reader(path)
    if reader is None:
        yield path
        return
    with temporary_file(output.absolute()) as copy:
        _write_copy(path, reader, copy, output)
        yield copy


def _write_copy(path: Path, reader: Callable[[Path], ad.AnnData], copy: Path, output: Path) -> None:
    """
    Writes the cells of a container into an `.h5ad` file, a copy beside the output; of a large one, a block at a time.

    Raises:
        InputError: The container cannot be read, or the copy cannot be written.
    """
    copiers: dict[Callable, Callable[[Path, h5py.File], None]]
    copiers = {_read_zarr: _copy_zarr, _read_10x: _copy_10x, _read_loom: _copy_loom}
    copier = copiers.get(reader)
    adata = read_container(path) if copier is None else None
    with _naming(path):
        if is_hdf5(path):
            require_self_contained(path)
    parts = [one.stat().st_size for one in container_files(path)]
    try:
        # HDF5 may crash on a full disk, so that one is found out before.
        copy.touch()
        reserve(copy, sum(parts) if adata is None else sys.getsizeof(adata))
        with writing_missing_text(), h5py.File(copy, "w") as file:
            if copier is None:
                ad.io.write_elem(file, "/", adata)
            else:
                copier(path, file)
            if not isinstance(file.get("raw"), h5py.Group | None):
                del file["raw"]  # A null that stands for None; anndata cannot open it from disk.
    except (InputError, MemoryError):
        raise
    except Exception as error:  # What cannot be read has been named: this is about the copy.
        raise InputError(f"{output} cannot be written: {reason_of(error)}.") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns any error of reading a damaged container into an InputError that names it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}. Use an intact copy.") from error


# ---------------------------------------------------------------------- readers


def _read_zarr(path: Path) -> ad.AnnData:
    _require_all_parts(path, zarr.open_group(str(path), mode="r"))
    return ad.read_zarr(path)


def _require_all_parts(path: Path, group: Any) -> None:
    """
    Checks that no part of a sparse matrix is lost: zarr takes zeros for a file that is not there.

    Raises:
        InputError: A part is lost.
    """
    for name in group:
        element = group[name]
        if name in ("layers", "raw"):
            _require_all_parts(path, element)
        elif element.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix"):
            for part in ("data", "indices"):
                array = element[part]
                if (lost := array.nchunks - array.nchunks_initialized) > 0:
                    raise InputError(
                        f"{path} has lost {lost} of {array.nchunks} parts of {array.path}: use a whole copy."
                    )


def _copy_zarr(path: Path, file: h5py.File) -> None:
    """Copies arrays and sparse matrices, which zarr and HDF5 hold in the same layout, in blocks, and the rest whole."""
    with _naming(path):
        group = zarr.open_group(str(path), mode="r")
        _require_all_parts(path, group)
        is_old = "encoding-type" not in group.attrs  # anndata before 0.7
        adata = _read_zarr(path) if is_old else None
    if is_old:
        ad.io.write_elem(file, "/", adata)
        return
    file.attrs.update(group.attrs)
    for name in group:
        _copy_element(path, group, name, file)


def _copy_element(path: Path, parent: Any, name: str, group: h5py.Group) -> None:
    with _naming(path):
        element = parent[name]
        kind = element.attrs.get("encoding-type")
    if kind == "array" and element.ndim > 0:
        _copy_array(path, element, group, name)
    elif kind in ("csr_matrix", "csc_matrix", "raw") or (kind == "dict" and name != "uns"):
        copied = group.create_group(name)
        copied.attrs.update(element.attrs)
        for part in element:
            if kind in ("raw", "dict"):
                _copy_element(path, element, part, copied)
            else:
                _copy_array(path, element[part], copied, part)
    else:
        with _naming(path):
            value = ad.io.read_elem(element)
        ad.io.write_elem(group, name, value)


def _copy_array(path: Path, array: Any, group: h5py.Group, name: str) -> None:
    copied = group.create_dataset(name, array.shape, array.dtype)
    copied.attrs.update(array.attrs)
    rows = max(1, _BLOCK // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, array.shape[0], rows):
        with _naming(path):
            block = array[start : start + rows]
        copied[start : start + rows] = block


def _read_10x(path: Path) -> ad.AnnData:
    with h5py.File(path) as file:
        matrix = _matrix_of_10x(file)
        parts = (matrix[name][:] for name in ("data", "indices", "indptr"))
        return ad.AnnData(sp.csr_matrix(tuple(parts), shape=_shape_of_10x(matrix)), **_tables_of_10x(matrix))


def _copy_10x(path: Path, file: h5py.File) -> None:
    with h5py.File(path) as source:
        with _naming(path):
            matrix = _matrix_of_10x(source)
            adata, shape = ad.AnnData(**_tables_of_10x(matrix)), np.array(_shape_of_10x(matrix))
            parts = {name: matrix[name] for name in ("data", "indices", "indptr")}
        ad.io.write_elem(file, "/", adata)
        counts = file.create_group("X")
        counts.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        for name, part in parts.items():
            _copy_array(path, part, counts, name)


def _matrix_of_10x(file: h5py.File) -> h5py.Group:
    """
    Returns the matrix of Cell Ranger's file: genes by cells in columns, which are cells by genes in rows. CellBender
    writes groups of its own beside it.

    Raises:
        InputError: There are several, as before Cell Ranger 3 for cells of two organisms.
    """
    names = [name for name in file if isinstance(file[name], h5py.Group) and "barcodes" in file[name]]
    if len(names) > 1:
        raise InputError(
            f"{file.filename} has the matrices {', '.join(names)}: write one of them into a file of its own, as in "
            f"scanpy.read_10x_h5('{file.filename}', genome='{names[0]}').write_h5ad('cells.h5ad')."
        )
    return file[names[0]]


def _shape_of_10x(matrix: h5py.Group) -> tuple[int, int]:
    genes, cells = map(int, matrix["shape"][:])
    return cells, genes


def _tables_of_10x(matrix: h5py.Group) -> dict[str, pd.DataFrame]:
    """Returns `obs` and `var`, whose columns are called as scanpy calls them."""
    if "features" in matrix:
        known = {"id": "gene_ids", "name": "gene_symbols", "feature_type": "feature_types", "genome": "genome"}
        columns = {column: matrix["features"][name] for name, column in known.items() if name in matrix["features"]}
    else:  # Before Cell Ranger 3.
        columns = {"gene_ids": matrix["genes"], "gene_symbols": matrix["gene_names"]}
    var = pd.DataFrame({column: values.asstr()[:] for column, values in columns.items()})
    var.index = pd.Index(var.pop("gene_symbols").to_numpy())
    return {"obs": pd.DataFrame(index=matrix["barcodes"].asstr()[:]), "var": var}


def _read_mudata(path: Path) -> ad.AnnData:
    with h5py.File(path) as file:
        names = list(file["mod"])
        genes = [name for name in names if _GENES.fullmatch(name)]
        if len(genes) != 1:
            likely = next((name for name in names if not _NO_GENES.search(name)), names[0])
            raise InputError(
                f"{path} is MuData with the modalities {', '.join(names)}: write the one with the genes into a file of "
                f"its own, as in mudata.read_h5mu({str(path)!r})[{likely!r}].write_h5ad('cells.h5ad')."
            )
        logger.info("%s is MuData: the modality %r is read.", path, genes[0])
        return ad.io.read_elem(file["mod"][genes[0]])


def _read_loom(path: Path) -> ad.AnnData:
    """Reads a loom file: a dense matrix of genes by cells, further layers of the same shape, and their attributes."""
    with h5py.File(path) as file:
        matrices = {
            name: sp.vstack([_loom_rows(matrix, rows) for rows in _loom_blocks(matrix)], format="csr")
            for name, matrix in _loom_matrices(file)
        }
        return ad.AnnData(matrices.pop("X"), layers=matrices, **_loom_tables(file))


def _copy_loom(path: Path, file: h5py.File) -> None:
    with h5py.File(path) as source:
        with _naming(path):
            adata, matrices = ad.AnnData(**_loom_tables(source)), dict(_loom_matrices(source))
        ad.io.write_elem(file, "/", adata)
        for name, matrix in matrices.items():
            group = file if name == "X" else file["layers"]
            for rows in _loom_blocks(matrix):
                with _naming(path):
                    block = _loom_rows(matrix, rows)
                if rows.start == 0:
                    ad.io.write_elem(group, name, block)
                else:
                    ad.io.sparse_dataset(group[name]).append(block)


def _loom_matrices(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    yield "X", file["matrix"]
    yield from file.get("layers", {}).items()


def _loom_blocks(matrix: h5py.Dataset) -> list[slice]:
    """Returns the cells of a matrix of genes by cells, some at a time; one empty block if there are none."""
    return [slice(start, start + _LOOM_BLOCK) for start in range(0, max(1, matrix.shape[1]), _LOOM_BLOCK)]


def _loom_rows(matrix: h5py.Dataset, cells: slice) -> sp.csr_matrix:
    return sp.csr_matrix(np.asarray(matrix[:, cells]).T)


def _loom_tables(file: h5py.File) -> dict[str, pd.DataFrame]:
    """Returns `obs` and `var`, with their usual names as their indices."""
    tables = {"obs": _loom_table(file["col_attrs"]), "var": _loom_table(file["row_attrs"])}
    for name, usual in (("obs", ("CellID", "obs_names")), ("var", ("Gene", "var_names", "Accession"))):
        if (names := next((one for one in usual if one in tables[name]), None)) is not None:
            tables[name].index = pd.Index(tables[name][names].astype(str).to_numpy())
    return tables


def _loom_table(attributes: h5py.Group) -> pd.DataFrame:
    """Returns the attributes of one value for each cell or gene."""
    items = {name: item for name, item in attributes.items() if item.ndim == 1}
    values = {name: item.asstr()[:] if item.dtype.kind in "OS" else item[:] for name, item in items.items()}
    table = pd.DataFrame(values)
    table.index = table.index.astype(str)
    return table


__all__ = [
    "as_h5ad",
    "container_files",
    "find_reader",
    "is_hdf5",
    "read_container",
    "require_container",
    "require_self_contained",
]
