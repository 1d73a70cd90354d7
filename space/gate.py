# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The gate of the server. It lets in only the routes that the page uses, only from the page that a session belongs to,
only requests of a limited size, and only clients that keep sending and reading.
"""

import asyncio
import json
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

#: The header with the name of the page that asks. Each page gives itself a random name, which only the server learns.
PAGE = "x-langcell-page"
_NAME = re.compile("[0-9a-f]{64}")
#: Seconds that a client may take for the head of a request, and for each further part of it or of its answer.
HEAD_SECONDS, PART_SECONDS = 10.0, 30.0
SLOWEST = 2**15  # Bytes of a body that arrive each second on average.
MOST_SESSIONS = 2000
_TOO_LARGE = "A request here has at most {:,} bytes."


@dataclass(frozen=True)
class Route:
    """
    A route that the page uses.

    Args:
        method: Its method.
        path: Pattern of its path; `session` is a group with the session, if there is one.
        body: Largest size of a request's body in bytes.
        named: Whether only a page that names itself may ask.
        query: Whether what follows the `?` is handed on; it may name the session, too.
        joins: Whether the body, in JSON, names the session.
    """

    method: str
    path: str
    body: int = 0
    named: bool = False
    query: bool = False
    joins: bool = False


class Gate:
    """
    Middleware that refuses all requests but those of the routes.

    Args:
        app: The app behind it.
        routes: The routes.
    """

    def __init__(self, app: ASGIApp, routes: tuple[Route, ...]):
        self._app, self._routes = app, routes
        self._pages: OrderedDict[str, str] = OrderedDict()  # The page of each session.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None  # The server closes the connection.
        status, said, route, session = self._judge(scope)
        if route is None:
            return await PlainTextResponse(said, status)(scope, receive, send)
        if not route.query:
            scope["query_string"] = b""
        limited = _Limited(receive, send, route.body)
        try:
            if route.joins:
                body = await limited.whole()
                session = _session_of(body)
                limited.replay(body)
            if route.named and session is not None and not self._owns(Headers(scope=scope)[PAGE], session):
                return await PlainTextResponse("This session belongs to another page.", 403)(scope, receive, send)
            await self._app(scope, limited.receive, limited.send)
        except Exception:
            if limited.refused is None:
                raise
        if limited.refused is not None and not limited.answered:
            await limited.refused(scope, receive, send)

    def _judge(self, scope: Scope) -> tuple[int, str, Route | None, str | None]:
        """Returns the status and reason of a refusal, or the route of a request and its session."""
        for route in self._routes:
            found = re.fullmatch(route.path, scope["path"])
            if found and scope["method"] == route.method:
                break
        else:
            return 404, "There is nothing here.", None, None
        headers = Headers(scope=scope)
        if route.named and not _NAME.fullmatch(headers.get(PAGE, "")):
            return 403, "Only the page of this app may ask this.", None, None
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size[:20]) > route.body:
            return 413, _TOO_LARGE.format(route.body), None, None
        session = found.groupdict().get("session")
        if session is None and route.query:
            session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [None])[0]
        return 200, "", route, session

    def _owns(self, page: str, session: str) -> bool:
        """Returns true if a session belongs to a page, as it does once the page has been the first to name it."""
        owner = self._pages.setdefault(session, page)
        self._pages.move_to_end(session)
        if len(self._pages) > MOST_SESSIONS:
            self._pages.popitem(last=False)
        return owner == page


class _Refused(Exception):
    """Ends the reading of a request."""


class _Limited:
    """A request whose body has a limit of size, and whose client may not stop sending it."""

    def __init__(self, receive: Receive, send: Send, most: int):
        self._receive, self._send, self._most = receive, send, most
        self._arrived, self._start = 0, time.monotonic()
        self._begun: list[Message] = []
        self._ended = self.answered = False
        #: The answer to a body that goes beyond the limits.
        self.refused: PlainTextResponse | None = None

    async def receive(self) -> Message:
        if self._begun:
            return self._begun.pop()
        if self._ended:  # The client has nothing more to send: this waits until it leaves.
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), PART_SECONDS)
        except asyncio.TimeoutError:
            self._refuse(408, "The request stopped arriving.")
        self._arrived += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._arrived > self._most:
            self._refuse(413, _TOO_LARGE.format(self._most))
        if time.monotonic() - self._start > PART_SECONDS + self._arrived / SLOWEST:
            self._refuse(408, "The request arrives too slowly.")
        return message

    async def send(self, message: Message) -> None:
        if self.refused is None or self.answered:  # What the app says of a refused request is not sent.
            self.answered = True
            await self._send(message)

    def _refuse(self, status: int, said: str) -> NoReturn:
        self.refused = PlainTextResponse(said, status, {"connection": "close"})
        raise _Refused

    async def whole(self) -> bytes:
        """Returns the whole body."""
        body = b""
        while not self._ended:
            body += (await self.receive()).get("body", b"")
        return body

    def replay(self, body: bytes) -> None:
        """Gives the body once more."""
        self._begun.append({"type": "http.request", "body": body, "more_body": False})


def _session_of(body: bytes) -> str:
    """Returns the session that a body in JSON names; an empty one if there is none, which belongs to nobody."""
    try:
        found: Any = json.loads(body)
        return str(found["session_hash"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


class Introduced:
    """
    Middleware that puts a script at the start of the page, before anything on it asks the server.

    Args:
        app: The app behind it.
        script: The script, with its tags.
    """

    def __init__(self, app: ASGIApp, script: str):
        self._app, self._script = app, script.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            return await self._app(scope, receive, send)
        start: Message = {}
        page = b""

        async def sending(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start":
                start = message
                return
            page += message.get("body", b"")
            if not message.get("more_body"):
                page = page.replace(b"<head>", b"<head>" + self._script, 1)
                headers = MutableHeaders(raw=list(start["headers"]))
                headers["content-length"] = str(len(page))
                await send({**start, "headers": headers.raw})
                await send({**message, "body": page})

        await self._app(scope, receive, sending)


class ImpatientProtocol(H11Protocol):
    """HTTP that closes a connection whose client takes long to send the head of a request, or to read an answer."""

    def __init__(self, *given: Any, **more: Any):
        super().__init__(*given, **more)
        self._deadlines: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect("head", HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect("head", HEAD_SECONDS)
        else:
            self._arrived("head")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect("reader", PART_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._arrived("reader")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for what in list(self._deadlines):
            self._arrived(what)

    def _expect(self, what: str, seconds: float) -> None:
        """Sets a deadline, unless there is one already."""
        if what not in self._deadlines:
            self._deadlines[what] = self.loop.call_later(seconds, self.transport.abort)

    def _arrived(self, what: str) -> None:
        if (deadline := self._deadlines.pop(what, None)) is not None:
            deadline.cancel()


__all__ = ["HEAD_SECONDS", "PAGE", "PART_SECONDS", "Gate", "ImpatientProtocol", "Introduced", "Route"]
