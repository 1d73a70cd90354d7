# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Containers of cells other than `.h5ad`: zarr stores, what Cell Ranger writes, loom, MuData. They are read into memory.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from ..model.errors import InputError, reason_of
from .strings import writing_missing_text

logger = logging.getLogger(__name__)

#: Modalities of MuData that hold genes.
_GENES = ("rna", "gex", "gene expression")
#: What makes an `.h5ad` file of a container that is not read, by the end of its name.
_CONVERSIONS = {
    ".zarr.zip": "Unpack it first: unzip {path} -d cells.zarr",
    ".gz": "Unpack it first: gunzip {path}",
    ".zip": "Unpack it first: unzip {path}",
    ".tar": "Unpack it first: tar xf {path}",
    ".rds": "Convert it in R: cells <- Seurat::as.SingleCellExperiment(readRDS('{path}')); "
    "zellkonverter::writeH5AD(cells, 'cells.h5ad')",
    ".h5seurat": "Convert it in R: SeuratDisk::Convert('{path}', dest = 'h5ad')",
    **{
        end: f"Convert it in Python: {reading}.write_h5ad('cells.h5ad'), or, if its rows are genes, "
        f"{reading}.T.write_h5ad('cells.h5ad')"
        for end, reading in (
            (".csv", "anndata.io.read_csv('{path}')"),
            (".tsv", "anndata.io.read_text('{path}')"),
            (".txt", "anndata.io.read_text('{path}')"),
        )
    },
}
_LOOM_BLOCK = 1024  # Cells of a loom file, whose matrix is dense, that are read at once.


def require_container(path: Path) -> None:
    """
    Checks that cells can be read from a path, without reading them.

    Raises:
        InputError: There is nothing, or something else; the message says how to make an `.h5ad` file of it, if known.
    """
    if not path.exists():
        raise InputError(f"No file {path}.")
    if find_reader(path) is None and not is_hdf5(path):
        raise InputError(_refusal(path))


def is_hdf5(path: Path) -> bool:
    """Returns true for a file in HDF5, as `.h5ad` files are."""
    return path.is_file() and h5py.is_hdf5(path)


