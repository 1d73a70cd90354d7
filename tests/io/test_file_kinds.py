# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Kinds of files: an output replaces only a file of its own kind, whatever the file is called."""

import h5py
import pandas as pd
import pytest
from matplotlib.figure import Figure

from modeling_langcell import InputError
from modeling_langcell.io import file_kinds, write_annotated
from modeling_langcell.io.replace import write_result
from modeling_langcell.io.tables import write_table
from modeling_langcell.report import write_figure
from modeling_langcell.report.html import write_page

KINDS = {"cells": file_kinds.CELLS, "page": file_kinds.PAGE, "figure": file_kinds.FIGURE, "table": file_kinds.TABLE}
KINDS |= {"card": file_kinds.CARD, "json": file_kinds.JSON, "scores": file_kinds.SCORES}


@pytest.fixture
def of_kind(cells, tmp_path):
    """Files of each kind, made by the package, and of other kinds."""
    files = {name: tmp_path / name for name in ("cells", "table", "json", "card", "scores", "notes", "loom", "mudata")}
    cells.write_h5ad(files["cells"])
    write_table(pd.DataFrame({"gene": ["A", "B"], "score": [1.0, 2.0]}), files["table"])
    files["json"].write_text('{"cells": []}')
    files["card"].write_text("---\nlicense: mit\n---\n# mine\n")
    files["scores"].write_text("# zero-shot\n\nHow well?\n\n| study | method | accuracy |\n| --- | --- | --- |\n")
    files["notes"].write_text("What I found\n\tfirst\n\tsecond, and a third\n")
    files["page"] = write_page(tmp_path / "page.html", "page.html", title="mine", body="")
    for suffix in ("png", "pdf", "svg"):
        files[suffix] = write_figure(Figure(), tmp_path / f"figure.{suffix}")
    for name, groups in (("loom", ["matrix", "row_attrs"]), ("mudata", ["obs", "var", "mod"])):
        with h5py.File(files[name], "w") as file:
            for group in groups:
                file.create_group(group)
    files["binary"] = tmp_path / "binary"
    files["binary"].write_bytes(bytes(range(256)))
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told_from_all_others(of_kind, kind):
    same = {kind} if kind != "figure" else {"png", "pdf", "svg"}
    assert {name for name, path in of_kind.items() if KINDS[kind].is_held_by(path)} == same


def test_writers_replace_their_own_kind_alone(of_kind, cells, tmp_path):
    writers = {
        "cells": (lambda path: write_annotated(cells, path), ""),
        "table": (lambda path: write_table([{"a": 1, "b": 2}], path), ""),
        "page": (lambda path: write_page(path, "page.html", title="", body=""), ".html"),
        "png": (lambda path: write_figure(Figure(), path), ".png"),
        "json": (lambda path: write_result(path, "{}", file_kinds.JSON), ""),
    }
    for own, (write, suffix) in writers.items():
        for name, path in of_kind.items():
            place = tmp_path / f"place{suffix}"
            place.unlink(missing_ok=True)
            place.hardlink_to(path)
            before = place.read_bytes()
            if name == own or {name, own} <= {"png", "pdf", "svg"}:
                write(place)
                continue
            with pytest.raises(InputError, match="so it is not replaced: choose another path, or remove the file"):
                write(place)
            assert place.read_bytes() == before
        for start in ("new", "empty"):
            place = tmp_path / f"{start}-{own}{suffix}"
            if start == "empty":
                place.touch()
            write(place)
            assert place.stat().st_size > 0


def test_a_link_to_another_kind_is_not_replaced(of_kind, tmp_path):
    (tmp_path / "link.html").symlink_to(of_kind["cells"])
    with pytest.raises(InputError, match="is not an HTML page"):
        write_page(tmp_path / "link.html", "page.html", title="", body="")
    assert (tmp_path / "link.html").is_symlink()


def test_a_suffix_of_another_kind(cells, tmp_path):
    for name in ("a.csv", "a.zarr", "a.h5ad.gz"):
        with pytest.raises(InputError, match=r"must end in \.h5ad: it will be a file of cells"):
            write_annotated(cells, tmp_path / name)
    for name in ("a.h5ad", "a.pdf"):
        with pytest.raises(InputError, match=r"must end in \.tsv, \.csv, \.xlsx or \.txt: it will be a table"):
            write_table([{"a": 1, "b": 2}], tmp_path / name)
    for name in ("a.pdf.gz", "a", "a.jpg"):
        with pytest.raises(InputError, match=r"must end in .png, .pdf or .svg: it will be a figure"):
            write_figure(Figure(), tmp_path / name)
    assert write_figure(Figure(), tmp_path / "A.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_figure_is_whole_or_absent(tmp_path, monkeypatch):
    path = write_figure(Figure(), tmp_path / "a.png")
    before = path.read_bytes()
    figure = Figure()
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write_figure(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
