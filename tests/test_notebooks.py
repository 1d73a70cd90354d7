# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The notebooks of the guide: they run, print what they show, and hold their figures."""

import copy
import re

import nbformat
import pytest

from tests.support.paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


def shown(cell) -> list[str]:
    """Returns what a cell shows: texts without their numbers, which depend on the machine, and pictures as such."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            found.append("picture")
        else:
            found.append(re.sub(r"\d+(\.\d+)?", "0", " ".join(data["text/plain"].split())))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_its_figures_and_no_errors(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum("picture" in shown(cell) for cell in code) >= 1
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert "/tmp" not in path.read_text()
    assert path.stat().st_size < 400_000


@pytest.mark.e2e
@pytest.mark.heavy
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_gives(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(path, as_version=4)
    again = copy.deepcopy(notebook)
    NotebookClient(again, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, now in zip(notebook.cells, again.cells, strict=True):
        if before.cell_type == "code":
            assert shown(now) == shown(before), before.source
