# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The app in a browser and in a process of its own, with real cells and langcell-mini."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import time
from pathlib import Path

import anndata as ad
import h5py
import httpx
import numpy as np
import pandas as pd
import psutil
import pytest

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.records import label_descriptions
from modeling_langcell.ontology import usual_in
from tests.support.accessibility import serious_faults

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

    def visit(**screen):
        contexts.append(chromium.new_context(**screen))
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


def unfold(tab, title: str) -> None:
    """Opens a part of the page that is closed at first."""
    tab.get_by_role("button", name=title).click()


def pick_blood(tab) -> None:
    """Takes the types of blood as candidates."""
    tab.get_by_label("Tissue").click()
    tab.get_by_role("option", name="blood", exact=True).click()
    tab.get_by_label("Types of cells").locator("xpath=ancestor::*[3]").get_by_text("B cell").first.wait_for()


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
    tab.get_by_text("X holds raw counts; 8,738 of 9,015 human genes are known.").wait_for()
    pick_blood(tab)
    unfold(tab, "Types in your own words")
    tab.get_by_label("Types in your own words").fill("platelet maker: cell type: megakaryocyte, full of PF4 and PPBP.")
    tab.get_by_label("Types by your own markers").fill("plasmablast: MZB1, JCHAIN")
    unfold(tab, "Known labels and samples")
    tab.get_by_label("Known labels").click()
    tab.get_by_role("option", name="cell_type", exact=True).click()
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
    assert labels["plasmablast"].markers == ("MZB1", "JCHAIN")
    assert started.value.suggested_filename == "blood_langcell.h5ad", "it is named after the visitor's file"
    assert page.get_by_role("heading", level=1).inner_text() == "blood"
    page.get_by_role("heading", name="Comparison with cell_type").wait_for()
    with tab.expect_download() as started:
        tab.get_by_role("link", name="Download the table").click()
    assert len(pd.read_excel(started.value.path())) == 150
    assert started.value.suggested_filename == "blood_cells.xlsx"
    again = LangCellAnnotator.from_pretrained("langcell-mini").annotate(ad.read_h5ad(blood), labels, empty_cells="mark")
    assert (found.obs["langcell_cell_type"].astype(str) == again.obs["langcell_cell_type"].astype(str)).mean() > 0.99
    np.testing.assert_allclose(found.obs["langcell_score"], again.obs["langcell_score"], atol=1e-4)


def test_a_tissue_names_the_candidates(visit, blood):
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    pick_blood(tab)
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


def test_cells_are_found_by_a_text(visit, blood):
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    tab.get_by_role("tab", name="Find cells by text").click()
    tab.get_by_role("button", name="Find").click()
    assert "Write what the cells should be like" in said_in_error(tab)
    tab.get_by_label("What the cells should be like").fill("B cell")
    tab.get_by_role("button", name="Find").click()
    tab.get_by_text("cells are described by this more probably than not").wait_for()
    rows = tab.locator("table.found tbody tr")
    assert rows.count() == 20
    known = ad.read_h5ad(blood).obs["cell_type"].astype(str)
    best = [row.locator("td").first.inner_text() for row in rows.all()[:5]]
    assert {*known.loc[best]} == {"B cell"}
    assert serious_faults(tab) == []


def test_everyday_names_are_offered_first(visit):
    tab = visit()
    tab.get_by_label("Types of cells").click()
    tab.get_by_label("Types of cells").press_sequentially("NK")
    first = tab.get_by_role("option").first
    first.wait_for()
    assert "natural killer cell" in first.inner_text()


