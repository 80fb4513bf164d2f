"""`--middleware guard.Guard`: every route of a vLLM server but /health needs the token of the file MHPO_TOKEN_FILE.

vLLM's own --api-key leaves /update_weights, /collective_rpc, /pause and /sleep open to everyone (0.32).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


class Guard:
    """ASGI middleware that answers 401 to whoever does not know the token."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.token = Path(os.environ["MHPO_TOKEN_FILE"]).read_text().strip().encode()
        if not self.token:
            raise ValueError("the file that MHPO_TOKEN_FILE names is empty")

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Pass on what has the token; connections other than HTTP are closed."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
            if not secrets.compare_digest(given, self.token):
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"token missing or wrong"})
                return
        await self.app(scope, receive, send)
