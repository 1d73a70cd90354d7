# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The app in a browser and in a process of its own, with real cells and langcell-mini."""

import json
import os
import re
import secrets
import shutil
import sys
import time
from pathlib import Path

import anndata as ad
import h5py
import httpx
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.records import label_descriptions
from modeling_langcell.ontology import usual_in
from tests.support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "space"))
from visits import Visits

LONG = 180_000  # Milliseconds: enough to annotate a few cells on a busy machine.


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """The folder in which the app keeps visitors' files."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def address(chromium, temporary):
    from modeling_langcell.eval.experiments.pictures import running_app

    with running_app(TMPDIR=str(temporary)) as address:
        open_to_the_end = chromium.new_page()
        open_to_the_end.goto(address)
        yield address
    open_to_the_end.close()
    assert not [path for path in temporary.rglob("*") if path.is_file()], "no file stays when the app stops"


@pytest.fixture
def visit(chromium, address):
    """Opens the page as a new visitor."""
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
    """Clicks the button. Returns the frame of the report."""
    tab.get_by_role("button", name="Annotate").click()
    tab.get_by_role("link", name="Download the annotated .h5ad").wait_for()
    return tab.frame_locator("iframe")


def until(holds, seconds: float = 60) -> bool:
    """Waits until a condition holds, and returns whether it does."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


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
    tab.get_by_label("Types in your own words").fill("platelet maker: cell type: megakaryocyte, full of PF4 and PPBP.")
    page = annotate(tab)
    for said in (
        "150 cells; X read as raw values",
        "answered, at an expected error rate of 10%",
        "Driving genes",
        "platelet maker",
    ):
        page.get_by_text(said).first.wait_for()
    page.get_by_label("Coloured by").select_option("uncertainty")
    page.locator(".ramp").wait_for()
    assert page.locator(".genes td").first.inner_text()
    assert page.locator("#uncertain-cells tbody tr").count() == 100

    with tab.expect_download() as started:
        tab.get_by_role("link", name="Download the annotated .h5ad").click()
    started.value.save_as(tmp_path / "annotated.h5ad")
    found = ad.read_h5ad(tmp_path / "annotated.h5ad")
    names = [*found.uns["langcell"]["labels"]]
    assert "platelet maker" in names
    assert "B cell" in names
    labels = label_descriptions(found.uns["langcell"])
    assert labels["platelet maker"].markers == ("PF4", "PPBP"), "the genes that the text names"
    again = LangCellAnnotator.from_pretrained("langcell-mini").annotate(ad.read_h5ad(blood), labels, empty_cells="mark")
    assert (found.obs["langcell_cell_type"].astype(str) == again.obs["langcell_cell_type"].astype(str)).mean() > 0.99
    np.testing.assert_allclose(found.obs["langcell_score"], again.obs["langcell_score"], atol=1e-4)


def test_a_tissue_names_the_candidates(visit, blood):
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.locator(".remove-all").click()
    tab.get_by_label("Tissue").click()
    tab.get_by_role("option", name="blood", exact=True).click()
    page = annotate(tab)
    page.get_by_text(f"of {len(usual_in(['blood']))}").first.wait_for()
    page.locator("#labels + .wide td", has_text="monocyte").first.wait_for()


def test_clusters_are_made_and_labelled(visit, blood):
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.get_by_label("Cluster the cells").check()
    page = annotate(tab)
    clusters = page.locator("#clusters + .wide tbody tr")
    clusters.first.wait_for()
    assert clusters.count() > 5


def test_the_example(visit):
    tab = visit()
    tab.get_by_role("button", name="Take the example").click()
    tab.get_by_text("700 cells x 765 genes.").wait_for()
    assert tab.get_by_label("Array with the counts").input_value() == "raw.X"
    page = annotate(tab)
    page.get_by_text("700 cells; raw.X read as log1p values").wait_for()
    page.get_by_text("Few genes: only").wait_for()