@pytest.mark.parametrize("screen", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}])
def test_nobody_is_shut_out(visit, screen):
    tab = visit(**screen)
    unfold(tab, "Types in your own words")
    assert serious_faults(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_example(visit):
    tab = visit()
    tab.get_by_role("button", name="Take the example").click()
    tab.get_by_text("700 cells x 765 genes.").wait_for()
    unfold(tab, "How the cells are read")
    assert tab.get_by_label("Array with the counts").input_value() == "raw.X"
    assert tab.get_by_label("Values in this array").input_value() == "log-transformed counts"
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

    unfold(tab, "Types in your own words")
    tab.get_by_label("Types in your own words").fill("no description")
    tab.get_by_role("button", name="Annotate").click()
    assert "write 'label: description'" in said_in_error(tab)


def test_files_that_are_too_large(visit, tmp_path):
    many = ad.AnnData(np.ones((20_001, 2), dtype=np.float32))
    many.write_h5ad(tmp_path / "many.h5ad")
    tab = visit()
    drop(tab, tmp_path / "many.h5ad")
    assert "20,001 cells x 2 genes are more than this app takes" in said_in_error(tab)

    with open(tmp_path / "large.h5ad", "wb") as large:
        large.truncate(201 * 2**20)
    tab.reload()
    drop(tab, tmp_path / "large.h5ad")
    tab.get_by_text("maximum allowed size").wait_for()


def test_a_file_that_refers_to_files_of_the_server(visit, blood, tmp_path):
    (tmp_path / "secret.txt").write_text("a secret of the server")
    shutil.copy(blood, tmp_path / "spy.h5ad")
    with h5py.File(tmp_path / "spy.h5ad", "r+") as file:
        file["obs"].create_dataset("leak", (150,), "u1", external=[(str(tmp_path / "secret.txt"), 0, 150)])
    tab = visit()
    drop(tab, tmp_path / "spy.h5ad")
    assert "refers to another file for obs/leak" in said_in_error(tab)


def a_page() -> str:
    """Returns a name such as a page gives itself."""
    return secrets.token_hex(32)


def send(address: str, event: dict, data: list, page: str) -> str:
    """Sends an event without a browser. Returns its error, or nothing."""
    session, headers = secrets.token_hex(8), {"x-langcell-page": page}
    body = {"data": data, "fn_index": event["id"], "session_hash": session}
    httpx.post(f"{address}/gradio_api/queue/join", json=body, headers=headers, timeout=60).raise_for_status()
    at = f"{address}/gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", at, headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}")
            if message.get("msg") == "process_completed":
                return "" if message["success"] else message["output"]["error"]
    raise AssertionError("no answer")


def events(address: str) -> list[dict]:
    """Returns the events that a page may send, with the ids of their inputs, as the page itself states them."""
    config = re.search(r"window.gradio_config = (.*?);?</script>", httpx.get(address).text, re.DOTALL)
    return json.loads(config[1])["dependencies"]


def file_data(path) -> dict:
    """Returns a file in the form in which an event names it."""
    return {"path": str(path), "orig_name": "cells.h5ad", "meta": {"_type": "gradio.FileData"}}


def upload(address: str, cells: Path, page: str) -> httpx.Response:
    headers = {"x-langcell-page": page}
    return httpx.post(f"{address}/gradio_api/upload", content=cells.read_bytes(), headers=headers, timeout=60)


@pytest.mark.parametrize("what", ["file", "link", "folder", "device", "address", "passed by", "visitor's"])
def test_an_event_cannot_name_a_file(address, temporary, blood, tmp_path, what):
    (private,) = filter(Path.is_dir, temporary.glob("langcell-app-*"))
    own = tmp_path / "of the server.h5ad"
    shutil.copy(blood, own)
    link = private / "temporary" / "link.h5ad"
    link.symlink_to(own)
    upload(address, blood, a_page())
    places = {
        "file": own,
        "link": link,
        "folder": private,
        "device": "/dev/zero",
        "address": f"{address}/theme.css",
        "passed by": f"{private}/{os.path.relpath(own, private)}",
        "visitor's": next(private.rglob("cells.h5ad")),
    }
    named = file_data(places[what])
    before = {path: path.stat().st_size for path in private.rglob("*") if path.is_file()}
    try:
        for event in events(address):
            for place in range(len(event["inputs"])):
                for value in (named, [named], {"value": {"deep": [named]}}):
                    data = [value if number == place else None for number in range(len(event["inputs"]))]
                    assert "not from this page" in send(address, event, data, a_page()), (event["targets"], place)
        assert own.read_bytes() == blood.read_bytes()
        after = {path: path.stat().st_size for path in private.rglob("*") if path.is_file()}
        assert after == before, "nothing was copied or taken"
    finally:
        link.unlink()


def test_a_page_that_uploaded_nothing_has_no_file(address, blood):
    """An event may say the name under which every upload is known, which leads to the page's own file only."""
    (event,) = [event for event in events(address) if [name for _, name in event["targets"]] == ["upload"]]
    page = a_page()
    assert upload(address, blood, page).json() == ["cells.h5ad"]
    assert "drop it again" in send(address, event, [file_data("cells.h5ad")], a_page())
    assert send(address, event, [file_data("cells.h5ad")], page) == ""


def test_a_session_belongs_to_the_page_that_began_it(address):
    headers = {"x-langcell-page": a_page()}
    body = {"data": [], "fn_index": 0, "session_hash": "mine"}
    other = {"x-langcell-page": a_page()}
    assert httpx.post(f"{address}/gradio_api/queue/join", json=body, headers=headers).status_code != 403
    assert httpx.post(f"{address}/gradio_api/queue/join", json=body, headers=other).status_code == 403
    for route in ("queue/data?session_hash=mine", "heartbeat/mine"):
        assert httpx.get(f"{address}/gradio_api/{route}", headers=other).status_code == 403
        assert httpx.get(f"{address}/gradio_api/{route}").status_code == 403, "a page without a name"


