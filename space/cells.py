# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The work on a visitor's cells. It runs in a process with limits: see `jobs`."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import torch
from limits import (
    ANNOTATED,
    CELLS,
    EMBEDDED,
    MOST_CELLS,
    MOST_GENES,
    MOST_IN_ALL,
    MOST_IN_TABLES,
    MOST_PARTS,
    REPORT,
    TABLE,
)
from pandas.api.types import is_numeric_dtype
from words import LAYER, VALUES, in_words

from modeling_langcell import InputError, LangCellAnnotator, to_table
from modeling_langcell.annotation.calibration import LEAST_FIT
from modeling_langcell.annotation.explain import explain_annotated
from modeling_langcell.annotation.expression import express_markers
from modeling_langcell.annotation.large_files import annotate_file, embed_file
from modeling_langcell.annotation.metrics import compare
from modeling_langcell.annotation.predictions import DecisionRule
from modeling_langcell.annotation.quality import examine
from modeling_langcell.io.containers import find_reader
from modeling_langcell.io.content import READING
from modeling_langcell.io.example import CELL_OPTIONS, load_example
from modeling_langcell.io.h5ad import open_cells, open_lightly, read_annotation, reading_h5ad
from modeling_langcell.io.progress import watching
from modeling_langcell.report.page import write_report
from modeling_langcell.report.plots import lay_out

Said = Callable[[float, str], Any]

_MOST_NAMES = 200  # Different names of a column that a visitor can choose.
_SHOWN = 20  # Cells that a search shows.


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


def error_rates(said: Said) -> list[int]:
    """Returns the wrong answers per 100 that the checkpoint is calibrated for; none without a calibration."""
    calibration = DecisionRule(annotator().scorer(["B cell", "T cell"])).calibration
    return [round(100 * float(rate)) for rate in calibration.thresholds] if calibration else []


def write_example(folder: str, said: Said) -> dict[str, Any]:
    """Writes the example into a folder, and describes it as `describe` does."""
    load_example().write_h5ad(Path(folder, CELLS))
    return describe(folder, said, **CELL_OPTIONS)


def describe(folder: str, said: Said, **options: Any) -> dict[str, Any]:
    """
    Describes the file in a folder.

    Args:
        folder: The visitor's folder.
        said: Takes how far the work is.
        options: How its cells are read, if not as is told from the values.

    Returns:
        `cells` and `genes`, their numbers; `arrays`, the names of its arrays other than X: `raw.X` and layers as
        `layer NAME`; `columns` of names, such as samples and known labels; and `counts`, a sentence on the counts that
        were found, or on what is missing.

    Raises:
        InputError: The file cannot be read, or is too large for the app.
    """
    cells = Path(folder, CELLS)
    require_size(cells)
    with open_lightly(cells) as adata:
        n_cells, n_genes = adata.shape
        n_genes = max(n_genes, 0 if adata.raw is None else adata.raw.n_vars)
        arrays = [f"{LAYER}{name}" for name in adata.layers if name] + ([] if adata.raw is None else ["raw.X"])
        columns = [str(name) for name in adata.obs if _holds_names(adata.obs[name])]
        return {
            "cells": n_cells,
            "genes": n_genes,
            "arrays": arrays,
            "columns": columns,
            "counts": _counts_of(adata, options),
        }