def test_a_file_with_values_that_have_no_size(visit, blood, tmp_path):
    """scanpy's `log1p` records None as its base, which is a dataset without a shape; others are single values."""
    cells = ad.read_h5ad(blood)
    cells.X.data = np.log1p(cells.X.data)
    cells.uns = {"log1p": {"base": None}, "title": "blood", "n": 3, "none": np.empty(0), "names": np.array(["a", "b"])}
    cells.obs["empty"] = pd.Categorical([None] * cells.n_obs)
    cells.write_h5ad(tmp_path / "logarithms.h5ad")
    tab = visit()
    drop(tab, tmp_path / "logarithms.h5ad")
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.get_by_label("Values in this array").click()
    tab.get_by_role("option", name="log-transformed counts").click()
    annotate(tab).get_by_text("150 cells; X read as log1p values").wait_for()
    with tab.expect_download() as started:
        tab.get_by_role("link", name="Download the annotated .h5ad").click()
    started.value.save_as(tmp_path / "annotated.h5ad")
    assert ad.read_h5ad(tmp_path / "annotated.h5ad").uns["log1p"].get("base") is None


def test_errors_tell_the_visitor_what_to_do(visit, blood, tmp_path):
    tab = visit()
    tab.get_by_role("button", name="Annotate").click()
    assert "Drop an .h5ad file first" in said_in_error(tab)

    (tmp_path / "text.h5ad").write_text("no cells here")
    drop(tab, tmp_path / "text.h5ad")
    said = said_in_error(tab)
    assert "cells.h5ad is not an .h5ad file" in said
    assert "/" not in said.replace("n/a", "")
    tab.reload()

    scaled = ad.read_h5ad(blood)
    scaled.X = scaled.X.toarray() - 1
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    drop(tab, tmp_path / "scaled.h5ad")
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.get_by_role("button", name="Annotate").click()
    assert "negative values" in said_in_error(tab)

    tab.get_by_label("Types in your own words").fill("no description")
    tab.get_by_role("button", name="Annotate").click()
    assert "write 'label: description'" in said_in_error(tab)


def test_files_that_are_too_large(visit, address, tmp_path):
    many = ad.AnnData(np.ones((20_001, 2), dtype=np.float32))
    many.write_h5ad(tmp_path / "many.h5ad")
    tab = visit()
    drop(tab, tmp_path / "many.h5ad")
    assert "20,001 cells x 2 genes are more than this app takes" in said_in_error(tab)

    with open(tmp_path / "large.h5ad", "wb") as large:
        large.truncate(201 * 2**20)
    with open(tmp_path / "large.h5ad", "rb") as large:  # Without the page's own check.
        sent = httpx.post(f"{address}/gradio_api/upload", files={"files": large}, timeout=120)
    assert sent.status_code == 413


def test_a_file_that_refers_to_files_of_the_server(visit, blood, tmp_path):
    (tmp_path / "secret.txt").write_text("a secret of the server")
    shutil.copy(blood, tmp_path / "spy.h5ad")
    with h5py.File(tmp_path / "spy.h5ad", "r+") as file:
        file["obs"].create_dataset("leak", (150,), "u1", external=[(str(tmp_path / "secret.txt"), 0, 150)])
    tab = visit()
    drop(tab, tmp_path / "spy.h5ad")
    assert "refers to another file for obs/leak" in said_in_error(tab)


def send(address: str, event: dict, data: list, page: str | None = None) -> str:
    """Sends an event without a browser. Returns its error, or nothing."""
    session = secrets.token_hex(8)
    body = {"data": data, "fn_index": event["id"], "session_hash": session}
    headers = {} if page is None else {"x-langcell-page": page}
    httpx.post(f"{address}/gradio_api/queue/join", json=body, headers=headers, timeout=60).raise_for_status()
    at = f"{address}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", at, timeout=60) as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}")
            if message.get("msg") == "process_completed":
                return "" if message["success"] else message["output"]["error"]
    raise AssertionError("no answer")


def events(address: str) -> list[dict]:
    """Returns the events that a page may send, with the ids of their inputs."""
    return httpx.get(f"{address}/config").json()["dependencies"]


def file_data(path) -> dict:
    """Returns a file in the form in which an event names it."""
    return {"path": str(path), "orig_name": "cells.h5ad", "meta": {"_type": "gradio.FileData"}}


def upload_event(address: str) -> dict:
    """Returns the event that follows an upload."""
    return next(event for event in events(address) if [name for _, name in event["targets"]] == ["upload"])


