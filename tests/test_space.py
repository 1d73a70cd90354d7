# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The app, in a browser, as its visitors meet it: in a process of its own, with real cells and langcell-mini."""

import sys
import time
from pathlib import Path

import anndata as ad
import httpx
import numpy as np
import pytest

from modeling_langcell import LangCellAnnotator

from .conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "space"))
from visits import Visits

LONG = 180_000  # Milliseconds in which a busy machine annotates a few cells.


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """Where the app keeps what visitors bring."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def address(chromium, temporary):
    pytest.importorskip("gradio")
    from modeling_langcell.eval.pictures import running_app

    with running_app(TMPDIR=str(temporary)) as address:
        open_to_the_end = chromium.new_page()
        open_to_the_end.goto(address)
        yield address
    open_to_the_end.close()
    assert not [path for path in temporary.rglob("*") if path.is_file()], "nothing stays when the app stops"


@pytest.fixture
def visit(chromium, address):
    """Opens the page as another visitor."""
    contexts = []

    def visit():
        contexts.append(chromium.new_context())
        tab = contexts[-1].new_page()
        tab.set_default_timeout(LONG)
        tab.goto(address)
        tab.get_by_role("button", name="Annotate").wait_for()
        return tab

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def blood(shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("blood") / "blood.h5ad"
    ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[:150].write_h5ad(path)
    return path


def drop(tab, path: Path) -> None:
    tab.locator("input[type=file]").first.set_input_files(path)


def annotate(tab):
    """Presses the button: the report."""
    tab.get_by_role("button", name="Annotate").click()
    tab.get_by_role("link", name="Download the annotated .h5ad").wait_for()
    return tab.frame_locator("iframe")


def said_in_error(tab) -> str:
    toast = tab.get_by_test_id("toast-body")
    toast.wait_for()
    said = toast.inner_text()
    toast.get_by_label("Close").click()
    toast.wait_for(state="hidden")
    return said


def test_a_file_is_annotated_shown_and_given_back(visit, blood, tmp_path):
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.get_by_label("Or in your own words").fill("platelet maker: cell type: megakaryocyte, full of PF4 and PPBP.")
    page = annotate(tab)
    for said in (
        "150 cells; X read as raw values",
        "answered, at 10% expected errors",
        "Driving genes",
        "platelet maker",
    ):
        page.get_by_text(said).first.wait_for()
    page.get_by_label("Coloured by").select_option("doubt")
    page.locator(".ramp").wait_for()
    assert page.locator(".genes td").first.inner_text()
    assert page.locator("#doubtful-cells tbody tr").count() == 100

    with tab.expect_download() as started:
        tab.get_by_role("link", name="Download the annotated .h5ad").click()
    started.value.save_as(tmp_path / "annotated.h5ad")
    found = ad.read_h5ad(tmp_path / "annotated.h5ad")
    names = [*found.uns["langcell"]["labels"]]
    assert "platelet maker" in names
    assert "B cell" in names
    labels = dict(zip(names, found.uns["langcell"]["descriptions"], strict=True))
    again = LangCellAnnotator.from_pretrained("langcell-mini").annotate(ad.read_h5ad(blood), labels, empty_cells="mark")
    assert (found.obs["langcell_cell_type"] == again.obs["langcell_cell_type"]).mean() > 0.99
    np.testing.assert_allclose(found.obs["langcell_score"], again.obs["langcell_score"], atol=1e-4)


def test_the_example(visit):
    tab = visit()
    tab.get_by_role("button", name="Take the example").click()
    tab.get_by_text("700 cells x 765 genes.").wait_for()
    assert tab.get_by_label("Array with the counts").input_value() == "raw.X"
    page = annotate(tab)
    page.get_by_text("700 cells; raw.X read as log1p values").wait_for()
    page.get_by_text("Few genes: only").wait_for()


def test_errors_are_kind(visit, blood, tmp_path):
    tab = visit()
    tab.get_by_role("button", name="Annotate").click()
    assert "Drop an .h5ad file first" in said_in_error(tab)

    (tmp_path / "text.h5ad").write_text("no cells here")
    drop(tab, tmp_path / "text.h5ad")
    said = said_in_error(tab)
    assert "cells.h5ad cannot be read as .h5ad" in said
    assert "/" not in said.replace("n/a", "")
    tab.reload()

    scaled = ad.read_h5ad(blood)
    scaled.X = scaled.X.toarray() - 1
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    drop(tab, tmp_path / "scaled.h5ad")
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.get_by_role("button", name="Annotate").click()
    assert "negative values" in said_in_error(tab)

    tab.get_by_label("Or in your own words").fill("no description")
    tab.get_by_role("button", name="Annotate").click()
    assert "write 'label: description'" in said_in_error(tab)


def test_files_that_are_too_large(visit, address, tmp_path):
    many = ad.AnnData(np.ones((20_001, 2), dtype=np.float32))
    many.write_h5ad(tmp_path / "many.h5ad")
    tab = visit()
    drop(tab, tmp_path / "many.h5ad")
    assert "20,001 cells x 2 genes are more than is done here" in said_in_error(tab)

    with open(tmp_path / "large.h5ad", "wb") as large:
        large.truncate(201 * 2**20)
    with open(tmp_path / "large.h5ad", "rb") as large:  # Whatever the page would do.
        sent = httpx.post(f"{address}/gradio_api/upload", files={"files": large}, timeout=120)
    assert sent.status_code == 413


def test_visitors_do_not_see_each_other_and_leave_nothing(visit, address, temporary, blood):
    one, other = visit(), visit()
    drop(one, blood)
    one.get_by_text("150 cells x 9,015 genes.").wait_for()
    annotate(one).get_by_text("150 cells; X read").wait_for()
    link = one.get_by_role("link", name="Download the annotated .h5ad").get_attribute("href")
    (cells,) = temporary.rglob("cells.h5ad")

    assert not other.get_by_text("150 cells").count()
    other.get_by_role("button", name="Annotate").click()
    assert "Drop an .h5ad file first" in said_in_error(other)
    assert httpx.get(f"{address}/{link}").status_code == 200
    token = link.split("/")[1]
    guesses = [
        link.replace(token, "x" * len(token)),
        f"results/{token}/cells.h5ad",
        f"results/{token}/..%2F..%2Fpasswd",
    ]
    guesses += [f"gradio_api/file={cells}", f"gradio_api/file={temporary}", f"file={cells}", "results/"]
    for guess in guesses:
        assert httpx.get(f"{address}/{guess}").status_code in (403, 404), guess
    assert not list(temporary.rglob("blood.h5ad")), "the upload itself is not kept"

    one.close()
    other.wait_for_timeout(3000)
    assert not cells.exists()
    assert httpx.get(f"{address}/{link}").status_code == 404


def test_what_is_not_used_is_deleted(tmp_path):
    visits = Visits(0.2, tmp_path)
    visit = visits.of("page")
    (visit.folder / "cells.h5ad").touch()
    (tmp_path / "half").touch()
    assert visits.find(visit.token, "cells.h5ad")
    time.sleep(1)
    assert not visit.folder.exists()
    assert not (tmp_path / "half").exists()
    assert visits.find(visit.token, "cells.h5ad") is None
    assert visits.of("page").token != visit.token
    visits.close()


def test_a_visit_is_found_by_its_token_alone(tmp_path):
    visits = Visits(60, tmp_path)
    visit = visits.of("page")
    (visit.folder / "report.html").touch()
    assert visits.of("page") is visit
    assert visits.of("another page").folder != visit.folder
    assert visits.find(visit.token, "report.html") == visit.folder / "report.html"
    assert visits.find("page", "report.html") is None
    assert visits.find(visit.token, "../report.html") == visit.folder / "report.html"
    assert visits.find(visit.token, "other") is None
    assert visits.without_paths(f"{visit.folder}/cells.h5ad is damaged.") == "cells.h5ad is damaged."
    visits.end("page")
    assert not visit.folder.exists()
    visits.close()