def _holds_names(column: Any) -> bool:
    """Returns true for a column of few names: not for numbers, nor for names that are each cell's own."""
    return not is_numeric_dtype(column) and 1 < column.nunique() <= min(_MOST_NAMES, len(column) // 2)


def _counts_of(adata: Any, options: dict[str, Any]) -> str:
    """Returns a sentence on the counts that are read, or on why there are none."""
    try:
        source, match = annotator().processor.feature_extractor.open(adata, **options)
    except InputError as error:
        return in_words(error)
    kind = next(name for name, counts in VALUES.items() if counts == source.kind.counts)
    known = int((match.token_ids >= 0).sum())
    return f"{source.label} holds {kind}; {known:,} of {len(match.token_ids):,} {match.organism} genes are known."


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


def annotate(
    folder: str,
    sample: str,
    asked: dict[str, Any],
    options: dict[str, Any],
    reference: str | None,
    sample_key: str | None,
    said: Said,
) -> str:
    """
    Writes the annotated file, the report and the table for the cells in a folder. Returns why they were not compared
    with known labels, or nothing.

    Args:
        folder: The visitor's folder.
        sample: What the visitor's file is called.
        asked: What the visitor wants to know: arguments of `annotate_file`.
        options: How the cells are read.
        reference: Column of `obs` with known labels.
        sample_key: Column of `obs` with samples.
        said: Takes how far the work is.
    """
    cells, annotated_cells = Path(folder, CELLS), Path(folder, ANNOTATED)
    annotated_cells.with_suffix(".json").unlink(missing_ok=True)  # It would tell of the file that is replaced.
    with _reading_cells("Reading and annotating the cells", 0.6, said):
        annotate_file(annotator(), cells, annotated_cells, empty_cells="mark", **asked, **options)
    _note_read_as(annotated_cells, options)
    annotated = read_annotation(annotated_cells, embeds=True)
    said(0.6, "Drawing the map")
    layout, extractor = lay_out(annotated), annotator().processor.feature_extractor
    with open_lightly(cells) as adata:
        parts: dict[str, Any] = {"quality": examine(extractor, adata, annotated)}
        parts["expressed"] = express_markers(extractor, adata, annotated, layout.rows)
        with watching(lambda _, share: said(0.7 + 0.2 * share, "Looking for the genes that drive the labels")):
            parts["genes"] = explain_annotated(annotator(), adata, annotated, cells_per_label=5, **options)
    said(0.9, "Writing the report and the table")
    not_compared = ""
    if reference is not None:
        try:
            compare(annotated, reference)
        except InputError as error:
            reference, not_compared = None, f"Not compared with {reference}. {in_words(error)}"
    parts |= {"name": sample, "reference": reference, "sample_key": sample_key}
    write_report(annotated, Path(folder, REPORT), layout, **parts)
    to_table(annotated, Path(folder, TABLE), columns=[] if sample_key is None else [sample_key])
    return not_compared


@contextmanager
def _reading_cells(what: str, end: float, said: Said) -> Iterator[None]:
    """Says how far the reading of the cells is, up to a share of the work, while this lasts."""
    furthest = 0.0

    def watch(title: str, share: float) -> None:
        nonlocal furthest  # The file is read for its hash before and after the cells.
        furthest = max(furthest, 0.05 * share if title == READING else 0.05 + (end - 0.05) * share)
        said(furthest, what)

    said(0.0, what)
    with watching(watch):
        yield


def search(folder: str, text: str, options: dict[str, Any], said: Said) -> dict[str, Any]:
    """
    Finds the cells in a folder that a text describes best.

    Args:
        folder: The visitor's folder.
        text: The text.
        options: How the cells are read.
        said: Takes how far the work is.

    Returns:
        `cells`, their number; `fitting`, the number of those that the text describes more probably than not, or None
        where the checkpoint cannot tell; and `found`, the best of them.
    """
    files = [Path(folder, name) for name in (ANNOTATED, EMBEDDED)]
    embedded = next((file for file in files if _is_read_as(file, options)), None)
    if embedded is None:
        embedded = files[1]
        with _reading_cells("Reading the cells", 0.9, said):
            embed_file(annotator(), Path(folder, CELLS), embedded, empty_cells="mark", **options)
        _note_read_as(embedded, options)
    said(0.9, "Searching")
    adata = open_cells(embedded)
    if files[0].exists():
        adata.obs = read_annotation(files[0]).obs
    scores = annotator().score_cells(adata, text)
    found = annotator().search(adata, text, _SHOWN).reset_index()
    fitting = int((scores["fit"] >= LEAST_FIT).sum()) if "fit" in scores else None
    rows = found[[name for name in ("cell", "label", "similarity", "fit") if name in found]].to_dict("records")
    return {"cells": len(scores), "fitting": fitting, "found": rows}


def _note_read_as(embedded: Path, options: dict[str, Any]) -> None:
    """Notes how the cells were read for a file with their embeddings, which a search can then use."""
    embedded.with_suffix(".json").write_text(json.dumps(options))


def _is_read_as(embedded: Path, options: dict[str, Any]) -> bool:
    note = embedded.with_suffix(".json")
    return embedded.exists() and note.exists() and note.read_text() == json.dumps(options)


__all__ = ["annotate", "annotator", "describe", "error_rates", "search", "write_example"]