@pytest.mark.parametrize("what", ["file", "link", "folder", "device", "address", "passed by"])
def test_an_event_cannot_name_a_file_that_its_page_did_not_upload(address, temporary, blood, tmp_path, what):
    (uploads,) = temporary.glob("langcell-uploads-*")
    own = tmp_path / "of the server.h5ad"
    shutil.copy(blood, own)
    link = uploads / "link.h5ad"
    link.symlink_to(own)
    places = {
        "file": own,
        "link": link,
        "folder": uploads,
        "device": "/dev/zero",
        "address": f"{address}/theme.css",
        "passed by": f"{uploads}/{os.path.relpath(own, uploads)}",
    }
    named = file_data(places[what])
    before = set(temporary.rglob("*"))
    try:
        for event in events(address):
            for place in range(len(event["inputs"])):
                for value in (named, [named], {"value": {"deep": [named]}}):
                    data = [value if number == place else None for number in range(len(event["inputs"]))]
                    assert "not from this page" in send(address, event, data), (event["targets"], place)
                    assert "not from this page" in send(address, event, data, "a page of its own")
        direct = {"data": [named], "fn_index": upload_event(address)["id"], "session_hash": "direct"}
        assert httpx.post(f"{address}/gradio_api/run/receive", json=direct, timeout=60).status_code >= 400
        assert own.read_bytes() == blood.read_bytes()
        assert not set(temporary.rglob("*")) - before, "nothing was copied"
    finally:
        link.unlink()


def test_an_event_cannot_name_a_file_that_another_page_uploaded(visit, address, blood):
    event = upload_event(address)
    tab = visit()
    tab.route("**/queue/join*", lambda route: route.abort())  # The event after the upload is not sent yet.
    with (
        tab.expect_response(re.compile(r"/gradio_api/upload(\?|$)")) as arrived,
        tab.expect_request("**/queue/join*") as asked,
    ):
        drop(tab, blood)
    (upload,) = arrived.value.json()
    page = asked.value.headers.get("x-langcell-page")
    for other in (None, "", "a page of its own"):
        assert "not from this page" in send(address, event, [file_data(upload)], other)
    assert Path(upload).read_bytes() == blood.read_bytes()
    assert "not from this page" in send(address, event, [file_data(Path(upload).parent)], page)
    assert send(address, event, [file_data(upload)], page) == ""
    assert not Path(upload).exists()
    assert "not from this page" in send(address, event, [file_data(upload)], page), "a page names a file once"


def test_a_small_file_that_unpacks_to_a_large_one(visit, blood, tmp_path):
    shutil.copy(blood, tmp_path / "bomb.h5ad")
    with h5py.File(tmp_path / "bomb.h5ad", "r+") as file:
        file["obs"].create_dataset("more", (60_000_000,), "f8", chunks=(1_000_000,), compression="gzip")
    tab = visit()
    drop(tab, tmp_path / "bomb.h5ad")
    assert "Unpacked, this file is larger than this app takes" in said_in_error(tab)


def test_another_container_under_the_name_of_an_h5ad_file(visit, tmp_path):
    """The package reads loom files as a whole, which the limits of the app do not allow for."""
    with h5py.File(tmp_path / "loom.h5ad", "w") as file:
        file.create_dataset("matrix", (50, 20), "f4")
        file["row_attrs/Gene"], file["col_attrs/CellID"] = np.array(["A"] * 50, "S"), np.array(["a"] * 20, "S")
    tab = visit()
    drop(tab, tmp_path / "loom.h5ad")
    assert "This is no .h5ad file" in said_in_error(tab)


def test_another_file_waits_while_cells_are_annotated(visit, temporary, blood):
    """Another file has to wait, and a page that is closed meanwhile leaves no file."""
    before = set(temporary.rglob("cells.h5ad"))
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    (cells,) = set(temporary.rglob("cells.h5ad")) - before
    tab.get_by_role("button", name="Annotate").click()
    assert until(lambda: len(list(cells.parent.iterdir())) > 1), "it has begun"
    tab.get_by_role("button", name="Take the example").click()
    assert "Your cells are being annotated" in said_in_error(tab)
    tab.context.close()
    assert until(lambda: not cells.parent.exists(), 180)


def test_a_file_that_is_removed_again(visit, blood):
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.get_by_label("Clear").click()
    tab.get_by_text("150 cells x 9,015 genes.").wait_for(state="hidden")
    tab.get_by_role("button", name="Annotate").click()
    assert "Drop an .h5ad file first" in said_in_error(tab)


