"""A monitor's server in a thread of the test, and requests to it byte by byte."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_mhpo.commands.monitor.access import Access, access_for
from vlm_mhpo.commands.monitor.server import Limits, open_server


@contextmanager
def served(folder: Path, access: Access | None = None, limits: Limits | None = None) -> Iterator[int]:
    """The port of a server on 127.0.0.1 that ends with the block."""
    started, port = threading.Event(), []

    async def run() -> None:
        server = await open_server(folder, access or access_for("127.0.0.1", None), "127.0.0.1", 0, limits or Limits())
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        port.extend((server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stop.set)))
        started.set()
        async with server:
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield port[0]
    finally:
        port[1]()
        thread.join(20)


def exchange(port: int, request: bytes) -> bytes:
    """Everything that the server sends back until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request)
        received = []
        while data := client.recv(65_536):
            received.append(data)
    return b"".join(received)


def get(
    port: int, target: str = "/state.json", *headers: str, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower-case names) and body of one request."""
    lines = [
        f"{method} {target} HTTP/1.1",
        *(headers if any(h.startswith("Host:") for h in headers) else ("Host: localhost", *headers)),
    ]
    head, _, body = exchange(port, "\r\n".join([*lines, "", ""]).encode()).partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return int(status.split()[1]), {name.lower(): value for name, value in (f.split(": ", 1) for f in fields)}, body
