"""A real HTTP server in a thread that plays a judge, kind or hostile, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vlm_mhpo.config import JudgeConfig

SERVED = "judge-7b-2026-05"
GREETING = "Reply with the single word: ready"


@dataclass
class Played:
    """A running server.

    Attributes:
        url: its base address.
        requests: (path, headers, body) of each, in order of arrival.
        done: set at the end, for whoever keeps a client waiting.
    """

    url: str = ""
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def prompts(self) -> list[str]:
        """What was asked, without the first question."""
        found = [body["messages"][0]["content"] for _, _, body in self.requests]
        return [prompt for prompt in found if prompt != GREETING]

    def config(self, tmp_path, **change: Any) -> JudgeConfig:
        """A configuration that asks it, with an own folder of answers."""
        values = {"url": self.url, "model": "judge", "cache_dir": str(tmp_path / "answers"), "timeout_s": 20}
        return JudgeConfig(**values | change)


Reply = Callable[[BaseHTTPRequestHandler, Played, str], None]


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """One whole response."""
    handler.send_response(status)
    for name, value in {"content-type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: Any, model: Any = SERVED) -> bytes:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"object": "chat.completion", "model": model, "choices": [choice]}).encode()


def says(answer: Callable[[str], Any]) -> Reply:
    """Answers every prompt as a function of it."""
    return lambda handler, played, prompt: send(handler, completion(answer(prompt)))


@contextlib.contextmanager
def judge_server(reply: Reply) -> Iterator[Played]:
    """A server on a free port of this machine, until the end of the block."""
    played = Played()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body are two writes; the second would wait for the first's acknowledgement.
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            played.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            # A client that has given up closes the connection.
            with contextlib.suppress(OSError):
                reply(self, played, body["messages"][0]["content"])

        def log_message(self, *args: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    played.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield played
    finally:
        played.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
