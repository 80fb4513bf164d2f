"""The judge's server: chat completions over HTTP, within limits of time and size, and nothing it says is trusted.

The access token is sent to the configured address and shown nowhere: texts of the server are cleared of it, redirects
are not followed, proxies of the environment not used, and errors do not carry the request.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, field
from typing import Any

import httpx2

from vlm_mhpo.config import JudgeConfig
from vlm_mhpo.errors import JudgeError
from vlm_mhpo.evaluation.judge.answers import Answer
from vlm_mhpo.runtime import http
from vlm_mhpo.runtime.http import open_client, parsed, read_body
from vlm_mhpo.runtime.secrets import MASK

MAX_BODY_BYTES = 4 << 20
MAX_PAUSE_S = 60.0
_MAX_SHOWN = 200
# Statuses by what they are about: this question alone, or the moment. Any other but 200 is about the configuration.
_REFUSED = {400, 413, 422}
_PASSING = {408, 409, 425, 429}


def read_token(config: JudgeConfig) -> str | None:
    """The access token of `token_file`; see `runtime.http.read_token`."""
    return http.read_token(config.token_file, "eval.judge.token_file")


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a try brought no answer; `is_passing` if another may, `pause_s` as the server asks for."""

    reason: str
    is_passing: bool = True
    pause_s: float | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """One judge at one address.

    Attributes:
        config: address, limits.
        token: sent with every question; None = none.
        first_pause_s: before the second try; doubled before each further one.
    """

    config: JudgeConfig
    token: str | None = field(repr=False)
    first_pause_s: float = 1.0

    @property
    def address(self) -> str:
        """What is asked."""
        return self.config.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    def client(self) -> httpx2.AsyncClient:
        """Connections to it, to be used in one event loop."""
        return open_client(self.token)

    async def ask(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> Answer:
        """Put one question until it is answered, or refused.

        Raises:
            JudgeError: no try brought an answer, or another try cannot.
        """
        pause_s = self.first_pause_s
        for number in range(1, self.config.max_tries + 1):
            found = await self._try(client, body)
            if isinstance(found, Answer):
                return found
            if not found.is_passing:
                raise JudgeError(f"eval.judge: {self.address} {found.reason}")
            if number < self.config.max_tries:
                await asyncio.sleep(min(MAX_PAUSE_S, max(pause_s, found.pause_s or 0.0)))
                pause_s *= 2
        raise JudgeError(
            f"eval.judge: {self.address} {found.reason} (tries: {self.config.max_tries}); what was answered is kept: "
            "start the same command again once it answers"
        )

    async def _try(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> Answer | _Failure:
        """One request; everything that a server or a network may do ends here."""
        try:
            async with (
                asyncio.timeout(self.config.timeout_s),
                client.stream("POST", self.address, content=json.dumps(body).encode()) as response,
            ):
                raw = await read_body(response, MAX_BODY_BYTES)
        except TimeoutError:
            return _Failure(f"did not answer within {self.config.timeout_s:g} s (eval.judge.timeout_s)")
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError) as error:
            return _Failure(f"cannot be reached, or breaks off ({self._shown(type(error).__name__, str(error))})")
        if raw is None:
            return _Failure(f"answers with more than {MAX_BODY_BYTES >> 20} MiB, or compressed")
        return self._judged(response.status_code, response.headers.get("retry-after", ""), raw, body["model"])

    def _judged(self, status: int, retry_after: str, raw: bytes, model: str) -> Answer | _Failure:
        """What a whole response means."""
        said = parsed(raw)
        if status == 200:
            text = _path(said, "choices", 0, "message", "content", default=0)
            if text is None or isinstance(text, str):
                served = _path(said, "model")
                return Answer(self._clean(text or ""), self._shown(served if isinstance(served, str) else model))
            return _Failure("answers with something that is no chat completion")
        message = _path(said, "error", "message") or _path(said, "message") or _path(said, "detail")
        reason = f"answers with status {status}" + (f" ({self._shown(message)})" if isinstance(message, str) else "")
        if status in _REFUSED:
            return Answer(None, refusal=reason)
        if 300 <= status < 400:
            return _Failure(f"{reason}: redirects are not followed, set eval.judge.url to the final address", False)
        if status in (401, 403):
            return _Failure(f"{reason}: check eval.judge.token_file", False)
        if status == 404:
            return _Failure(f"{reason}: check eval.judge.url and eval.judge.model", False)
        is_passing = status in _PASSING or status >= 500
        return _Failure(reason if is_passing else f"{reason}: check eval.judge", is_passing, _seconds(retry_after))

    def _clean(self, text: str) -> str:
        """A text of the server without the token, which it has seen, and as UTF-8 can hold it."""
        text = text.replace(self.token, MASK) if self.token else text
        return text.encode("utf-8", "replace").decode()

    def _shown(self, *texts: str) -> str:
        """The beginning of texts of the server on one line."""
        return " ".join(self._clean(": ".join(filter(None, texts))).split())[:_MAX_SHOWN]


def _path(value: Any, *keys: str | int, default: Any = None) -> Any:
    """What lies at the end of a path of keys and indices; `default` where the path ends early."""
    for key in keys:
        if isinstance(key, int):
            if not isinstance(value, list) or len(value) <= key:
                return default
        elif not isinstance(value, dict) or key not in value:
            return default
        value = value[key]
    return value


def _seconds(text: str) -> float | None:
    """The seconds of a Retry-After header; None for a date or nonsense."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
