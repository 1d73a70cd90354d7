# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Tables as files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..model.errors import InputError
from .file_kinds import TABLE
from .printable import text_cell
from .replace import write_result

_EXCEL_ROWS = 2**20  # With the line of names.


def write_table(table: pd.DataFrame | Sequence[Mapping[str, Any]], path: str | Path, *, index: bool = False) -> Path:
    """
    Writes a table with a line for each row. Texts are marked where a spreadsheet would run them (`text_cell`); numbers
    are written as they are.

    Args:
        table: The table, or its rows.
        path: Path of the file: its cells are separated by commas in a `.csv`, and by tabs in others, except that an
            `.xlsx` is a workbook of Excel.
        index: True to write the index as the first column.

    Returns:
        The path.

    Raises:
        InputError: The file cannot be written, or would replace one that is no table, or Excel could not read it.
    """
    texts = pd.DataFrame(table).reset_index(drop=not index)
    for number in range(texts.shape[1]):
        column = texts.iloc[:, number]
        if not pd.api.types.is_numeric_dtype(column):
            texts.isetitem(number, column.astype(object).map(_safe_value).to_numpy())
    texts.columns = ["" if column == "index" and index else text_cell(str(column)) for column in texts.columns]
    path = Path(path)
    if path.suffix.lower() == ".xlsx":
        return write_result(path, _workbook(texts, path), TABLE)
    separator = "," if path.suffix.lower() == ".csv" else "\t"
    return write_result(path, texts.to_csv(sep=separator, index=False, lineterminator="\n"), TABLE)


def _workbook(table: pd.DataFrame, path: Path) -> bytes:
    require_room(path, len(table))
    content = io.BytesIO()
    table.to_excel(content, index=False, freeze_panes=(1, 0), engine="openpyxl")
    return content.getvalue()


def require_room(path: str | Path, rows: int) -> None:
    """
    Checks that a file can hold a table of so many rows.

    Raises:
        InputError: It is a workbook, and Excel reads fewer.
    """
    if Path(path).suffix.lower() == ".xlsx" and rows >= _EXCEL_ROWS:
        raise InputError(
            f"{path} cannot hold {rows:,} cells, because Excel reads {_EXCEL_ROWS:,} rows at most: write a .csv file."
        )


def _safe_value(value: Any) -> Any:
    return text_cell(value) if isinstance(value, str) else value


__all__ = ["require_room", "write_table"]
