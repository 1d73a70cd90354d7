# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
LangCell in a browser: drop an `.h5ad`, name or describe types of cells, and get labels, their confidence and the genes
behind them.

    python space/app.py

It serves on port 7860 of this machine only; in a Space of Hugging Face, on every address. The environment variables
`PORT`, `HOST` and `MODEL` change the port, the address and the checkpoint.
"""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Uploads get a folder of their own, which is deleted as a whole in the end.
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="langcell-uploads-", dir=os.environ.get("GRADIO_TEMP_DIR"))

import gradio as gr
import h5py
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from visits import Visit, Visits

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation.explain import explain_annotated
from modeling_langcell.annotation.large_files import annotate_file
from modeling_langcell.annotation.predictions import DecisionRule
from modeling_langcell.annotation.quality import examine
from modeling_langcell.io.containers import find_reader
from modeling_langcell.io.example import CELL_OPTIONS, CELL_TYPES, load_example
from modeling_langcell.io.h5ad import open_lightly, read_annotation, reading_h5ad
from modeling_langcell.ontology import human_terms, tissues
from modeling_langcell.report.page import write_report
from modeling_langcell.report.plots import lay_out

MOST_MEGABYTES, MOST_CELLS, MOST_GENES, MOST_CANDIDATES = 200, 20_000, 100_000, 100
#: Limits in bytes of an unpacked file: of its tables, which are read as a whole, and in all.
MOST_IN_TABLES, MOST_IN_ALL = 200 * 2**20, 8 * 2**30
KEEP = 30 * 60  # Seconds until the files of an open but unused page are deleted.
CELLS, ANNOTATED, REPORT = "cells.h5ad", "annotated.h5ad", "report.html"
_LAYER = "layer "
_PROGRESS = gr.Progress()  # Gradio finds it among the default arguments.
VALUES = {"raw counts": "raw", "counts scaled by cell (such as CPM)": "normalized", "log-transformed counts": "log1p"}
BLOOD = ["B cell", "natural killer cell", "CD14-positive monocyte", "CD4-positive, alpha-beta T cell"]
BLOOD += ["CD8-positive, alpha-beta T cell", "dendritic cell", "megakaryocyte"]

log = logging.getLogger("langcell.space")
annotator = LangCellAnnotator.from_pretrained(os.environ.get("MODEL", "langcell-mini"))
calibration = DecisionRule(annotator.scorer(BLOOD)).calibration
visits = Visits(KEEP, Path(os.environ["GRADIO_TEMP_DIR"]))


def with_messages(act: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an event so that an error tells its visitor what to do, or that it is not the visitor's fault."""

    @wraps(act)
    def acting(*given: Any, **more: Any) -> Any:
        try:
            return act(*given, **more)
        except InputError as error:
            raise refusal(error) from error
        except Exception as error:
            log.exception("%s failed", act.__name__)
            said = "Something went wrong here that is not your fault. Your file is deleted when you leave the page."
            raise gr.Error(said, duration=None, title="Sorry", print_exception=False) from error

    return acting


def refusal(error: InputError) -> gr.Error:
    """Returns the message to a visitor who caused an error."""
    said = visits.without_paths(str(error))
    return gr.Error(said, duration=None, title="This does not work", print_exception=False)


# ---------------------------------------------------------------------- files that a page may name

_PAGE = "x-langcell-page"  # The header with the name of the page.
#: Runs in the browser: each page gives itself a random name, which only the server learns.
_NAME_PAGE = """<script>
(() => {
    const bytes = crypto.getRandomValues(new Uint8Array(32));
    const page = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const fetch = window.fetch;
    window.fetch = (asked, more = {}) => {
        if (!/\\/gradio_api\\/(upload|queue\\/join)([?]|$)/.test(asked)) return fetch(asked, more);
        const headers = new Headers(more.headers);
        headers.set("HEADER", page);
        return fetch(asked, { ...more, headers });
    };
})();
</script>""".replace("HEADER", _PAGE)


