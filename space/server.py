# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The server: the page, uploads, each visitor's results at an address with a token, and the gate before all of them."""

import os
import re
import signal
import sys
import tempfile
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from gate import PAGE, Gate, ImpatientProtocol, Introduced, Route
from jobs import Jobs
from limits import (
    ANNOTATED,
    CELLS,
    KEEP,
    MOST_ASKED,
    MOST_BYTES,
    MOST_CONNECTIONS,
    MOST_MEGABYTES,
    MOST_VISITORS,
    READING,
    REPORT,
    TABLE,
)
from visits import Visits

from modeling_langcell import InputError

_UPLOAD = "/gradio_api/upload"
_FILE = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
ROUTES = (
    Route("GET", "/"),
    Route("HEAD", "/"),
    Route("GET", f"/(static|assets)/({_FILE}/)*{_FILE}"),
    Route("GET", "/(theme[.]css|favicon[.]ico|manifest[.]json|robots[.]txt)"),
    Route("GET", "/gradio_api/heartbeat/(?P<session>[a-z0-9]+)", named=True),
    Route("POST", _UPLOAD, body=MOST_MEGABYTES * 2**20, named=True),
    Route("POST", "/gradio_api/queue/join", body=MOST_ASKED, named=True, joins=True),
    Route("GET", "/gradio_api/queue/data", named=True, query=True),
    Route("GET", f"/results/{_FILE}/{_FILE}"),
)
#: The header with the name of an uploaded file.
_NAME = "x-langcell-file"
_LONGEST_NAME = 80
#: What a visitor's files are called when they are taken away, after the sample.
_TAKEN_AS = {ANNOTATED: "{}_langcell.h5ad", REPORT: "{}_report.html", TABLE: "{}_cells.xlsx"}
#: Runs in the browser: each page gives itself a random name, tells it to the server, and sends an upload as it is.
_NAME_PAGE = """<script>
(() => {
    const bytes = crypto.getRandomValues(new Uint8Array(32));
    const page = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const fetch = window.fetch;
    window.fetch = (asked, more = {}) => {
        const path = new URL(asked.url ?? asked, location).pathname;
        if (!path.includes("/gradio_api/")) return fetch(asked, more);
        const headers = new Headers(more.headers);
        headers.set("HEADER", page);
        const file = path.endsWith("/upload") ? more.body.get("files") : null;
        if (file) headers.set("NAME_OF_FILE", encodeURIComponent(file.name));
        return fetch(asked, { ...more, headers, body: file ?? more.body });
    };
})();
</script>""".replace("HEADER", PAGE).replace("NAME_OF_FILE", _NAME)
#: Longest folder for a socket, whose path has at most 104 bytes.
_LONGEST = 60
_STYLE = """
.found, .found tr, .found th, .found td { border: none !important; }
.found th, .found td { border-bottom: 1px solid var(--border-color-primary) !important; }
.found td:nth-child(n + 3), .found th:nth-child(n + 3) { text-align: right; font-variant-numeric: tabular-nums; }
iframe { width: 100%; height: 75rem; border: 1px solid var(--border-color-primary); border-radius: 8px; }
#types .wrap-inner { max-height: 15rem; overflow-y: auto; }
.dark { --color-accent: var(--primary-400); }
.or { color: var(--body-text-color-subdued) !important; }
"""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def build_server(visits: Visits, jobs: Jobs) -> Gate:
    """
    Builds the server.

    Raises:
        InputError: The checkpoint cannot be loaded.
    """
    # Gradio makes its folder for temporary files when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["GRADIO_TEMP_DIR"] = "False", str(visits.temporary)
    import gradio as gr
    from page import Events, build_page

    api = FastAPI(openapi_url=None)

    @api.get("/results/{token}/{name}")
    def result(token: str, name: str) -> FileResponse:
        found = visits.find(token, name)
        if found is None or name not in _TAKEN_AS:
            raise HTTPException(404, "This result does not exist, or was deleted.")
        path, sample = found
        called = _TAKEN_AS[name].format(sample)
        return FileResponse(path, filename=called, headers=_HEADERS, content_disposition_type="inline")

    @api.post(_UPLOAD)
    async def upload(request: Request) -> Response:
        try:
            with visits.working(request.headers[PAGE], new=True) as visit:
                visit.sample = sample_name(request.headers.get(_NAME, ""))
                await _store(request, visit.folder / CELLS, visits)
        except InputError as error:
            return PlainTextResponse(str(error), 503)
        return JSONResponse([CELLS])

    own = visits.of("")  # The visit of the server itself.
    rates = jobs.run(own, "error_rates", limits=READING)
    visits.end("")
    theme = gr.themes.Default(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    # Gradio's own greys and accents are too light to be read by everybody.
    theme.set(color_accent="*primary_700", button_primary_background_fill="*primary_700")
    theme.set(button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover="*primary_800")
    greys = ("body_text_color_subdued", "block_info_text_color", "input_placeholder_color", "block_label_text_color")
    theme.set(
        **dict.fromkeys(greys, "*neutral_600"), **dict.fromkeys((f"{grey}_dark" for grey in greys), "*neutral_300")
    )
    appearance: dict[str, Any] = {"theme": theme, "css": _STYLE, "footer_links": []}
    page = build_page(Events(visits, jobs), rates)
    gr.mount_gradio_app(api, page, path="/", max_file_size=f"{MOST_MEGABYTES}mb", **appearance)
    return Gate(Introduced(api, _NAME_PAGE), ROUTES)


def sample_name(header: str) -> str:
    """Returns the name of a visitor's file without its ending, of letters that are safe in the name of any file."""
    stem = unquote(header[: 9 * _LONGEST_NAME]).rpartition("/")[2].removesuffix(".h5ad")
    return re.sub(r"[^\w.-]+", "_", stem)[:_LONGEST_NAME].strip("._") or "cells"


async def _store(request: Request, path: Path, visits: Visits) -> None:
    """Writes the body of a request into a file, as a whole or not at all."""
    size = int(request.headers.get("content-length", MOST_MEGABYTES * 2**20))
    try:
        with visits.arriving(size), open(path, "xb") as file:
            async for part in request.stream():
                file.write(part)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def keep_temporary_files_in(folder: Path) -> None:
    """
    Lets everything temporary, also of the processes that work for visitors, be in a folder. If its path is too long for
    a socket, the socket by which these processes are started, and nothing else, is in `/tmp`.
    """
    tempfile.tempdir = str(folder) if len(str(folder)) <= _LONGEST else "/tmp"
    get_temp_dir()  # The folder of the socket is chosen once.
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def serve() -> None:
    """Serves until a signal ends it, and then deletes all files."""
    visits = Visits(KEEP, MOST_VISITORS, MOST_BYTES)
    keep_temporary_files_in(visits.temporary)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Its threads would not survive a fork.
    # The process from which others are forked ends without giving back the locks that libraries made on import.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit())
    everywhere = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"
    try:
        settings: dict[str, Any] = {"log_level": "warning", "ws": "none", "http": ImpatientProtocol}
        settings |= {"host": os.environ.get("HOST", everywhere), "port": int(os.environ.get("PORT", 7860))}
        # An open page keeps a connection, so the server must not wait for all connections to close.
        settings |= {"timeout_graceful_shutdown": 3, "limit_concurrency": MOST_CONNECTIONS}
        uvicorn.run(build_server(visits, Jobs("cells", "preloaded")), **settings)
    except InputError as error:
        sys.exit(f"Error: {error}")
    finally:
        visits.close()
