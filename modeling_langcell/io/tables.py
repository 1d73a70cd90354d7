# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Tables as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .file_kinds import TABLE
from .printable import text_cell
from .replace import write_result


def write_table(table: pd.DataFrame | Sequence[Mapping[str, Any]], path: str | Path, *, index: bool = False) -> Path:
    """
    Writes a table with a line for each row, its cells separated by tabs. Texts are marked where a
    spreadsheet would run them (`text_cell`); numbers are written as they are.

    Args:
        table: The table, or its rows.
        path: Path of the file.
        index: True to write the index as the first column.

    Returns:
        The path.

    Raises:
        InputError: The file cannot be written, or would replace one that is no table.
    """
    texts = pd.DataFrame(table).reset_index(drop=not index)
    for number in range(texts.shape[1]):
        column = texts.iloc[:, number]
        if not pd.api.types.is_numeric_dtype(column):
            texts.isetitem(number, column.astype(object).map(_safe_value).to_numpy())
    texts.columns = ["" if column == "index" and index else text_cell(str(column)) for column in texts.columns]
    return write_result(path, texts.to_csv(sep="\t", index=False, lineterminator="\n"), TABLE)


def _safe_value(value: Any) -> Any:
    return text_cell(value) if isinstance(value, str) else value


__all__ = ["write_table"]
