# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Lets many visitors use the app, some of them hostile, and records what that leaves: memory, handles and files.

    python -m tests.robustness.soak --json eval/results/app_soak.json

Visitors talk to the app over HTTP as its page does, each with an upload, an annotation and downloads. First they come
one after the other, then several at once while others send bombs, trickle, do not read, guess, and leave early.
"""

import json
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import h5py
import httpx
import psutil
import typer

from modeling_langcell.eval.experiments.pictures import running_app
from modeling_langcell.eval.record import write_record

_TYPES = ["B cell", "CD14-positive monocyte", "natural killer cell"]
#: What the page asks for: types, named, described and by markers; tissue, clusters, known labels and samples; array and
#: kind of its values; accepted errors.
_ASKED = [_TYPES, "", "", "", False, "", "", "X, or where the counts are", "told from the values", 10]
_PATIENT = httpx.Timeout(600)


class Visitor:
    """
    A visitor without a browser, whose page is open until `leave`.

    Args:
        address: Address of the app.
    """

    def __init__(self, address: str):
        self._client = httpx.Client(
            base_url=address, timeout=_PATIENT, headers={"x-langcell-page": secrets.token_hex(32)}
        )
        self._session = secrets.token_hex(8)
        page = self._client.get("/").text
        config = re.search(r"window.gradio_config = (.*?);?</script>", page, re.DOTALL)
        assert config is not None
        self._events = json.loads(config[1])["dependencies"]
        self._open = threading.Event()
        self._heartbeat = threading.Thread(target=self._keep_open, daemon=True)
        self._heartbeat.start()

    def drop(self, cells: Path) -> str:
        """Uploads a file. Returns what the app says of it."""
        self._client.post("/gradio_api/upload", content=cells.read_bytes()).raise_for_status()
        return str(self._send("upload", [{"path": "cells.h5ad", "meta": {"_type": "gradio.FileData"}}]))

    def annotate(self) -> list[bytes]:
        """Annotates the file. Returns the annotated file and the report, or nothing if that does not work."""
        found = self._send("click", _ASKED, inputs=len(_ASKED))
        return [self._client.get(f"/{link}").content for link in re.findall(r'href="([^"]+)"', str(found))]

    def ask(self, method: str, path: str, **more: Any) -> int:
        """Sends any request. Returns the status of its answer."""
        return self._client.request(method, path, **more).status_code

    def begin(self) -> None:
        """Begins an annotation without waiting for it."""
        self._join("click", _ASKED, inputs=len(_ASKED))

    def leave(self) -> None:
        """Closes the page."""
        self._open.set()
        self._heartbeat.join()
        self._client.close()

    def _keep_open(self) -> None:
        with suppress(httpx.HTTPError), self._client.stream("GET", f"/gradio_api/heartbeat/{self._session}") as beats:
            for _ in beats.iter_raw():
                self._open.wait()
                return

    def _join(self, what: str, data: list[Any], inputs: int) -> None:
        (event,) = [
            one
            for one in self._events
            if [what] == [name for _, name in one["targets"]] and len(one["inputs"]) == inputs
        ]
        body = {"data": data, "fn_index": event["id"], "session_hash": self._session}
        self._client.post("/gradio_api/queue/join", json=body).raise_for_status()

    def _send(self, what: str, data: list[Any], inputs: int = 1) -> Any:
        self._join(what, data, inputs)
        at = f"/gradio_api/queue/data?session_hash={self._session}"
        with self._client.stream("GET", at) as answer:
            for line in answer.iter_lines():
                message = json.loads(line.removeprefix("data:") or "{}")
                if message.get("msg") == "process_completed":
                    return message["output"].get("data") or message["output"].get("error")
        raise AssertionError("no answer")


@contextmanager
def visitor(address: str) -> Iterator[Visitor]:
    """Yields a visitor who leaves at the end."""
    one = Visitor(address)
    try:
        yield one
    finally:
        one.leave()


def visit(address: str, cells: Path) -> bool:
    """Lets a visitor annotate cells. Returns true if all of it works."""
    with visitor(address) as one:
        described = one.drop(cells)
        results = one.annotate()
        return (
            "cells x" in described and len(results) == 3 and results[1].lstrip().lower().startswith(b"<!doctype html")
        )


def send_bombs(address: str, cells: Path) -> bool:
    """Uploads files that unpack to much. Returns true if each of them is refused."""
    with visitor(address) as one, tempfile.TemporaryDirectory() as folder:
        bomb = Path(folder, "bomb.h5ad")
        refused = []
        for name in ("obs/more", "uns/more"):
            shutil.copy(cells, bomb)
            with h5py.File(bomb, "r+") as file:
                file.create_dataset(name, (2**31,), "f8", chunks=(2**20,), compression="gzip")
            refused.append("larger than this app takes" in one.drop(bomb))
        bomb.write_bytes(secrets.token_bytes(2**20))
        refused.append("not an .h5ad file" in one.drop(bomb))
        return all(refused)


def trickle_and_guess(address: str, cells: Path) -> bool:
    """Keeps slow connections, guesses paths, and sends what is too large. Returns true if nothing is given."""
    host, port = address.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for number, connection in enumerate(slow):
        connection.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\n"[: 10 + 2 * number])
    with visitor(address) as one:
        statuses = [one.ask("GET", f"/gradio_api/file={path}") for path in ("/etc/passwd", cells, "cells.h5ad")]
        statuses += [one.ask("GET", f"/results/{secrets.token_urlsafe(32)}/cells.h5ad") for _ in range(50)]
        statuses += [one.ask("POST", "/gradio_api/queue/join", content=b"[" * 2**18) for _ in range(20)]
        statuses += [one.ask("POST", "/gradio_api/upload", content=(b" " * 2**20 for _ in range(201)))]
    for connection in slow:
        connection.close()
    return all(status in (400, 403, 404, 413, 422) for status in statuses)


def leave_early(address: str, cells: Path) -> bool:
    """Leaves while cells are annotated, several times."""
    for _ in range(4):
        with visitor(address) as one:
            one.drop(cells)
            one.begin()
            time.sleep(1)
    return True


def what_it_takes(address: str, folder: Path) -> dict[str, float]:
    """Returns what the app takes: memory of all its processes in MB, their handles and number, and files."""
    port = int(address.rsplit(":", 1)[1])
    (pid,) = {one.pid for one in psutil.net_connections() if one.status == "LISTEN" and one.laddr.port == port}
    server = psutil.Process(pid)
    processes = [server, *server.children(recursive=True)]
    files = [path for path in folder.glob("*/**/*") if path.is_file()]  # The app's own lock lies beside its folder.
    return {
        "megabytes": round(sum(one.memory_info().rss for one in processes) / 2**20, 1),
        "handles": sum(one.num_fds() for one in processes),
        "threads": server.num_threads(),
        "processes": len(processes),
        "files": len(files),
        "megabytes_of_files": round(sum(path.stat().st_size for path in files) / 2**20, 1),
    }


def settled(address: str, folder: Path) -> dict[str, float]:
    """Waits until all work has ended, and returns what the app takes then."""
    end = time.monotonic() + 90
    while (taken := what_it_takes(address, folder))["files"] and time.monotonic() < end:
        time.sleep(0.5)
    time.sleep(6)  # Until connections that are kept alive are closed.
    return {**what_it_takes(address, folder), "files": taken["files"]}


def soak(cells: Path, in_turn: int, at_once: int) -> dict[str, Any]:
    """
    Runs the app, lets visitors use it, and returns what it takes before and afterwards, and how their visits ended.

    Args:
        cells: An `.h5ad` file.
        in_turn: Number of visitors who come one after the other.
        at_once: Number of visitors who come together, beside three hostile ones.
    """
    hostile = (send_bombs, trickle_and_guess, leave_early)
    with tempfile.TemporaryDirectory() as folder, running_app(TMPDIR=folder) as address:
        place = Path(folder)
        visit(address, cells)  # The first one loads what all others use.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(visit, [address] * 2, [cells] * 2))
        start = settled(address, place)
        began = time.monotonic()
        worked = sum(visit(address, cells) for _ in range(in_turn))
        after_turns = settled(address, place)
        with ThreadPoolExecutor(at_once + len(hostile)) as pool:
            visits = [pool.submit(visit, address, cells) for _ in range(at_once)]
            attacks = [pool.submit(attack, address, cells) for attack in hostile]
            worked += sum(one.result() for one in visits)
            repelled = sum(one.result() for one in attacks)
        seconds = time.monotonic() - began
        end = settled(address, place)
    return {
        "in_turn": in_turn,
        "at_once": at_once,
        "hostile": len(hostile),
        "worked": worked,
        "repelled": repelled,
        "seconds": round(seconds),
        "start": start,
        "after_turns": after_turns,
        "end": end,
    }


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the record.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with validation/.")] = Path("../shared/data"),
    in_turn: Annotated[int, typer.Option(help="Visitors who come one after the other.", min=1)] = 20,
    at_once: Annotated[int, typer.Option(help="Visitors who come together.", min=1)] = 8,
) -> None:
    """Let visitors use the app, and record what they leave."""
    with tempfile.TemporaryDirectory() as folder:
        cells = Path(folder, "cells.h5ad")
        ad.read_h5ad(data / "validation" / "pbmc_kang_ctrl.h5ad")[:60].write_h5ad(cells)
        found = soak(cells, in_turn, at_once)
    typer.echo(json.dumps(found, indent=1))
    write_record(json_file, found)


if __name__ == "__main__":
    typer.run(main)