class NotedUploads:
    """
    Middleware around Gradio's upload route that notes which page sent which file.

    Args:
        app: The app that receives the upload.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = Headers(scope=scope).get(_PAGE) if scope["type"] == "http" else None
        if not page or scope["path"] != "/gradio_api/upload":
            return await self._app(scope, receive, send)
        status, answer = 0, b""

        async def noting(message: Message) -> None:
            nonlocal status, answer
            status = message.get("status", status)
            answer += message.get("body", b"")
            if status == 200 and message["type"] == "http.response.body" and not message.get("more_body"):
                for path in json.loads(answer):
                    visits.note(page, Path(path))
            await send(message)

        await self._app(scope, receive, noting)


class Page(gr.Blocks):
    """
    Blocks that refuse an event if it names a file that its page did not upload.

    Before Gradio calls an event's function, it hashes and copies every file that the event names in any input. It
    checks that the file is an upload only in an app that it launches itself, not in one that is mounted.
    """

    async def process_api(self, block_fn: Any, inputs: list[Any], *given: Any, **more: Any) -> dict[str, Any]:
        """
        Processes an event as Gradio does, if its page uploaded all files that it names.

        Raises:
            gr.Error: A file is gone, or the page did not upload it.
        """
        request = more.get("request")
        page = request.headers.get(_PAGE, "") if isinstance(request, gr.Request) else ""
        if not all(visits.take(page, Path(path)) for path in named_files(inputs)):
            raise refusal(InputError("The file did not arrive completely, or not from this page: drop it again."))
        return await super().process_api(block_fn, inputs, *given, **more)


def named_files(inputs: Any) -> Iterator[str]:
    """Yields the paths in an event's inputs at any depth: everything that Gradio would take for a file, and more."""
    left = [inputs]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value


# ---------------------------------------------------------------------- events


@with_messages
def receive(upload: str, request: gr.Request) -> tuple[str, dict]:
    """Moves a file into the visitor's folder. Returns its size in words, and its arrays as choices."""
    visit = new_visit(request)
    try:
        shutil.move(upload, visit.folder / CELLS)
    except FileNotFoundError as error:  # Another visitor uploaded the same content at the same moment.
        raise InputError("The file did not arrive completely: drop it again.") from error
    try:
        return describe_file(visit.folder / CELLS)
    except InputError:
        (visit.folder / CELLS).unlink()
        raise


@with_messages
def forget(request: gr.Request) -> tuple[str, dict]:
    """Deletes the visitor's file."""
    new_visit(request)
    return "", gr.update(choices=["X"], value="X")


def new_visit(request: gr.Request) -> Visit:
    """
    Returns a new visit with an empty folder.

    Raises:
        InputError: An annotation is running in the visitor's folder.
    """
    session = str(request.session_hash)
    if visits.of(session).working:
        raise InputError("Your cells are being annotated: wait for that, or open another page.")
    visits.end(session)
    return visits.of(session)


def describe_file(cells: Path) -> tuple[str, dict]:
    """
    Returns the size of a file in words, and its arrays as choices.

    Raises:
        InputError: The file cannot be read, or is too large for the app.
    """
    require_size(cells)
    with open_lightly(cells) as adata:
        n_cells, n_genes = adata.shape
        n_genes = max(n_genes, 0 if adata.raw is None else adata.raw.n_vars)
        arrays = ["X", *(f"{_LAYER}{name}" for name in adata.layers if name)]
        arrays += [] if adata.raw is None else ["raw.X"]
    if n_cells > MOST_CELLS or n_genes > MOST_GENES:
        raise InputError(
            f"{n_cells:,} cells x {n_genes:,} genes are more than this app takes ({MOST_CELLS:,} x {MOST_GENES:,}): "
            "select some of them, or use the package, which has no such limit."
        )
    return f"{n_cells:,} cells x {n_genes:,} genes.", gr.update(choices=arrays, value="X")


def require_size(cells: Path) -> None:
    """
    Checks the size of a file when it is unpacked.

    Raises:
        InputError: The file unpacks to more than the limits, or is another container, which would be read as a whole.
    """
    if find_reader(cells) is not None:
        raise InputError("This is no .h5ad file. The package reads other files, and writes them as .h5ad.")
    sizes = {"tables": 0, "all": 0}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            size = (item.size or 0) * item.dtype.itemsize  # A null dataset, which stands for None, has no size.
            sizes["all"] += size
            if name.startswith(("obs/", "var/", "raw/var/")) or name in ("obs", "var"):
                sizes["tables"] += size

    with reading_h5ad(cells) as path, h5py.File(path) as file:
        file.visititems(add)
    if sizes["tables"] > MOST_IN_TABLES or sizes["all"] > MOST_IN_ALL:
        raise InputError(
            "Unpacked, this file is larger than this app takes: remove the parts that are not needed, and try again."
        )


