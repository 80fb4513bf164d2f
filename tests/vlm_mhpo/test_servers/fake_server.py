"""A stand-in for a vLLM server: the routes that we use, a real policy behind them, and faults on request.

What it samples is right: it holds a policy of its own, gives it the weights that are pushed (read and summed anew), and
draws with our sampler, which other tests compare with stock transformers. Like the real one it expands placeholders
itself, reports success when it should not, and answers from stale caches until all three are reset.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from PIL import Image
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.builders import Tiny, problem_row
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.rollout.vllm.on_server.guard import Guard
from vlm_mhpo.rollout.vllm.on_server.weight_transport import sum_of, total_of
from vlm_mhpo.types import Prompt

Fault = Callable[["FakeServer", str, dict[str, Any]], Any]
CACHES = {"prefix", "mm", "encoder"}


@dataclass
class FakeServer:
    """One server.

    Attributes:
        model: with weights of its own.
        identity: changes of what it says of itself.
        fault: (server, path, body) -> None to go on, a Response or a value to answer; set and taken away by tests.
        twist: changes an answer of generate before it is sent; taken away after one use unless it returns True.
        calls: paths in order.
    """

    model: Tiny
    identity: dict[str, Any] = field(default_factory=dict)
    token_file: Path | None = None
    fault: Fault | None = None
    twist: Callable[[dict[str, Any]], Any] | None = None
    version: str = "default"
    is_paused: bool = False
    stale: set[str] = field(default_factory=set)
    loaded: dict[str, str] = field(default_factory=dict)
    ignores: str = ""  # part of the names of tensors that it takes and does not load
    root: str = ""
    calls: list[str] = field(default_factory=list)
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pushes(self) -> int:
        """Finished weight updates."""
        return self.calls.count("/finish_weight_update")

    def app(self) -> ASGIApp:
        async def answer(request: Request) -> Response:
            raw = await request.body()
            body = await request.json() if raw else {}
            return await _in_thread(self.answer, request.url.path, body)

        app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
        return app if self.token_file is None else _guarded(app, self.token_file)

    def answer(self, path: str, body: dict[str, Any]) -> Response:
        self.calls.append(path)
        found = self.fault(self, path, body) if self.fault else None
        if found is None:
            act = getattr(self, "do" + path.replace("/", "_"), None)
            found = act(body) if act else Response(status_code=404)
        # Python's JSON, which knows NaN.
        return found if isinstance(found, Response) else Response(json.dumps(found), media_type="application/json")

    # ---- control ---------------------------------------------------------------------------------------------------

    def do_collective_rpc(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["method"] == "mhpo_loaded":
            return {"results": [{"num_tensors": len(self.loaded), "total": total_of(self.loaded)}]}
        fixed = {"dtype": "float32", "logprobs_mode": "processed_logprobs", "generation_config": "vllm"}
        limits = {"max_model_len": 512, "max_num_seqs": 64, "max_images": 2, "backend": "files"}
        return {"results": [fixed | limits | self.identity]}

    def do_weight_info(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"weight_version": self.version}

    def do_is_paused(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"is_paused": self.is_paused}

    def do_init_weight_transfer_engine(self, body: dict[str, Any]) -> None:
        self.root = body["init_info"]["root"]

    def do_pause(self, body: dict[str, Any]) -> None:
        self.is_paused = True

    def do_resume(self, body: dict[str, Any]) -> None:
        self.is_paused = False

    def do_start_weight_update(self, body: dict[str, Any]) -> None:
        self.loaded.clear()

    def do_update_weights(self, body: dict[str, Any]) -> Response | None:
        info = body["update_info"]
        tensors: dict[str, torch.Tensor] = {}
        for name in info["files"]:
            tensors |= load_file(Path(self.root) / name)
        found = {name: sum_of(name, value) for name, value in tensors.items()}
        if found != info["sums"]:
            return PlainTextResponse("the files are not what the trainer wrote", 500)
        weights = dict(self.model.policy.model.named_parameters())
        with self.lock, torch.no_grad():
            for name, value in tensors.items():
                if not self.ignores or self.ignores not in name:
                    weights[_inside(name, weights)].copy_(value)
        self.loaded.update(found)
        self.stale = set(CACHES)
        return None

    def do_finish_weight_update(self, body: dict[str, Any]) -> None:
        self.version = body.get("weight_version", self.version)

    def do_reset_prefix_cache(self, body: dict[str, Any]) -> None:
        self.stale.discard("prefix")

    def do_reset_mm_cache(self, body: dict[str, Any]) -> None:
        self.stale.discard("mm")

    def do_reset_encoder_cache(self, body: dict[str, Any]) -> None:
        self.stale.discard("encoder")

    # ---- sampling --------------------------------------------------------------------------------------------------

    def do_inference_v1_generate(self, body: dict[str, Any]) -> Any:
        asked = body["sampling_params"]
        prompt = self.prompt_of(body["token_ids"], body.get("content_parts", []))
        params = SamplingParams(asked["n"], asked["max_tokens"], asked["temperature"], asked["top_p"], asked["top_k"])
        with self.lock:
            sampler = HfSampler(self.model.policy, self.model.codec, max_batch_tokens=100_000)
            (group,) = sampler.sample([prompt], params, (asked["seed"],))
        shift = 0.5 if self.stale else 0.0
        answer = {
            "prompt_token_ids": prompt.input_ids_S.tolist(),
            "choices": [self.choice(index, one, shift) for index, one in enumerate(group.completions)],
        }
        if self.twist and not self.twist(answer):
            self.twist = None
        return answer

    def choice(self, index: int, completion: Any, shift: float) -> dict[str, Any]:
        pairs = zip(completion.token_ids, completion.log_probs.tolist(), strict=True)
        return {
            "index": index,
            "finish_reason": "length" if completion.truncated else "stop",
            "token_ids": list(completion.token_ids),
            "logprobs": {"content": [{"token_id": one, "logprob": value - shift} for one, value in pairs]},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(completion.token_ids)}],
        }

    def prompt_of(self, ids: list[int], parts: list[dict[str, Any]]) -> Prompt:
        """Every placeholder becomes as many as the next image has tokens, also where that is wrong."""
        images = [Image.open(io.BytesIO(base64.b64decode(part["url"].partition(",")[2]))) for part in parts]
        row = problem_row("asked", "?" + "<image>" * len(images), [_png(image) for image in images])
        if not images:
            return Prompt(row, "", torch.tensor(ids), torch.zeros(len(ids), dtype=torch.int64))
        processor = self.model.codec.processor
        inputs = processor.image_processor(images=images, return_tensors="pt")
        sizes = [int(grid.prod()) // processor.image_processor.merge_size**2 for grid in inputs["image_grid_thw"]]
        token, wide = self.model.policy.model.config.image_token_id, []
        for one in ids:
            wide += [one] * sizes.pop(0) if one == token and sizes else [one]
        expanded = torch.tensor(wide)
        (media,) = self.model.policy.family.vision.cut(processor, inputs, [len(images)])
        return Prompt(row, "", expanded, (expanded == token).long(), media)


def _inside(name: str, weights: dict[str, Any]) -> str:
    """The name in memory of a tensor of the folder: older Qwen folders lack a level."""
    if name in weights:
        return name
    return re.sub("^visual", "model.visual", re.sub("^model", "model.language_model", name))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


async def _in_thread(act: Callable[..., Response], *args: Any) -> Response:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(act, *args)


def _guarded(app: ASGIApp, token_file: Path) -> ASGIApp:
    import os

    os.environ["MHPO_TOKEN_FILE"] = str(token_file)
    try:
        return Guard(app)
    finally:
        del os.environ["MHPO_TOKEN_FILE"]


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Inside, the server listens; what it is doing at the end is broken off."""
    options = {"host": "127.0.0.1", "port": server.port, "log_level": "critical", "lifespan": "off"}
    running = uvicorn.Server(uvicorn.Config(server.app(), timeout_graceful_shutdown=0, **options))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    server.port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        running.should_exit = running.force_exit = True
        thread.join(timeout=10)


def fake_of(model: Tiny, **options: Any) -> FakeServer:
    """A server that has read the model's folder."""
    return FakeServer(copy.deepcopy(model), **options)
