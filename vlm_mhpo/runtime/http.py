"""What every client of this package does alike: tokens from files, bodies with a limit, no proxies and no redirects.

A token is sent to the configured address and shown nowhere; errors of the library do not carry the request.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
from functools import cache
from pathlib import Path
from typing import Any

import httpx2

from vlm_mhpo.errors import ConfigError

_MAX_TOKEN_BYTES = 4096
# Their lines name every request, and at the lowest level the headers of every response.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def read_token(file: str | None, key: str) -> str | None:
    """The access token in `file`, which the configuration names by `key`; None without a file.

    Raises:
        ConfigError: the file cannot be read, or holds something else than one word of printable ASCII.
    """
    if file is None:
        return None
    named = f"{key}={file}"
    try:
        with Path(file).expanduser().open("rb") as stream:
            token = stream.read(_MAX_TOKEN_BYTES).strip()
    except OSError as error:
        raise ConfigError(f"{named}: {error.strerror}: name a file that holds the access token") from error
    if not re.fullmatch(rb"[!-~]+", token) or len(token) == _MAX_TOKEN_BYTES:
        raise ConfigError(f"{named} holds no access token: one word of printable ASCII and nothing else")
    return token.decode()


def open_client(token: str | None) -> httpx2.AsyncClient:
    """Connections to one server that are kept, to be used in one event loop; each try is timed by its caller."""
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    # As many connections as requests are open: none waits for another's within its own limit of time.
    return httpx2.AsyncClient(
        headers=headers,
        timeout=None,
        limits=httpx2.Limits(),
        follow_redirects=False,
        trust_env=False,
        verify=_tls(),
    )


@cache
def _tls() -> ssl.SSLContext:
    """Certificates are checked; read once, which takes longer than a question."""
    return httpx2.create_ssl_context(trust_env=False)


async def read_body(response: httpx2.Response, max_bytes: int) -> bytes | None:
    """The body; None if it is too large, or compressed, which may become any size."""
    raw = bytearray()
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return None
    async for part in response.aiter_raw():
        raw += part
        if len(raw) > max_bytes:
            return None
    return bytes(raw)


def parsed(raw: bytes) -> Any:
    """JSON, or None for what is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
