# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The work on a visitor's cells. It runs in a process with limits: see `jobs`."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import torch
from limits import ANNOTATED, CELLS, MOST_CELLS, MOST_GENES, MOST_IN_ALL, MOST_IN_TABLES, MOST_PARTS, REPORT

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation.explain import explain_annotated
from modeling_langcell.annotation.expression import express_markers
from modeling_langcell.annotation.large_files import annotate_file
from modeling_langcell.annotation.predictions import DecisionRule
from modeling_langcell.annotation.quality import examine
from modeling_langcell.io.containers import find_reader
from modeling_langcell.io.example import load_example
from modeling_langcell.io.h5ad import open_lightly, read_annotation, reading_h5ad
from modeling_langcell.report.page import write_report
from modeling_langcell.report.plots import lay_out

Said = Callable[[float, str], Any]


@cache
def annotator() -> LangCellAnnotator:
    """
    Loads the checkpoint that the environment variable `MODEL` names.

    Raises:
        InputError: It cannot be loaded.
    """
    return LangCellAnnotator.from_pretrained(os.environ.get("MODEL", "langcell-mini"))


def load() -> None:
    """Loads the checkpoint before any work, in the process from which those of the visitors are forked."""
    torch.set_num_threads(1)  # Threads of the libraries for computing would not survive a fork.
    with suppress(InputError):  # The first work says it.
        annotator()
    import_module("umap")  # Its machine code takes seconds to load.
    torch.set_num_threads(os.cpu_count() or 1)


def error_rates(labels: list[str], said: Said) -> list[int]:
    """Returns the wrong answers per 100 that the checkpoint is calibrated for; none without a calibration."""
    calibration = DecisionRule(annotator().scorer(labels)).calibration
    return [round(100 * float(rate)) for rate in calibration.thresholds] if calibration else []


def write_example(folder: str, said: Said) -> tuple[int, int, list[str]]:
    """Writes the example into a folder, and describes it as `describe` does."""
    load_example().write_h5ad(Path(folder, CELLS))
    return describe(folder, said)


def describe(folder: str, said: Said) -> tuple[int, int, list[str]]:
    """
    Returns the numbers of cells and genes of the file in a folder, and the names of its arrays other than X: `raw.X`
    and layers as `layer NAME`.

    Raises:
        InputError: The file cannot be read, or is too large for the app.
    """
    cells = Path(folder, CELLS)
    require_size(cells)
    with open_lightly(cells) as adata:
        n_cells, n_genes = adata.shape
        n_genes = max(n_genes, 0 if adata.raw is None else adata.raw.n_vars)
        arrays = [f"layer {name}" for name in adata.layers if name] + ([] if adata.raw is None else ["raw.X"])
    return n_cells, n_genes, arrays


def require_size(cells: Path) -> None:
    """
    Checks the size of a file when it is unpacked, before any of it is read. A part to which several links lead is
    read, and counted, as often.

    Raises:
        InputError: The file unpacks to more than the limits, or is another container, which would be read as a whole.
    """
    if find_reader(cells) is not None:
        raise InputError("This is no .h5ad file. The package reads other files, and writes them as .h5ad.")
    in_tables = in_all = parts = 0
    with reading_h5ad(cells) as path, h5py.File(path) as file:
        require_shape(file)
        left: list[tuple[str, Any]] = [("", file)]
        while left:
            name, part = left.pop()
            parts += 1
            if isinstance(part, h5py.Group):
                if parts + len(left) + len(part) > MOST_PARTS:
                    raise InputError(f"This file has more than {MOST_PARTS:,} parts: remove those that are not needed.")
                left += [(f"{name}/{key}", part[key]) for key in part]
            elif isinstance(part, h5py.Dataset):
                size = (part.size or 0) * part.dtype.itemsize  # A null dataset, which stands for None, has no size.
                in_all += size
                in_tables += size if name.startswith(("/obs", "/var", "/raw/var")) else 0
    if in_tables > MOST_IN_TABLES or in_all > MOST_IN_ALL:
        raise InputError(
            "Unpacked, this file is larger than this app takes: remove the parts that are not needed, and try again."
        )


def require_shape(file: h5py.File) -> None:
    """
    Checks the numbers of cells and genes of the matrices and tables, as the file states them.

    Raises:
        InputError: They are more than the limits.
    """
    n_cells, n_genes = _rows(file.get("obs")), max(_rows(file.get("var")), _rows(file.get("raw/var")))
    for matrix in (file.get("X"), file.get("raw/X"), *dict(file.get("layers", {})).values()):
        shape: tuple = () if matrix is None else getattr(matrix, "shape", None) or tuple(matrix.attrs.get("shape", ()))
        if len(shape) == 2:
            n_cells, n_genes = max(n_cells, int(shape[0])), max(n_genes, int(shape[1]))
    if n_cells > MOST_CELLS or n_genes > MOST_GENES:
        raise InputError(
            f"{n_cells:,} cells x {n_genes:,} genes are more than this app takes ({MOST_CELLS:,} x {MOST_GENES:,}): "
            "select some of them, or use the package, which has no such limit."
        )


def _rows(table: Any) -> int:
    """Returns the number of rows of a table, which is that of its index."""
    if isinstance(table, h5py.Dataset):  # Before anndata 0.7.
        return len(table) if table.shape else 0
    index = None if table is None else table.get(str(table.attrs.get("_index", "_index")))
    return len(index) if isinstance(index, h5py.Dataset) and index.shape else 0


def annotate(folder: str, asked: dict[str, Any], options: dict[str, Any], said: Said) -> None:
    """
    Writes the annotated file and the report for the cells in a folder.

    Args:
        folder: The visitor's folder.
        asked: What the visitor wants to know: arguments of `annotate_file`.
        options: How the cells are read.
        said: Takes how far the work is.
    """
    cells, annotated_cells = Path(folder, CELLS), Path(folder, ANNOTATED)
    said(0.1, "Reading and annotating the cells")
    annotate_file(annotator(), cells, annotated_cells, empty_cells="mark", **asked, **options)
    annotated = read_annotation(annotated_cells, embeds=True)
    said(0.5, "Looking for the genes that drive the labels")
    layout, extractor = lay_out(annotated), annotator().processor.feature_extractor
    with open_lightly(cells) as adata:
        quality = examine(extractor, adata, annotated)
        genes = explain_annotated(annotator(), adata, annotated, cells_per_label=5, **options)
        expressed = express_markers(extractor, adata, annotated, layout.rows)
    said(0.8, "Writing the report")
    write_report(annotated, Path(folder, REPORT), layout, quality=quality, genes=genes, expressed=expressed)


__all__ = ["annotate", "annotator", "describe", "error_rates", "write_example"]
