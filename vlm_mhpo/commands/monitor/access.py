"""Who may read the monitor: loopback by name, anybody else by a token; decided from a request's head alone.

Starlette's TrustedHostMiddleware does not do for the names: it takes a Host without a name or with two, and cuts IPv6.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from vlm_mhpo.errors import VlmMhpoError

MIN_TOKEN_BYTES = 32
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
METHODS = ("GET", "HEAD")

Headers = Sequence[tuple[bytes, bytes]]


class MonitorError(VlmMhpoError):
    """The monitor cannot be started as asked."""


@dataclass(frozen=True, slots=True)
class Access:
    """The rule of one server.

    Attributes:
        token: what a request must carry, or None when none is needed.
        names: what a Host header may name, or None for anything.
    """

    token: bytes | None
    names: frozenset[str] | None


def access_for(host: str, token_file: Path | None) -> Access:
    """The rule for a server that listens on `host`.

    Raises:
        MonitorError: a host beyond loopback without a token, or a token file that is no secret.
    """
    token = None if token_file is None else read_token(token_file)
    if is_loopback(host):
        # A page of another site can point its own name at 127.0.0.1 and then read from here (DNS rebinding), but its
        # requests carry that name. The port is free, so that a tunnel may end on another.
        return Access(token, LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host.lower()})
    if token is None:
        raise MonitorError(
            f"--host {host} lets other machines read the run; give --token-file FILE (at least {MIN_TOKEN_BYTES} "
            "bytes, mode 0600), or keep 127.0.0.1 and reach it through an SSH tunnel."
        )
    return Access(token, None)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(file: Path) -> bytes:
    """The token of a file that its owner alone can read.

    Raises:
        MonitorError: not a regular file of this user with mode 0600 (or 0400), or no token of enough bytes in it.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            token = stream.read(4096).strip() if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise MonitorError(f"--token-file {file} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise MonitorError(f"--token-file {file} must be a file that you alone can read: chmod 600 {file}.")
    if len(token) < MIN_TOKEN_BYTES or not re.fullmatch(rb"[\x21-\x7e]+", token):
        raise MonitorError(
            f"--token-file {file} must hold at least {MIN_TOKEN_BYTES} printable characters without spaces, for "
            f"example: (umask 077; openssl rand -hex 32 > {file})."
        )
    return token


def refusal(access: Access, method: str, headers: Headers) -> HTTPStatus | None:
    """Why a request gets nothing, or None when it may be answered; the first reason in this order counts."""
    if access.names is not None and not _names_us(access.names, headers):
        return HTTPStatus.MISDIRECTED_REQUEST
    if access.token is not None and not _carries(access.token, headers):
        return HTTPStatus.UNAUTHORIZED
    if method not in METHODS:
        return HTTPStatus.METHOD_NOT_ALLOWED
    if any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return None


def _names_us(names: frozenset[str], headers: Headers) -> bool:
    """Whether there is one Host header, and the server goes by its name."""
    hosts = [value.decode("latin-1").strip().lower() for name, value in headers if name == b"host"]
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", hosts[0]) if len(hosts) == 1 else None
    return match is not None and match[1] in names


def _carries(token: bytes, headers: Headers) -> bool:
    """Whether the one Authorization header holds the token: as Bearer, or as the password a browser asks for."""
    given = [value for name, value in headers if name == b"authorization"]
    if len(given) != 1:
        return False
    scheme, _, credentials = given[0].strip().partition(b" ")
    credentials = credentials.strip()
    if scheme.lower() == b"basic":
        try:
            credentials = base64.b64decode(credentials, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(credentials, token)
