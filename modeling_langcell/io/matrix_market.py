# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Matrices of counts in Matrix Market's format, with the names of genes and cells in files beside them: as Cell Ranger,
STARsolo, alevin-fry and kb write them, packed or not, and as GEO keeps them, with a sample's name in front.
"""

import csv
import re
from pathlib import Path

import anndata as ad
import pandas as pd

from ..model.errors import InputError

_MATRIX = re.compile(r"^(?P<prefix>.*)matrix\.mtx(?:\.gz)?$")
_GENES = ("features.tsv", "genes.tsv")
_CELLS = ("barcodes.tsv",)
#: Columns of the genes' table, as scanpy calls them.
_COLUMNS = ("gene_ids", "gene_symbols", "feature_types")


def is_matrix_market(path: Path) -> bool:
    """Returns true for the file of a matrix."""
    return path.is_file() and _MATRIX.match(path.name) is not None


def matrices(folder: Path) -> list[Path]:
    """Returns the matrices in a folder; one that is there packed and unpacked counts once."""
    found = sorted(one for one in folder.iterdir() if is_matrix_market(one))
    return list({one.name.removesuffix(".gz"): one for one in found}.values())


def files_of_matrix(path: Path) -> list[Path]:
    """Returns the matrix of a folder or a sample, and those of its tables of names that are there."""
    matrix = path if path.is_file() else matrices(path)[0]
    return [matrix, *filter(None, (_beside(matrix, names) for names in (_GENES, _CELLS)))]


def read_matrix_market(path: Path) -> ad.AnnData:
    """
    Reads a folder with one matrix, or the matrix of one sample (`GSM123_matrix.mtx.gz`), with its tables of names.

    Raises:
        InputError: A table is not there, or has another number of names than the matrix has rows or columns.
    """
    matrix = files_of_matrix(path)[0]
    genes, cells = _table(matrix, _GENES), _table(matrix, _CELLS)
    counts = ad.io.read_mtx(matrix).X
    if counts.shape == (len(genes), len(cells)):
        counts = counts.T.tocsr()
    elif counts.shape != (len(cells), len(genes)):
        rows, columns = counts.shape
        raise InputError(
            f"{matrix} has {rows} rows and {columns} columns, but there are names for {len(genes)} genes and "
            f"{len(cells)} cells: give the files of one sample."
        )
    var = genes.rename(columns=dict(enumerate(_COLUMNS))).iloc[:, : len(_COLUMNS)]
    var.index = pd.Index(var.pop("gene_ids").to_numpy())
    return ad.AnnData(counts, obs=pd.DataFrame(index=pd.Index(cells[0].to_numpy())), var=var)


def _beside(matrix: Path, names: tuple[str, ...]) -> Path | None:
    """Returns the first of some files that is there beside a matrix, packed or not."""
    found = _MATRIX.match(matrix.name)
    prefix = found["prefix"] if found else ""
    paths = (matrix.with_name(f"{prefix}{name}{end}") for name in names for end in ("", ".gz"))
    return next(filter(Path.is_file, paths), None)


def _table(matrix: Path, names: tuple[str, ...]) -> pd.DataFrame:
    path = _beside(matrix, names)
    if path is None:
        prefix = matrix.name[: matrix.name.rindex("matrix.mtx")]
        wanted = " or ".join(f"{prefix}{name}" for name in names)
        raise InputError(f"There is no {wanted} beside {matrix}: put it there, packed (.gz) or not.")
    return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)


__all__ = ["files_of_matrix", "is_matrix_market", "matrices", "read_matrix_market"]
