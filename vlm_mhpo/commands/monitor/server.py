"""A small read-only HTTP server: one request a connection, two addresses, a time limit on every wait.

h11 parses and frames; here is only when to give up. Not covered: TLS. Beyond loopback the token and the page travel in
the clear, so put a proxy or a tunnel in front.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import h11

from vlm_mhpo.commands.monitor.access import METHODS, Access, MonitorError, access_for, refusal
from vlm_mhpo.commands.monitor.view import View

MAX_HEAD_BYTES = 16_384
MAX_CONNECTIONS = 32
CHUNK_BYTES = 65_536
MAX_DISCARDED_BYTES = 2**20
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
PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take: seconds until its request is here, and for each chunk until it has read it."""

    request_s: float = 10.0
    chunk_s: float = 10.0


def serve(run_dir: Path, *, host: str, port: int, token_file: Path | None, say: Callable[[str], None]) -> None:
    """Serve the page of a run until interrupted.

    Args:
        run_dir: the run folder; it may still be empty.
        host: address to listen on; any but loopback needs a token.
        port: 0 takes a free one.
        token_file: see `access.read_token`.
        say: gets the page's address once it is served.
    Raises:
        MonitorError: no such folder, an address that cannot be had, or access that would be open.
    """
    if not run_dir.is_dir():
        raise MonitorError(f"There is no run folder at {run_dir}; give the output_dir of the training run.")
    access = access_for(host, token_file)

    async def run() -> None:
        server = await open_server(run_dir.resolve(), access, host, port)
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{server.sockets[0].getsockname()[1]}/")
        async with server:
            await server.serve_forever()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return
    except OSError as error:
        raise MonitorError(f"{host}:{port} cannot be served: {error.strerror}; choose another --port.") from error


async def open_server(
    folder: Path, access: Access, host: str, port: int, limits: Limits = Limits()
) -> asyncio.base_events.Server:
    """A listening server; at most MAX_CONNECTIONS clients at a time, the next is hung up on."""
    view = View(folder)
    num_open = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_open
        if num_open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        num_open += 1
        try:
            await answer(reader, writer, view, access, limits)
        except OSError:  # too slow (TimeoutError is one), or gone
            writer.transport.abort()
        finally:
            num_open -= 1
            writer.close()

    return await asyncio.start_server(accept, host, port, limit=MAX_HEAD_BYTES)


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, view: View, access: Access, limits: Limits
) -> None:
    """Read one request, write one response.

    Raises:
        OSError: the client was too slow, or went away.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    method = "GET"
    try:
        async with asyncio.timeout(limits.request_s):
            request = await read_head(connection, reader)
    except h11.RemoteProtocolError as error:
        status, kind, body = HTTPStatus(error.error_status_hint), PLAIN, b""
    else:
        if request is None:
            return
        method = request.method.decode("ascii")
        status, kind, body = await respond(request, view, access)
    body = body or f"{status.value} {status.phrase}\n".encode()
    headers = {**HEADERS, **EXTRA_HEADERS.get(status, {}), "Content-Type": kind, "Content-Length": str(len(body))}
    head = connection.send(h11.Response(status_code=status, headers=list(headers.items()), reason=status.phrase))
    await write(writer, (head or b"") + (b"" if method == "HEAD" else body), limits)
    await hang_up(reader, writer, limits)


async def read_head(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The request line and headers; None when the client closed without a request."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await reader.read(4096))


async def respond(request: h11.Request, view: View, access: Access) -> tuple[HTTPStatus, str, bytes]:
    """Status, content type and body; an empty body stands for the status in words."""
    reason = refusal(access, request.method.decode("ascii"), list(request.headers))
    if reason is not None:
        return reason, PLAIN, b""
    target = request.target
    if target == b"/":
        return HTTPStatus.OK, "text/html; charset=utf-8", await view.page()
    if target == b"/state.json":
        return HTTPStatus.OK, "application/json", await asyncio.to_thread(view.state)
    return HTTPStatus.NOT_FOUND, PLAIN, b""


async def write(writer: asyncio.StreamWriter, data: bytes, limits: Limits) -> None:
    """Write in chunks, each of which the client must have taken within its time."""
    writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
    for start in range(0, len(data), CHUNK_BYTES):
        writer.write(data[start : start + CHUNK_BYTES])
        async with asyncio.timeout(limits.chunk_s):
            await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
    """End the response and wait until the client has it: closing on unread bytes would take it back from him."""
    writer.write_eof()
    async with asyncio.timeout(limits.chunk_s):
        for _ in range(MAX_DISCARDED_BYTES // CHUNK_BYTES):
            if not await reader.read(CHUNK_BYTES):
                return
