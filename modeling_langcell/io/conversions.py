# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Messages for paths without cells that can be read: what they are, and the command that makes cells of them."""

import shlex
import zipfile
from contextlib import suppress
from pathlib import Path

import h5py

from .matrix_market import matrices

_PYTHON = "Convert it in Python: {reading}.write_h5ad('cells.h5ad')"
_IN_R = (
    "Convert it in R: cells <- Seurat::as.SingleCellExperiment({reading}); "
    "zellkonverter::writeH5AD(cells, 'cells.h5ad')"
)
#: What makes cells of a file, by the end of its name. `{shell}` is its path for a shell, `{quoted}` for Python and R.
_CONVERSIONS = {
    **dict.fromkeys(
        (".mtx", ".mtx.gz"),
        "It is a matrix without names: call it matrix.mtx (or .mtx.gz), with features.tsv and barcodes.tsv beside it.",
    ),
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), "Unpack it first: tar xf {shell}"),
    ".gz": "Unpack it first: gunzip {shell}",
    ".bz2": "Unpack it first: bunzip2 {shell}",
    ".xz": "Unpack it first: unxz {shell}",
    ".zst": "Unpack it first: unzstd {shell}",
    ".7z": "Unpack it first: 7z x {shell}",
    ".zip": "Unpack it first: unzip {shell}",
    ".rds": _IN_R.format(reading="readRDS({quoted})"),
    **dict.fromkeys((".rda", ".rdata"), _IN_R.format(reading="get(load({quoted}))")),
    ".qs": _IN_R.format(reading="qs::qread({quoted})"),
    ".h5seurat": "Convert it in R: SeuratDisk::Convert({quoted}, dest = 'h5ad')",
    ".parquet": _PYTHON.format(reading="anndata.AnnData(pandas.read_parquet({quoted}))"),
    ".feather": _PYTHON.format(reading="anndata.AnnData(pandas.read_feather({quoted}))"),
    **{
        end: f"{_PYTHON.format(reading=reading)}, or, if its rows are genes, {reading}.T.write_h5ad('cells.h5ad')"
        for end, reading in (
            (".csv", "anndata.io.read_csv({quoted}{delimiter})"),
            (".xlsx", "anndata.AnnData(pandas.read_excel({quoted}, index_col=0))"),
            *((end, "anndata.io.read_text({quoted})") for end in (".tsv", ".txt", ".tab")),
        )
    },
}
#: The same for a zarr store that was packed without its folder.
_UNZIP = "Unpack it first: unzip {shell} -d cells.zarr"
#: How files begin that are packed, whatever their names.
_PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz"}
_HEAD = 2**16


def how_to_convert(path: Path) -> str:
    """Returns what a path holds that is not read, with the command that makes cells of it, if it is known."""
    if path.is_dir():
        return _of_folder(path)
    if path.stat().st_size == 0:
        return f"{path} is empty."
    ends = [end for end in _CONVERSIONS if path.name.lower().endswith(end)]
    if ends:
        conversion = _UNZIP if ends == [".zip"] and _is_bare_store(path) else _CONVERSIONS[max(ends, key=len)]
        given = {"shell": shlex.quote(str(path)), "quoted": repr(str(path)), "delimiter": _delimiter(path)}
        return f"{path} is no .h5ad file. {conversion.format(**given)}"
    if h5py.is_hdf5(path):
        with suppress(OSError), h5py.File(path) as file:
            return f"{path} is in HDF5, but holds no cells as an .h5ad file does. It has {', '.join(list(file)[:5])}."
    with path.open("rb") as file:
        head = file.read(8)
    packed = next((how for magic, how in _PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        return (
            f"{path} is packed, in spite of its name. Unpack it first: {packed} < {shlex.quote(str(path))} > cells.h5ad"
        )
    return f"{path} is not an .h5ad file: it is not HDF5, or its beginning is damaged."


def _of_folder(path: Path) -> str:
    if found := matrices(path):
        return f"{path} has {len(found)} matrices: give one of {', '.join(one.name for one in found[:3])}."
    # What lies a little deeper: the folders of Cell Ranger's `outs`, the tables of SpatialData.
    below = sorted(one for pattern in ("*", "*/*") for one in path.glob(pattern) if _holds_cells(one))
    if below:
        return f"{path} is a folder without cells, but there are some in it: give {' or '.join(map(str, below[:3]))}."
    return f"{path} is a folder without cells: neither a zarr store nor a matrix.mtx of Cell Ranger is there."


def _holds_cells(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".h5ad" or (path.suffix == ".h5" and path.name != "molecule_info.h5")
    with suppress(PermissionError):
        return is_store(path) or bool(matrices(path))
    return False


def is_store(path: Path) -> bool:
    """Returns true for the folder of a zarr store of cells."""
    return any((path / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")) and (path / "obs").exists()


def _is_bare_store(path: Path) -> bool:
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return not {".zgroup", ".zattrs", "zarr.json"}.isdisjoint(archive.namelist())
    return False


def _delimiter(path: Path) -> str:
    """Returns the argument for a table whose columns are not separated by commas; nothing for one where they are."""
    with path.open("rb") as file:
        first = file.read(_HEAD).split(b"\n")[0]
    most = max((b",", b";", b"\t"), key=first.count)
    return "" if most == b"," else f", delimiter={most.decode()!r}"


__all__ = ["how_to_convert", "is_store"]
