# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""`.h5ad` files: opens cells without loading the matrix, and writes annotations atomically."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py

from ..model.errors import InputError, reason_of
from ..model.gene_columns import names_organism
from .atomic import atomic_file, reserve
from .columns import EMBEDDING, RUN
from .containers import find_reader, read_container, require_container, require_self_contained
from .file_kinds import CELLS, require_replaceable
from .strings import writing_missing_text

logger = logging.getLogger(__name__)

#: Bytes for HDF5's own descriptions of what a file holds.
_DESCRIPTIONS = 2**20


def open_cells(path: str | Path) -> ad.AnnData:
    """
    Opens an `.h5ad` file backed: its matrix stays on disk. Other containers are read into memory: see
    `read_container`.

    Raises:
        InputError: No such file, or one that cannot be read.
    """
    if find_reader(Path(path)) is not None:
        return read_container(Path(path))
    with reading_h5ad(path) as checked:
        return ad.read_h5ad(checked, backed="r")


@contextmanager
def reading_h5ad(path: str | Path) -> Iterator[Path]:
    """
    Yields the path of an `.h5ad` file to open, and turns any error of anndata or h5py about a damaged file into an
    InputError that names the file.

    Raises:
        InputError: No such file, or one that cannot be read.
    """
    path = Path(path)
    try:
        require_container(path)
        require_self_contained(path)
        yield path
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if "unable to lock file" in str(error):
            raise InputError(
                f"{path} is in use: another process, such as a notebook, has it open for writing. Close it there. If "
                "its disk has no locks, set the environment variable HDF5_USE_FILE_LOCKING=FALSE."
            ) from error
        raise InputError(
            f"{path} cannot be read as .h5ad: {reason_of(error)}. Use an intact copy, or write it again with anndata."
        ) from error


def write_annotated(adata: ad.AnnData, output: str | Path) -> Path:
    """
    Writes an annotated AnnData atomically. If it is backed, its file is copied and the annotations are added, so that
    the matrix is never loaded into memory.

    Raises:
        InputError: The folder cannot be written to, the disk is full, or a column holds what `.h5ad` cannot.
    """
    output = Path(output)
    require_replaceable(output, CELLS)
    try:
        with atomic_file(output) as temporary, writing_missing_text():
            if adata.isbacked:
                shutil.copyfile(adata.filename, temporary)
                reserve(temporary, int(adata.obs.memory_usage(deep=True).sum()) + _DESCRIPTIONS)
                with h5py.File(temporary, "r+") as file:
                    for group, element in (("obs", adata.obs), ("obsm", dict(adata.obsm)), ("uns", dict(adata.uns))):
                        ad.io.write_elem(file, group, element)
            else:
                temporary.touch()
                reserve(temporary, sys.getsizeof(adata) + _DESCRIPTIONS)
                adata.write_h5ad(temporary)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # anndata and h5py raise many kinds of errors.
        what = next(_unwritable(adata), None)
        advice = "" if what is None else f" It is about {what}: rename it, or make it numbers or text."
        raise InputError(f"{output} cannot be written: {reason_of(error)}.{advice}") from error
    return output


def _unwritable(adata: ad.AnnData) -> Iterator[str]:
    """Yields the columns that cannot be written to `.h5ad`."""
    with h5py.File("probe", "w", driver="core", backing_store=False) as probe, writing_missing_text():
        for table in ("obs", "var"):
            for number, name in enumerate(getattr(adata, table)):
                try:
                    ad.io.write_elem(probe, f"{table}{number}", getattr(adata, table)[[name]])
                except Exception:
                    yield f"{table}[{name!r}]"


def read_annotation(path: str | Path, *, embeds: bool = False) -> ad.AnnData:
    """
    Reads the annotations of a file: `obs` and `uns["langcell"]`, and `obsm["X_langcell"]` if `embeds`, but
    neither its matrix nor its scores.

    Raises:
        InputError: No such file, or one that was not annotated.
    """
    with reading_h5ad(path) as checked, h5py.File(checked) as file:
        if f"uns/{RUN}" not in file or (embeds and f"obsm/{EMBEDDING}" not in file):
            raise InputError(f"{path} has no annotation by LangCell: annotate it first.")
        obsm = {EMBEDDING: file["obsm"][EMBEDDING][:]} if embeds else {}
        uns = {RUN: ad.io.read_elem(file["uns"][RUN])}
        return ad.AnnData(obs=ad.io.read_elem(file["obs"]), obsm=obsm, uns=uns)


def require_anndata(cells: Any) -> None:
    """
    Checks that an argument is an AnnData.

    Raises:
        InputError: It is something else, such as the path of a file.
    """
    if not isinstance(cells, ad.AnnData):
        raise InputError(
            f"Cells must be an AnnData, not {type(cells).__name__}. Read a file with anndata.read_h5ad, or annotate it "
            "on disk with annotate_file."
        )


@contextmanager
def open_lightly(path: str | Path) -> Iterator[ad.AnnData]:
    """
    Opens a file as a backed AnnData with `obs`, `var`, `raw` and layers, whose matrices stay on disk, and with what
    `uns` says of them. Nothing else is read, because the scores of an earlier annotation, for example, may be large.
    Other containers are read into memory.

    Raises:
        InputError: No such file, or one that anndata cannot read.
    """
    if find_reader(Path(path)) is not None:
        yield read_container(Path(path))
        return
    with ExitStack() as opened:
        with reading_h5ad(path) as checked:
            file = opened.enter_context(h5py.File(checked))
            if isinstance(file["obs"], h5py.Dataset):
                logger.info("%s was written before anndata 0.7: everything except the matrix is read.", path)
                adata = open_cells(checked)
            else:
                elements = {name: ad.io.read_elem(file[name]) for name in ("obs", "var")}
                # What scanpy notes of logarithms, and the organism.
                noted = [name for name in file.get("uns", {}) if name == "log1p" or names_organism(name)]
                elements["uns"] = {name: ad.io.read_elem(file["uns"][name]) for name in noted}
                if "raw" in file:
                    elements["raw"] = {"var": ad.io.read_elem(file["raw/var"])}
                elements["layers"] = {name: _on_disk(layer) for name, layer in file.get("layers", {}).items()}
                adata = ad.AnnData(filename=checked, filemode="r", **elements)
            opened.callback(adata.file.close)
        yield adata


def _on_disk(layer: h5py.Group | h5py.Dataset) -> Any:
    return ad.io.sparse_dataset(layer) if isinstance(layer, h5py.Group) else layer


__all__ = ["open_cells", "open_lightly", "read_annotation", "reading_h5ad", "require_anndata", "write_annotated"]