@pytest.mark.parametrize(
    "asked",
    [
        *("GET /config", "GET /gradio_api/info", "GET /gradio_api/openapi.json", "GET /docs", "GET /monitoring"),
        *("GET /gradio_api/file=/etc/passwd", "GET /gradio_api/proxy=http://localhost/", "GET /gradio_api/app_id"),
        *("POST /gradio_api/run/receive", "POST /gradio_api/api/0", "POST /gradio_api/call/annotate"),
        *("POST /gradio_api/component_server/", "POST /gradio_api/process_recording", "POST /gradio_api/cancel"),
        *("POST /gradio_api/reset", "GET /gradio_api/queue/status", "GET /gradio_api/upload_progress", "POST /login"),
        *("GET /gradio_api/deep_link", "POST /gradio_api/vibe-edit", "GET /gradio_api/runs", "GET /svelte/x.js"),
        *("GET //gradio_api/info", "GET /gradio_api//info", "GET /assets/../config", "GET /assets/%2e%2e/config"),
        *("OPTIONS /gradio_api/upload", "PUT /gradio_api/upload", "GET /gradio_api/upload", "DELETE /", "TRACE /"),
        *("GET /file=/etc/passwd", "GET /gradio_api/stream/a/b/0/playlist.m3u8", "GET /gradio_api/custom_component/a"),
    ],
)
def test_routes_that_the_page_does_not_use(address, asked):
    method, path = asked.split(" ", 1)
    answer = httpx.request(method, f"{address}{path}", headers={"x-langcell-page": a_page()})
    assert (answer.status_code, answer.text) == (404, "There is nothing here.")


def test_a_link_to_a_page_that_gradio_stored(address):
    assert httpx.get(f"{address}/?deep_link=../../etc").text == httpx.get(address).text


