# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The gate before a server of its own, asked over real connections."""

import asyncio
import json
import socket
import sys
import threading
import time
from contextlib import suppress

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route as StarletteRoute

from tests.support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "space"))
import gate
from gate import PAGE, Gate, ImpatientProtocol, Introduced, Route

MINE, OTHER = {PAGE: "a" * 64}, {PAGE: "b" * 64}
ROUTES = (
    Route("GET", "/"),
    Route("GET", "/much"),
    Route("POST", "/body", body=1000),
    Route("POST", "/queue/join", body=1000, named=True, joins=True),
    Route("GET", "/queue/data", named=True, query=True),
    Route("GET", "/heartbeat/(?P<session>[a-z]+)", named=True),
)


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.url.query}|{(await request.body()).decode('latin-1')}")


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("<html><head><title></title></head></html>", media_type="text/html")


async def much(request: Request) -> StreamingResponse:
    async def parts():
        for _ in range(1000):
            yield b"x" * 2**16

    return StreamingResponse(parts())


@pytest.fixture(scope="module")
def server():
    """A server whose limits of time are short."""
    usual = gate.HEAD_SECONDS, gate.PART_SECONDS
    gate.HEAD_SECONDS, gate.PART_SECONDS = 0.5, 0.5
    paths = {"/": page, "/much": much}
    routes = [
        StarletteRoute(path, paths.get(path, echo), methods=["GET", "POST"])
        for path in ("/", "/much", "/body", "/queue/join", "/queue/data", "/heartbeat/{session}", "/hidden")
    ]
    app = Starlette(routes=routes)
    app.state.ended = threading.Event()
    config = uvicorn.Config(
        Gate(Introduced(app, "<script></script>"), ROUTES), port=0, http=ImpatientProtocol, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()
    gate.HEAD_SECONDS, gate.PART_SECONDS = usual


@pytest.fixture
def client(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server}") as client:
        yield client


def test_only_the_routes_are_let_in(client):
    assert client.post("/body", content="yes").text == "|yes"
    for method, path in (
        ("GET", "/hidden"),
        ("GET", "/body"),
        ("PUT", "/body"),
        ("GET", "/heartbeat/A"),
    ):
        assert client.request(method, path).status_code == 404
    assert client.post("/body?asked=1").text == "|", "what follows the ? is handed on only where it is used"


def test_the_page_starts_with_the_script(client):
    answer = client.get("/")
    assert answer.text == "<html><head><script></script><title></title></head></html>"
    assert int(answer.headers["content-length"]) == len(answer.text)


def test_only_pages_with_a_name(client):
    for headers in ({}, {PAGE: ""}, {PAGE: "a"}, {PAGE: "A" * 64}, {PAGE: "a" * 65}):
        assert client.get("/heartbeat/mine", headers=headers).status_code == 403


def test_a_session_belongs_to_one_page(client):
    joined = client.post("/queue/join", json={"session_hash": "mine"}, headers=MINE)
    assert json.loads(joined.text.removeprefix("|")) == {"session_hash": "mine"}, "the body is handed on"
    assert client.get("/queue/data?session_hash=mine", headers=MINE).text == "session_hash=mine|"
    assert client.get("/heartbeat/mine", headers=MINE).status_code == 200
    for asked in ("/queue/data?session_hash=mine", "/heartbeat/mine"):
        assert client.get(asked, headers=OTHER).status_code == 403
    assert client.post("/queue/join", json={"session_hash": "mine"}, headers=OTHER).status_code == 403


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"1", b'{"session_hash": {}}', b"[" * 900, b"\xff"])
def test_events_without_a_session(client, body):
    """They are all of one session, which belongs to whoever asked first."""
    assert client.post("/queue/join", content=body, headers=MINE).status_code in (200, 403)


def test_few_sessions_are_remembered(monkeypatch):
    monkeypatch.setattr(gate, "MOST_SESSIONS", 2)
    one = Gate(None, ())
    assert all(one._owns("page", session) for session in "abc")
    assert list(one._pages) == ["b", "c"]


def test_bodies_have_a_limit(client):
    assert client.post("/body", content=b"x" * 1000).status_code == 200
    assert client.post("/body", content=b"x" * 1001).status_code == 413
    assert client.post("/body", content=(b"x" * 100 for _ in range(11))).status_code == 413
    assert client.request("GET", "/heartbeat/mine", content=b"x", headers=MINE).status_code == 413


def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Sends parts of a request with pauses between them. Returns what the server says until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        heard = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while more := connection.recv(2**16):
                heard += more
        except (ConnectionError, BrokenPipeError):
            pass
        return heard


HEAD = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n"


@pytest.mark.long
def test_clients_that_stop(server):
    assert talk(server) == b"", "nothing is sent"
    assert talk(server, b"GET / HT") == b""
    assert talk(server, *(bytes([byte]) for byte in HEAD), pause=0.05) == b"", "a head that trickles"
    assert b"408" in talk(server, HEAD, b"x")
    assert b"408" in talk(server, HEAD, *[b"x"] * 6, pause=0.1), "a body that trickles"
    asked = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert talk(server, asked, b"GET / H").count(b"200 OK") == 1, "the second request of a connection"


def test_a_client_that_does_not_read(server):
    with socket.create_connection(("127.0.0.1", server)) as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(2)
        read = 0
        with suppress(ConnectionError):
            while more := len(connection.recv(2**16)):
                read += more
        assert read < 1000 * 2**16, "the connection was closed"


def test_broken_requests(server):
    lengths = [HEAD.replace(b"500", length) for length in (b"-1", b"x", b"9" * 5000)]
    for sent in (b"\x00\x01\x02\r\n\r\n", b"x" * 100_000, b"POST /body HTTP/1.1\r\n\r\n", *lengths):
        heard = talk(server, sent)
        assert b"Traceback" not in heard
        assert heard[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413", b"")
    with socket.create_connection(("127.0.0.1", server)) as connection:  # It leaves in the middle of a body.
        connection.sendall(HEAD + b"x")
    assert httpx.get(f"http://127.0.0.1:{server}/").status_code == 200


def test_other_protocols_are_refused():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(None, ())({"type": "websocket"}, None, send))
    assert not sent