@with_messages
def take_example(request: gr.Request) -> tuple[None, str, dict, str, list[str]]:
    """Writes the example into the visitor's folder, in place of an uploaded file, and sets how it is read."""
    visit = new_visit(request)
    load_example().write_h5ad(visit.folder / CELLS)
    said, _ = describe_file(visit.folder / CELLS)
    values = next(name for name, counts in VALUES.items() if counts == CELL_OPTIONS["counts"])
    said += " Blood cells of Zheng et al. 2017, which come with scanpy."
    return None, said, gr.update(choices=["X", "raw.X"], value="raw.X"), values, sorted(CELL_TYPES.values())


@with_messages
def annotate(
    names: list[str],
    own: str,
    tissue: str,
    array: str,
    values: str,
    errors: int,
    clusters: bool,
    request: gr.Request,
    progress=_PROGRESS,
) -> tuple[str, str]:
    """Annotates the visitor's cells. Returns HTML with the links to the results, and HTML that shows the report."""
    candidates = {"labels": read_types(names, own), "tissue": tissue or None}
    layer = array.removeprefix(_LAYER) if array.startswith(_LAYER) else None
    options = {"use_raw": array == "raw.X", "layer": layer, "counts": VALUES[values]}
    asked = {**candidates, "error_rate": errors / 100 if calibration else None, "cluster": clusters}
    with visits.working(str(request.session_hash)) as visit:
        write_results(visit.folder, asked, options, progress)
    at = f"results/{visit.token}"
    links = (
        f'<p><a href="{at}/{ANNOTATED}" download>Download the annotated .h5ad</a> · '
        f'<a href="{at}/{REPORT}" download>Download this report</a></p>'
    )
    page = f'<iframe title="Report" src="{at}/{REPORT}" sandbox="allow-scripts allow-downloads"></iframe>'
    return links, page


def write_results(folder: Path, asked: dict[str, Any], options: dict[str, Any], progress: gr.Progress) -> None:
    """
    Writes the annotated file and the report for the cells in a folder.

    Args:
        folder: The visitor's folder.
        asked: What the visitor wants to know: arguments of `annotate_file`.
        options: How the cells are read.
        progress: Shows the visitor how far the work is.
    """
    cells = folder / CELLS
    if not cells.is_file():
        raise InputError("Drop an .h5ad file first, or take the example. Unused files are deleted after half an hour.")
    progress(0.1, "Reading and annotating the cells")
    annotate_file(annotator, cells, folder / ANNOTATED, empty_cells="mark", **asked, **options)
    annotated = read_annotation(folder / ANNOTATED, embeds=True)
    progress(0.5, "Looking for the genes that drive the labels")
    where = {name: options[name] for name in ("use_raw", "layer")}
    with open_lightly(cells) as adata:
        quality = examine(annotator.processor.feature_extractor, adata, annotated, **where)
        genes = explain_annotated(annotator, adata, annotated, cells_per_label=5, **options)
    progress(0.8, "Writing the report")
    write_report(annotated, folder / REPORT, lay_out(annotated), quality=quality, genes=genes)


def read_types(names: list[str], own: str) -> dict[str, str] | None:
    """
    Returns the labels that were picked, and those that the visitor described, one `label: description` per line; None
    if there are none.
    """
    labels = dict.fromkeys(names or [], "")
    for line in filter(None, map(str.strip, (own or "").splitlines())):
        label, colon, text = (part.strip() for part in line.partition(":"))
        if not (label and colon and text):
            raise InputError(f"{line!r} is not a label with its description: write 'label: description'.")
        if label in labels:
            raise InputError(f"The label {label!r} was given twice: remove one of them.")
        labels[label] = text
    if len(labels) > MOST_CANDIDATES:
        raise InputError(f"{len(labels)} candidates are more than this app takes: name at most {MOST_CANDIDATES}.")
    return labels or None