def test_visitors_do_not_see_each_other_and_leave_nothing(visit, address, temporary, blood):
    one, other = visit(), visit()
    drop(one, blood)
    one.get_by_text("150 cells x 9,015 genes.").wait_for()
    annotate(one).get_by_text("150 cells; X read").wait_for()
    link = one.get_by_role("link", name="Download the annotated .h5ad").get_attribute("href")
    (cells,) = [path for path in temporary.rglob("cells.h5ad") if path.with_name("annotated.h5ad").is_file()]

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
    assert until(lambda: not cells.exists())
    assert httpx.get(f"{address}/{link}").status_code == 404


# ---------------------------------------------------------------------- how long files are kept


class Clock:
    """A clock whose time a test sets."""

    def __init__(self):
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def visits(tmp_path, clock):
    (tmp_path / "uploads").mkdir()
    visits = Visits(600, tmp_path / "uploads", clock)
    yield visits
    visits.close()
    assert not (tmp_path / "uploads").exists()


def test_unused_files_are_deleted(visits, clock, tmp_path):
    visit = visits.of("page")
    (visit.folder / "report.html").touch()
    half = tmp_path / "uploads" / "of someone" / "half"
    half.parent.mkdir()
    half.touch()
    clock.now += 400
    visits.sweep()
    assert visits.find(visit.token, "report.html"), "finding a file counts as a use"
    assert half.is_file()
    clock.now += 400
    visits.sweep()
    assert visit.folder.is_dir()
    assert not half.parent.exists()
    clock.now += 400
    visits.sweep()
    assert not visit.folder.exists()
    assert visits.find(visit.token, "report.html") is None
    assert visits.of("page").token != visit.token


def test_a_busy_visit_is_not_deleted_before_its_end(visits, clock):
    with visits.working("page") as visit:
        clock.now += 10_000
        visits.sweep()
        assert visit.folder.is_dir(), "a busy visit stays, however long it takes"
    visits.sweep()
    assert visit.folder.is_dir(), "the end of the work counts as a use"
    with visits.working("page") as visit:
        visits.end("page")
        assert visit.folder.is_dir()
        assert visits.of("page") is not visit
    assert not visit.folder.exists()


def test_uploads_that_others_delete_do_not_stop_the_sweep(visits, clock, tmp_path, monkeypatch):
    gone = tmp_path / "uploads" / "gone"
    monkeypatch.setattr(Path, "rglob", lambda *_: [gone])
    clock.now += 10_000
    visits.sweep()


def test_a_file_is_taken_once_by_the_pages_that_uploaded_it(visits, tmp_path):
    upload = tmp_path / "uploads" / "cells.h5ad"
    upload.touch()
    assert not visits.take("page", upload)
    visits.note("page", upload)
    visits.note("another page", upload)
    assert visits.take("page", upload)
    assert not visits.take("page", upload)
    upload.unlink()
    assert not visits.take("another page", upload), "the file is gone"

    for no_file in (tmp_path / "uploads", tmp_path / "uploads" / "link"):
        visits.note("page", no_file)
    (tmp_path / "secret").touch()
    (tmp_path / "uploads" / "link").symlink_to(tmp_path / "secret")
    assert not visits.take("page", tmp_path / "uploads" / "link")
    assert not visits.take("page", tmp_path / "uploads")

    visits.note("page", upload)
    visits.sweep()
    upload.touch()
    assert not visits.take("page", upload), "the file was gone, and the new one is another page's"


def test_a_visit_is_found_only_by_its_token(visits):
    visit = visits.of("page")
    (visit.folder / "report.html").touch()
    assert visits.of("page") is visit
    assert visits.of("another page").folder != visit.folder
    assert visits.find(visit.token, "report.html") == visit.folder / "report.html"
    assert visits.find(visit.token, "../report.html") == visit.folder / "report.html"
    for token, name in (("page", "report.html"), ("\xe9", "report.html"), ("", "report.html"), (visit.token, "other")):
        assert visits.find(token, name) is None
    assert visits.without_paths(f"{visit.folder}/cells.h5ad is damaged.") == "cells.h5ad is damaged."
    visits.end("page")
    assert not visit.folder.exists()
