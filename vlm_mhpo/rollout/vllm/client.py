"""One vLLM server over HTTP: kept connections, a time limit for every call, and errors that say whose fault it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2

from vlm_mhpo.errors import RolloutError
from vlm_mhpo.runtime.http import open_client, read_body
from vlm_mhpo.runtime.secrets import MASK

MAX_BODY_BYTES = 256 << 20
_MAX_SHOWN = 300
_REFUSED = {400, 413, 422}
# An error of the engine by its status, and of the request by what it says.
_REQUESTS_FAULT = "Failed to apply prompt replacement"


class BadRequest(RolloutError):
    """The request is at fault: no server would take it, and it is not asked again."""


class ServerLost(Exception):
    """The server does not answer, or its engine has failed: another may, and this one later, with new weights."""


class Client:
    """Calls to one server, all from one event loop.

    Args:
        url: of the server.
        token: sent with every call; None = none.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url, self._token = url.rstrip("/"), token
        self._http: httpx2.AsyncClient | None = None

    async def call(
        self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float, method: str = "POST"
    ) -> Any:
        """What the server answers: JSON, or None for an empty or other body.

        Raises:
            BadRequest: the request is at fault. ServerLost: the server is, or the way to it.
            RolloutError: the configuration is (token, address, model name).
        """
        if self._http is None:
            self._http = open_client(self._token)
        content = None if method == "GET" else json.dumps(body or {}).encode()
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(method, self.url + path, content=content) as response,
            ):
                raw = await read_body(response, MAX_BODY_BYTES)
        except TimeoutError as error:
            raise ServerLost(f"did not answer {_route(path)} within {timeout_s:g} s") from error
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError) as error:
            said = self._shown(f"{type(error).__name__}: {error}")
            raise ServerLost(f"cannot be reached, or breaks off ({said})") from error
        if raw is None:
            raise ServerLost(f"answers {_route(path)} with more than {MAX_BODY_BYTES >> 20} MiB, or compressed")
        if response.status_code == 200:
            return self._json(raw, path)
        raise self._error(response.status_code, raw.decode("utf-8", "replace"), path)

    def _json(self, raw: bytes, path: str) -> Any:
        try:
            return json.loads(raw) if raw.strip() else None
        except (ValueError, RecursionError) as error:
            raise ServerLost(f"answers {_route(path)} with something that is no JSON") from error

    def _error(self, status: int, said: str, path: str) -> Exception:
        """What a status other than 200 means."""
        told = f"answers {_route(path)} with status {status} ({self._shown(said)})"
        if status in _REFUSED or (status == 500 and _REQUESTS_FAULT in said):
            return BadRequest(f"{self.url} {told}")
        if status in (401, 403):
            return RolloutError(f"{self.url} {told}: check rollout.vllm.token_file")
        if status == 404 or 300 <= status < 400:
            return RolloutError(
                f"{self.url} {told}: it is no server that scripts/serve_rollouts.sh has started; check "
                "rollout.vllm.servers"
            )
        return ServerLost(told)

    def _shown(self, text: str) -> str:
        """The beginning of a text of the server on one line, without the token."""
        text = text.replace(self._token, MASK) if self._token else text
        return " ".join(text.split())[:_MAX_SHOWN]

    async def close(self) -> None:
        """Close the connections; the server then gives up what it was asked."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None


def _route(path: str) -> str:
    """A path without its query."""
    return path.partition("?")[0]