def answer_to_a_length(address: str, route: str, headers: dict[str, str], length: int) -> bytes:
    """Sends the head of a request that states a length, without a body. Returns the beginning of the answer."""
    host, port = address.removeprefix("http://").split(":")
    lines = [f"POST /gradio_api/{route} HTTP/1.1", f"Host: {host}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection.recv(100)


def test_requests_that_are_too_large(address, temporary):
    headers = {"x-langcell-page": a_page()}
    before = sum(path.stat().st_size for path in temporary.rglob("*"))
    long = {"data": ["x" * 300_000], "fn_index": 0, "session_hash": "long"}
    assert httpx.post(f"{address}/gradio_api/queue/join", json=long, headers=headers).status_code == 413
    for route, most in (("queue/join", 2**18), ("upload", 200 * 2**20)):
        endless = (b" " * 2**16 for _ in range(most // 2**16 + 100))  # Without a length.
        answer = httpx.post(f"{address}/gradio_api/{route}", content=endless, headers=headers, timeout=120)
        assert answer.status_code == 413
        assert answer_to_a_length(address, route, headers, most + 1).startswith(b"HTTP/1.1 413")
    assert sum(path.stat().st_size for path in temporary.rglob("*")) <= before + 2**16


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


# ---------------------------------------------------------------------- hostile files and visitors


def server_of(address: str) -> psutil.Process:
    """Returns the process of the app."""
    port = int(address.rsplit(":", 1)[1])
    (found,) = [one.pid for one in psutil.net_connections() if one.status == "LISTEN" and one.laddr.port == port]
    return psutil.Process(found)


def workers_of(address: str) -> set[int]:
    """Returns the processes below the app's, without those that it always has."""
    return {one.pid for one in server_of(address).children(recursive=True)}


def strings_that_share_a_heap_object(file: h5py.File) -> None:
    """Text of 1 MB that stands in the file once, and in memory once for each cell."""
    texts = file.create_dataset("obs/text", (150,), h5py.string_dtype())
    texts[0] = "x" * 2**20
    stored = texts.id.get_offset()
    file.flush()
    with open(file.filename, "r+b") as raw:
        raw.seek(stored)
        reference = raw.read(16)
        raw.seek(stored)
        raw.write(reference * 150)


def text_of_each_cell(file: h5py.File) -> None:
    file.create_dataset("obs/text", (150,), h5py.string_dtype(), data=["x" * 2**20] * 150, compression="gzip")


@pytest.mark.parametrize("inflate", [strings_that_share_a_heap_object, text_of_each_cell])
def test_texts_that_need_much_memory_are_no_matter_of_the_server(visit, address, blood, tmp_path, inflate):
    shutil.copy(blood, tmp_path / "texts.h5ad")
    with h5py.File(tmp_path / "texts.h5ad", "r+") as file:
        inflate(file)
        for number in range(30):
            file[f"obs/more{number}"] = file["obs/text"]
        order = [*file["obs"].attrs["column-order"], "text", *(f"more{number}" for number in range(30))]
        file["obs"].attrs["column-order"] = order
        for name in order[-31:]:
            file[f"obs/{name}"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    before = server_of(address).memory_info().rss
    tab = visit()
    drop(tab, tmp_path / "texts.h5ad")
    assert "needs more than the 1 GB of memory" in said_in_error(tab)
    assert server_of(address).memory_info().rss < before + 100 * 2**20


MARKUP = '<img src=x onerror="parent.invaded=top.invaded=window.invaded=1"><script>window.invaded=1</script>{{7*7}}'
NAME = MARKUP.replace("/", "|")  # Names in HDF5 have no slash.


def test_markup_in_every_text_of_a_file_is_shown_as_text(visit, blood, tmp_path):
    cells = ad.read_h5ad(blood)
    cells.obs_names = [f"{NAME}{number}" for number in range(150)]
    cells.obs[NAME] = pd.Categorical([MARKUP] * 150)
    cells.layers[NAME] = cells.X.copy()
    cells.var["feature_name"] = [MARKUP + name for name in cells.var_names]
    cells.uns[NAME] = MARKUP
    cells.write_h5ad(tmp_path / "markup.h5ad")
    with h5py.File(tmp_path / "spy.h5ad", "w") as file:
        file["obs"] = h5py.ExternalLink("/etc/passwd", NAME)
        file[NAME] = h5py.ExternalLink("/etc/passwd", "x")
    tab = visit()
    tab.on("dialog", lambda dialog: pytest.fail(dialog.message))
    drop(tab, tmp_path / "spy.h5ad")
    said_in_error(tab)
    tab.reload()
    drop(tab, tmp_path / "markup.h5ad")
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    unfold(tab, "How the cells are read")
    tab.get_by_label("Array with the counts").click()
    tab.get_by_role("option", name="layer <img").wait_for()
    tab.get_by_role("option", name="layer <img").click()
    unfold(tab, "Types in your own words")
    tab.get_by_label("Types in your own words").fill(f"{MARKUP}: cell type: B cell {MARKUP}")
    page = annotate(tab)
    page.get_by_text("150 cells").first.wait_for()
    page.locator("#uncertain-cells tbody tr").first.wait_for()
    for frame in tab.frames:
        assert frame.evaluate("typeof window.invaded") == "undefined"
        assert frame.locator("img[src=x]").count() == 0


def test_a_visitor_is_told_what_is_waited_for(visit, blood):
    first, second = visit(), visit()
    for tab in (first, second):
        drop(tab, blood)
        tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    first.get_by_role("button", name="Annotate").click()
    first.get_by_text("Reading and annotating the cells").first.wait_for()
    annotating = second.get_by_role("button", name="Annotate")
    annotating.click()
    second.get_by_text("Another visitor's cells are annotated before yours").first.wait_for()
    second.get_by_role("link", name="Download the annotated .h5ad").wait_for()


def test_the_work_for_a_visitor_who_leaves_ends(visit, address, blood):
    tab = visit()
    drop(tab, blood)
    tab.get_by_text("150 cells x 9,015 genes.").wait_for()
    before = workers_of(address)
    tab.get_by_role("button", name="Annotate").click()
    assert until(lambda: workers_of(address) > before, 30)
    tab.context.close()
    assert until(lambda: workers_of(address) == before, 30), "long before the work would have been done"


@pytest.mark.e2e
@pytest.mark.parametrize("ending", ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"])
def test_no_file_of_a_visitor_is_left_when_the_app_ends(blood, tmp_path, ending):
    from modeling_langcell.eval.experiments.pictures import running_app

    with running_app(TMPDIR=str(tmp_path)) as address:
        assert upload(address, blood, a_page()).status_code == 200
        server = server_of(address)
        server.send_signal(signal.Signals[ending])
        server.wait(60)
    if ending == "SIGKILL":
        assert list(tmp_path.rglob("cells.h5ad"))
        with running_app(TMPDIR=str(tmp_path)):
            assert not list(tmp_path.rglob("cells.h5ad"))
    assert until(lambda: not list(tmp_path.iterdir()), 10)
