"""A monitor's server in a thread of the test, and requests to it byte by byte."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_mhpo.commands.monitor.access import Access, access_for
from vlm_mhpo.commands.monitor.server import Limits, build_server, listen


@contextmanager
def served(folder: Path, access: Access | None = None, limits: Limits | None = None) -> Iterator[int]:
    """The port of a server on 127.0.0.1 that ends with the block."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = build_server(folder, access or access_for("127.0.0.1", None), limits or Limits())
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


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
