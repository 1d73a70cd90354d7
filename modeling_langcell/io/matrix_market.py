# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Matrices of counts in Matrix Market's format, with the names of genes and cells in files beside them: as Cell Ranger,
STARsolo, alevin-fry and kb write them, packed or not, and as GEO keeps them, with a sample's name in front.
"""

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import pandas as pd

from ..model.errors import InputError


@dataclass(frozen=True)
class _Layout:
    """
    The names of a program's files.

    Args:
        matrix: That of the matrix.
        genes, cells: Those of the tables of names, of which one is there.
    """

    matrix: str
    genes: tuple[str, ...]
    cells: tuple[str, ...]


_LAYOUTS = (
    _Layout("matrix.mtx", ("features.tsv", "genes.tsv"), ("barcodes.tsv",)),
    _Layout("cells_x_genes.mtx", ("cells_x_genes.genes.txt",), ("cells_x_genes.barcodes.txt",)),  # kb
    _Layout("quants_mat.mtx", ("quants_mat_cols.txt",), ("quants_mat_rows.txt",)),  # alevin-fry
)
#: Columns of the genes' table, as scanpy calls them.
_COLUMNS = ("gene_ids", "gene_symbols", "feature_types")
#: Columns that are read: these, and perhaps the numbers of the rows before them. Lines may have more, or fewer.
_COLUMNS_READ = len(_COLUMNS) + 1
#: First lines that name the columns of a table, in small letters.
_HEADERS = frozenset(
    {
        *("", "x", "v1", "id", "name", "index", "barcode", "barcodes", "cell", "cells", "cell_id", "cell_barcode"),
        *("gene", "genes", "gene_id", "gene_ids", "geneid", "ensembl", "ensembl_id", "ensembl_gene_id", "feature"),
        *("features", "feature_id", "feature_name", "symbol", "gene_symbol", "gene_name", "gene_names"),
    }
)


def is_matrix_market(path: Path) -> bool:
    """Returns true for the file of a matrix."""
    return path.is_file() and _layout_of(path) is not None


def _layout_of(matrix: Path) -> tuple[str, _Layout] | None:
    """Returns what stands before a matrix's name, and how its files are called; None for another file."""
    name = matrix.name.removesuffix(".gz")
    found = (one for one in _LAYOUTS if name.endswith(one.matrix))
    return next(((name.removesuffix(one.matrix), one) for one in found), None)


def matrices(folder: Path) -> list[Path]:
    """Returns the matrices in a folder; one that is there packed and unpacked counts once."""
    found = sorted(one for one in folder.iterdir() if is_matrix_market(one))
    return list({one.name.removesuffix(".gz"): one for one in found}.values())


def files_of_matrix(path: Path) -> list[Path]:
    """Returns the matrix of a folder or a sample, and those of its tables of names that are there."""
    matrix = path if path.is_file() else matrices(path)[0]
    _, layout = _required_layout(matrix)
    return [matrix, *filter(None, (_beside(matrix, names) for names in (layout.genes, layout.cells)))]


def read_matrix_market(path: Path) -> ad.AnnData:
    """
    Reads a folder with one matrix, or the matrix of one sample (`GSM123_matrix.mtx.gz`), with its tables of names.

    Raises:
        InputError: A table is not there, or has another number of names than the matrix has rows or columns.
    """
    matrix = files_of_matrix(path)[0]
    _, layout = _required_layout(matrix)
    genes, cells = _table(matrix, layout.genes), _table(matrix, layout.cells)
    counts = ad.io.read_mtx(matrix).X
    if counts.shape == (len(genes), len(cells)):
        counts = counts.T
    elif counts.shape != (len(cells), len(genes)):
        rows, columns = counts.shape
        raise InputError(
            f"{matrix} has {rows} rows and {columns} columns, but there are names for {len(genes)} genes and "
            f"{len(cells)} cells: give the files of one sample."
        )
    var = genes.rename(columns=dict(enumerate(_COLUMNS))).iloc[:, : len(_COLUMNS)]
    var.index = pd.Index(var.pop("gene_ids").to_numpy())
    return ad.AnnData(counts.tocsr(), obs=pd.DataFrame(index=pd.Index(cells[0].to_numpy())), var=var)


def _required_layout(matrix: Path) -> tuple[str, _Layout]:
    found = _layout_of(matrix)
    assert found is not None
    return found


def _beside(matrix: Path, names: tuple[str, ...]) -> Path | None:
    """Returns the first of some files that is there beside a matrix, packed or not."""
    prefix, _ = _required_layout(matrix)
    paths = (matrix.with_name(f"{prefix}{name}{end}") for name in names for end in ("", ".gz"))
    return next(filter(Path.is_file, paths), None)


def _table(matrix: Path, names: tuple[str, ...]) -> pd.DataFrame:
    """
    Reads a table of names, without what R writes with it: quotes, the numbers of the rows, and a first line.

    Raises:
        InputError: It is not there.
    """
    path = _beside(matrix, names)
    if path is None:
        prefix, _ = _required_layout(matrix)
        wanted = " or ".join(f"{prefix}{name}" for name in names)
        raise InputError(f"There is no {wanted} beside {matrix}: put it there, packed (.gz) or not.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)  # It warns of columns that are left out.
        table = pd.read_csv(
            path,
            sep="\t",
            header=None,
            names=range(_COLUMNS_READ),
            index_col=False,
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
        )
    table = table.fillna("").replace(r'^"(.*)"$', r"\1", regex=True)
    table = table[[column for column in table.columns if column == 0 or (table[column] != "").any()]]
    numbers = list(map(str, range(1, len(table) + 1)))
    if table.shape[1] > 1 and table[0].tolist()[1:] in (numbers[:-1], numbers[1:]):
        table = table.drop(columns=0).T.reset_index(drop=True).T
    return table.iloc[1:] if len(table) and str(table.iloc[0, 0]).casefold() in _HEADERS else table


__all__ = ["files_of_matrix", "is_matrix_market", "matrices", "read_matrix_market"]