# ---------------------------------------------------------------------- the page

_ABOUT = f"""# LangCell
Label single cells by free text, with no training labels. Drop an `.h5ad` with counts (up to {MOST_MEGABYTES} MB and
{MOST_CELLS:,} cells), or take the example, and name the types that may be among them. Nobody else can see your file.
It is deleted when you close the page, or after half an hour without use.
"""
_STYLE = "iframe { width: 100%; height: 75rem; border: 1px solid var(--border-color-primary); border-radius: 8px; }"


def build() -> gr.Blocks:
    """Builds the page."""
    rates = [round(100 * float(rate)) for rate in calibration.thresholds] if calibration else [0]
    with Page(title="LangCell") as page:
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column():
                upload = gr.File(label="Cells (.h5ad)", file_types=[".h5ad"], height=140)
                example = gr.Button("Take the example: 700 blood cells", size="sm")
                said = gr.Markdown()
                array = gr.Dropdown(["X"], value="X", label="Array with the counts")
                values = gr.Dropdown(list(VALUES), value=next(iter(VALUES)), label="Values in this array")
                usual = 10 if 10 in rates else rates[0]
                errors = gr.Dropdown(
                    rates, value=usual, label="Accepted wrong answers per 100", visible=bool(calibration)
                )
            with gr.Column():
                terms = sorted(term.name for term in human_terms())
                about = "Names as you say them (NK, Tregs, AT2), or ids of the Cell Ontology."
                names = gr.Dropdown(
                    terms, value=BLOOD, multiselect=True, allow_custom_value=True, label="Types of cells", info=about
                )
                own = gr.Textbox(
                    label="Types in your own words",
                    info="One label: description per line.",
                    lines=3,
                    placeholder="exhausted T cell: cell type: T cell with PDCD1, LAG3 and TOX after long stimulation.",
                )
                tissue = gr.Dropdown(
                    ["", *tissues()],
                    value="",
                    label="Tissue",
                    info="Without types, those of this tissue are the candidates. Empty: the cells' markers tell it.",
                )
                clusters = gr.Checkbox(label="Cluster the cells, and give each cluster one label")
        run = gr.Button("Annotate", variant="primary")
        links, report = gr.HTML(), gr.HTML()

        upload.upload(receive, upload, [said, array], api_visibility="private")
        upload.clear(forget, None, [said, array], api_visibility="private")
        example.click(take_example, None, [upload, said, array, values, names], api_visibility="private")
        asked = [names, own, tissue, array, values, errors, clusters]
        run.click(annotate, asked, [links, report], concurrency_limit=1, api_visibility="private")
        page.unload(forget_page)
    return page


def forget_page(request: gr.Request) -> None:
    """Deletes a visitor's files when the page is closed."""
    visits.end(str(request.session_hash))


def serve() -> FastAPI:
    """Builds the server: the page, and each visitor's results at an address with a token."""
    api = FastAPI(openapi_url=None)

    @api.get("/results/{token}/{name}")
    def result(token: str, name: str) -> FileResponse:
        path = visits.find(token, name)
        if path is None or name not in (ANNOTATED, REPORT):
            raise HTTPException(404, "This result does not exist, or was deleted.")
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": "sandbox allow-scripts allow-downloads"}
        return FileResponse(path, filename=name, headers=headers, content_disposition_type="inline")

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    appearance: dict[str, Any] = {"theme": theme, "css": _STYLE, "head": _NAME_PAGE, "footer_links": []}
    gr.mount_gradio_app(api, build(), path="/", max_file_size=f"{MOST_MEGABYTES}mb", **appearance)
    api.add_middleware(NotedUploads)
    return api


if __name__ == "__main__":
    # The server raises SIGTERM again after it has closed: exit then, so that the files are deleted first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    everywhere = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"
    where: dict[str, Any] = {"host": os.environ.get("HOST", everywhere), "port": int(os.environ.get("PORT", 7860))}
    try:
        # An open page keeps a connection, so the server must not wait for all connections to close.
        uvicorn.run(serve(), log_level="warning", timeout_graceful_shutdown=3, **where)
    finally:
        visits.close()
