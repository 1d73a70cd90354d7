# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""An annotation as a table, in each format that it is written in."""

import anndata as ad
import pandas as pd
import pytest

from modeling_langcell import InputError, LangCellAnnotator, to_table
from modeling_langcell.io import tables


@pytest.fixture
def annotated(cells, tiny_checkpoint):
    cells.obs["sample"] = ["=1+1", "b, c"] * 6
    return LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu").annotate(cells, ["B cell", "monocyte"])


def read(path):
    if path.suffix == ".xlsx":
        return pd.read_excel(path, index_col=0)
    return pd.read_csv(path, index_col=0, sep="," if path.suffix == ".csv" else "\t")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.xlsx", "T.XLSX"])
def test_a_table_is_written_and_replaced(annotated, tmp_path, name):
    path = tmp_path / name
    for _ in range(2):
        table = to_table(annotated, path, columns=["sample"])
    found = read(path.rename(path.with_name(name.lower())))
    assert found.index.tolist() == annotated.obs_names.tolist()
    assert found.columns.tolist() == table.columns.tolist()
    assert found["cell_type"].tolist() == annotated.obs["langcell_cell_type"].tolist()
    assert found["score"].to_numpy() == pytest.approx(annotated.obs["langcell_score"].to_numpy(), abs=1e-6)
    assert found["sample"].tolist()[:2] == ["'=1+1", "b, c"]  # A spreadsheet would run it.


def test_other_files_are_not_replaced(annotated, tmp_path):
    for name, content in {
        "t.csv": b"a text, with a comma\nand more\n",
        "t.xlsx": b"a,b\n1,2\n",
        "t.tsv": b"text",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="exists and is not a table"):
            to_table(annotated, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def test_a_workbook_has_room_for_a_million_rows(annotated, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_EXCEL_ROWS", 12)
    with pytest.raises(
        InputError, match=r"t.xlsx cannot hold 12 cells, because Excel reads 12 rows at most: write a \.csv"
    ):
        to_table(annotated, tmp_path / "t.xlsx")
    to_table(annotated, tmp_path / "t.csv")


def test_what_is_missing_is_said(annotated):
    with pytest.raises(InputError, match="No column 'donor' in obs"):
        to_table(annotated, columns=["donor"])
    with pytest.raises(InputError, match="annotate them first"):
        to_table(ad.AnnData(annotated.X))