def find_reader(path: Path) -> Callable[[Path], ad.AnnData] | None:
    """Returns what reads a container; None for an `.h5ad` file, and for what is no container."""
    if path.is_dir():
        if any((path / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
            return _read_zarr
        return _read_matrix_market if len(_matrices(path)) == 1 else None
    if _is_matrix_market(path):
        return _read_matrix_market
    try:
        return _reader_of_hdf5(path) if is_hdf5(path) else None
    except Exception:  # It is damaged, or in use: what reads it next says so.
        return None


def _reader_of_hdf5(path: Path) -> Callable[[Path], ad.AnnData] | None:
    with h5py.File(path) as file:
        names = set(file)
        if "matrix" in names and {"row_attrs", "col_attrs"} <= names:
            return _read_loom
        if "mod" in names:
            return _read_mudata
        tables = [file[name] for name in names if isinstance(file[name], h5py.Group)]
        return _read_10x if tables and all("barcodes" in table for table in tables) else None


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
        raise InputError(_refusal(path))
    try:
        if is_hdf5(path):
            require_self_contained(path)
        adata = reader(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}. Use an intact copy.") from error
    logger.info("%s is read into memory: %d cells x %d genes.", path, *adata.shape)
    return adata


@contextmanager
def as_h5ad(path: Path, copy: Path) -> Iterator[Path]:
    """
    Yields an `.h5ad` file with the cells of a container: the path itself if it is one, or else `copy`, which is deleted
    afterwards.

    Raises:
        InputError: Same as for `read_container`, or the copy cannot be written.
    """
    if find_reader(path) is None:
        yield path
        return
    adata = read_container(path)
    try:
        try:
            with writing_missing_text():
                adata.write_h5ad(copy)
        except (OSError, RuntimeError) as error:  # HDF5 raises both.
            raise InputError(f"{copy} cannot be written: {reason_of(error)}.") from error
        del adata
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _refusal(path: Path) -> str:
    if path.is_dir():
        if matrices := _matrices(path):
            return f"{path} has {len(matrices)} matrices: give one of {', '.join(one.name for one in matrices[:3])}."
        return f"{path} is a folder without cells: neither a zarr store nor a matrix.mtx of Cell Ranger is there."
    ends = (end for end in _CONVERSIONS if path.name.lower().endswith(end))
    if (end := next(ends, None)) is not None:
        return f"{path} is no .h5ad file. {_CONVERSIONS[end].format(path=path)}"
    return f"{path} is not an .h5ad file: it is not HDF5, or its beginning is damaged."


# ---------------------------------------------------------------------- readers


def _read_zarr(path: Path) -> ad.AnnData:
    return ad.read_zarr(path)


def _read_10x(path: Path) -> ad.AnnData:
    return sc.read_10x_h5(path, gex_only=False)


def _is_matrix_market(path: Path) -> bool:
    return path.is_file() and path.name.endswith(("matrix.mtx", "matrix.mtx.gz"))


def _matrices(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if _is_matrix_market(one))


def _read_matrix_market(path: Path) -> ad.AnnData:
    """Reads Cell Ranger's folder, or the files of one sample, whose names begin alike (`GSM123_matrix.mtx.gz`)."""
    matrix = path if path.is_file() else _matrices(path)[0]
    prefix = matrix.name[: matrix.name.index("matrix.mtx")]
    return sc.read_10x_mtx(matrix.parent, var_names="gene_ids", gex_only=False, prefix=prefix or None)


def _read_mudata(path: Path) -> ad.AnnData:
    with h5py.File(path) as file:
        names = list(file["mod"])
        genes = [name for name in names if name.casefold() in _GENES]
        if len(genes) != 1:
            raise InputError(
                f"{path} is MuData with the modalities {', '.join(names)}: write the one with the genes into a file of "
                f"its own, as in mudata.read_h5mu('{path}')['{names[0]}'].write_h5ad('cells.h5ad')."
            )
        logger.info("%s is MuData: the modality %r is read.", path, genes[0])
        return ad.io.read_elem(file["mod"][genes[0]])


def _read_loom(path: Path) -> ad.AnnData:
    """Reads a loom file: a dense matrix of genes by cells, further layers of the same shape, and their attributes."""
    with h5py.File(path) as file:
        obs, var = (_loom_table(file[name]) for name in ("col_attrs", "row_attrs"))
        for table, usual in ((obs, ("CellID", "obs_names")), (var, ("Gene", "var_names", "Accession"))):
            if (names := next((one for one in usual if one in table), None)) is not None:
                table.index = pd.Index(table[names].astype(str), name=None)
        layers = {name: _loom_matrix(layer) for name, layer in file.get("layers", {}).items()}
        return ad.AnnData(_loom_matrix(file["matrix"]), obs=obs, var=var, layers=layers)


def _loom_table(attributes: h5py.Group) -> pd.DataFrame:
    """Returns the attributes of one value for each cell or gene."""
    items = {name: item for name, item in attributes.items() if item.ndim == 1}
    values = {name: item.asstr()[:] if item.dtype.kind in "OS" else item[:] for name, item in items.items()}
    table = pd.DataFrame(values)
    table.index = table.index.astype(str)
    return table


def _loom_matrix(matrix: h5py.Dataset) -> sp.csr_matrix:
    starts = range(0, matrix.shape[1], _LOOM_BLOCK)
    blocks = [sp.csr_matrix(np.asarray(matrix[:, start : start + _LOOM_BLOCK]).T) for start in starts]
    return sp.vstack(blocks, format="csr")


__all__ = ["as_h5ad", "find_reader", "is_hdf5", "read_container", "require_container", "require_self_contained"]
