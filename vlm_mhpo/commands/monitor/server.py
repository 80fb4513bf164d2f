"""The monitor as two Starlette routes behind a guard, and uvicorn with the bounds that it does not have itself.

Not covered: TLS. Beyond loopback the token and the page travel in the clear, so put a proxy or a tunnel in front.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm_mhpo.commands.monitor.access import METHODS, Access, MonitorError, refusal
from vlm_mhpo.commands.monitor.view import View

MAX_HEAD_BYTES = 16_384
MAX_CONNECTIONS = 32
CHUNK_BYTES = 65_536
HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
EXTRA_HEADERS = {
    HTTPStatus.METHOD_NOT_ALLOWED: {"Allow": ", ".join(METHODS)},
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": 'Basic realm="vlm-mhpo monitor", charset="UTF-8"'},
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take: seconds until its request is here, and for each chunk until it has read it."""

    request_s: float = 10.0
    chunk_s: float = 10.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; uvicorn would end the process with a log line where it cannot have the address.

    Raises:
        MonitorError: the address cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise MonitorError(f"{host}:{port} cannot be served: {error.strerror}; choose another --port.") from error


def build_server(folder: Path, access: Access, limits: Limits = Limits()) -> uvicorn.Server:
    """The server of a run folder, to be run with the socket of `listen`; it says nothing but unexpected errors."""
    return uvicorn.Server(
        uvicorn.Config(
            _build_app(View(folder), access),
            http=partial(BoundedProtocol, limits=limits),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            headers=list(HEADERS.items()),
            server_header=False,
            proxy_headers=False,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
    )


def _build_app(view: View, access: Access) -> ASGIApp:
    """The page at `/`, its state at `/state.json`, and nothing else, for those that `access` lets in."""

    async def page(_: Request) -> Response:
        html = await view.page()
        # In chunks, so that the time to read is one chunk's, however long the page.
        headers = {"Content-Length": str(len(html))}
        return StreamingResponse(_chunks(html), headers=headers, media_type="text/html")

    async def state(_: Request) -> Response:
        return Response(await asyncio.to_thread(view.state), media_type="application/json")

    nothing = _answer(HTTPStatus.NOT_FOUND)
    router = Router([Route("/", page), Route("/state.json", state)], redirect_slashes=False, default=nothing)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        reason = refusal(access, scope["method"], scope["headers"])
        app = _answer(reason) if reason else nothing if scope["query_string"] else router
        await app(scope, receive, send)

    return guarded


def _answer(status: HTTPStatus) -> Response:
    """A status in words."""
    return PlainTextResponse(f"{status.value} {status.phrase}\n", status, EXTRA_HEADERS.get(status))


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP with a bound on every wait and on the number of open connections.

    uvicorn alone bounds neither the time of a request's head nor that of a client that does not read, its
    `limit_concurrency` lets silent connections in, and it answers a head that is too long with 400.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Hang up on one client too many; the request of any other must be here in time."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._wait(self._limits.request_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._wait(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Once the head is here the client may take its time until it is answered."""
        # In pieces: h11 measures a head only while it waits for more of it.
        for start in range(0, len(data), 4096):
            if self._is_refused or self.cycle is not None:  # one request per connection
                return
            super().data_received(data[start : start + 4096])
        if self.cycle is not None:
            self._wait(None)

    def pause_writing(self) -> None:
        """What was sent must be read in time."""
        super().pause_writing()
        self._wait(self._limits.chunk_s)

    def resume_writing(self) -> None:
        """It was; after the last chunk the connection must close in time."""
        super().resume_writing()
        self._wait(self._limits.chunk_s if self.transport.is_closing() else None)

    def on_response_complete(self) -> None:
        """The rest must be read in time too."""
        super().on_response_complete()
        self._wait(self._limits.chunk_s)

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the head, then wait for the client to hang up: closing on bytes that are still
        under way would take the answer back from him."""
        if self.cycle is not None:  # the head was whole: what is broken is a body that nobody reads
            return
        error = sys.exception()
        status = HTTPStatus(error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400)
        body = f"{status.value} {status.phrase}\n".encode()
        headers = [*HEADERS.items(), ("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        head = self.conn.send(h11.Response(status_code=status, headers=headers, reason=status.phrase))
        self._is_refused = True
        self.transport.write((head or b"") + body)
        self.transport.write_eof()
        self._wait(self._limits.chunk_s)

    def _wait(self, seconds: float | None) -> None:
        """Hang up after so many seconds from now unless this is called again; None waits for ever."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
