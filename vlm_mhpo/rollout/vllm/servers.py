"""The servers of a run: what each can take, which is fit for use, and what is checked when it is met."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from vlm_mhpo.config import VllmConfig
from vlm_mhpo.errors import RolloutError
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.vllm.client import BadRequest, Client, ServerLost
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Prompt

# Calls that no engine is needed for.
QUICK_S = 30.0
# Of a server's identity, what must be so for its log-probs to be the policy's.
DEMANDS = {"logprobs_mode": "processed_logprobs", "generation_config": "vllm"}


@dataclass(slots=True, eq=False)
class Server:
    """One server as this rank sees it.

    Attributes:
        client: calls it.
        is_fit: it holds the current weights and has answered since it got them.
        is_met: it has said what it is since it was lost.
        reason: why it is not fit.
        identity: what `engine_side.Extension.mhpo_identity` says, or said last.
        num_open: requests that it works on for this rank.
        busy_s, sync_s: seconds with an open request, and in weight updates, since the last `fresh_times`.
    """

    client: Client
    is_fit: bool = False
    is_met: bool = False
    reason: str = "has not been met yet"
    identity: dict[str, Any] = field(default_factory=dict)
    num_open: int = 0
    busy_s: float = 0.0
    sync_s: float = 0.0
    _since: float = 0.0

    @property
    def url(self) -> str:
        """Its address."""
        return self.client.url

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, one more request is open."""
        if not self.num_open:
            self._since = time.perf_counter()
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1
            if not self.num_open:
                self.busy_s += time.perf_counter() - self._since

    def lose(self, reason: str) -> None:
        """It may not be asked again before it has got the current weights."""
        if self.is_fit or reason != self.reason:
            tqdm.write(
                f"WARNING: rank {ranks.rank()}: rollout server {self.url} {reason}; it is left out until it answers"
            )
        self.is_fit, self.is_met, self.reason = False, False, reason

    def takes(self, prompt: Prompt, params: SamplingParams) -> bool:
        """Whether a prompt is within its limits."""
        try:
            self.refuse_what_it_cannot(prompt, params)
        except RolloutError:
            return False
        return True

    def refuse_what_it_cannot(self, prompt: Prompt, params: SamplingParams) -> None:
        """RolloutError for a prompt beyond its limits, some of which it would keep without a word."""
        limits = self.identity
        num_tokens, num_images = prompt.num_tokens + params.max_tokens, len(prompt.row.images)
        if num_tokens > limits["max_model_len"]:
            raise RolloutError(
                f"row {prompt.id}: {prompt.num_tokens} prompt tokens and {params.max_tokens} to sample are more than "
                f"the {limits['max_model_len']} of {self.url}: start it with --max-len {num_tokens} or more"
            )
        if num_images > limits["max_images"]:
            raise RolloutError(
                f"row {prompt.id} has {num_images} images, and {self.url} takes {limits['max_images']}: start it with "
                f"--images {num_images} or more"
            )
        if params.num_samples > limits["max_num_seqs"] and params.temperature:
            raise RolloutError(
                f"{params.num_samples} completions per prompt are more than the {limits['max_num_seqs']} that "
                f"{self.url} samples at a time: start it with --max-seqs {params.num_samples} or more"
            )


class Servers:
    """All servers of a run; this rank begins with its own, so that ranks spread."""

    def __init__(self, config: VllmConfig, token: str | None) -> None:
        self.config, self.has_token = config, token is not None
        self.all = [Server(Client(url, token)) for url in config.servers]
        self.began = time.perf_counter()

    @property
    def fit(self) -> list[Server]:
        """Those that may be asked."""
        return [server for server in self.all if server.is_fit]

    @property
    def lost(self) -> list[Server]:
        """The others."""
        return [server for server in self.all if not server.is_fit]

    def free(self) -> Server | None:
        """The fit server with the fewest open requests, if it has room."""
        first = ranks.rank() % len(self.all)
        fit = [server for server in self.all[first:] + self.all[:first] if server.is_fit]
        best = min(fit, key=lambda server: server.num_open, default=None)
        return best if best is not None and best.num_open < self.config.max_requests else None

    def told(self) -> str:
        """Each lost server with its reason."""
        return "; ".join(f"{server.url} {server.reason}" for server in self.lost)

    def fresh_times(self) -> dict[str, float]:
        """`sampling/server_{i}/{busy,sync}`: shares of the time since the last call; they begin anew."""
        now = time.perf_counter()
        spent, self.began = max(now - self.began, 1e-9), now
        shares = {}
        for index, server in enumerate(self.all):
            shares[f"sampling/server_{index}/busy"] = min(1.0, server.busy_s / spent)
            shares[f"sampling/server_{index}/sync"] = min(1.0, server.sync_s / spent)
            server.busy_s = server.sync_s = 0.0
        return shares

    async def meet(self, server: Server, dtype: str, backend: str | None) -> None:
        """Ask a server what it is, and whether it keeps others out.

        Args:
            dtype: that its weights must have.
            backend: that it must receive weights by; None = it gets none.

        Raises:
            RolloutError: it was started in a way that does not serve this run. ServerLost.
        """
        answer = await rpc(server, "mhpo_identity")
        if not isinstance(answer, list) or not answer or not isinstance(answer[0], dict):
            raise ServerLost("does not say what it is")
        found, wanted = answer[0], DEMANDS | {"dtype": dtype}
        if backend is not None:
            wanted["backend"] = backend
        for key, value in wanted.items():
            if found.get(key) != value:
                raise RolloutError(
                    f"{server.url} has {key} {found.get(key)} and must have {value}: start it with "
                    "scripts/serve_rollouts.sh (--dtype, --sync)"
                )
        if self.has_token:
            await self._is_guarded(server)
        server.identity, server.is_met = found, True

    async def _is_guarded(self, server: Server) -> None:
        """RolloutError when a call without the token is answered."""
        stranger = Client(server.url)
        try:
            await stranger.call("/weight_info", method="GET", timeout_s=QUICK_S)
        except BadRequest:
            raise
        except RolloutError:
            return
        finally:
            await stranger.close()
        raise RolloutError(
            f"{server.url} answers whoever asks, and whoever reaches it can change its weights: start it with "
            "--token-file"
        )

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(server.client.close() for server in self.all))


async def rpc(server: Server, method: str, timeout_s: float = QUICK_S) -> Sequence[Any]:
    """What a method of `engine_side.Extension` answers in each worker."""
    try:
        answer = await server.client.call("/collective_rpc", {"method": method}, timeout_s=timeout_s)
    except BadRequest as error:
        raise RolloutError(f"{error}: start the server with scripts/serve_rollouts.sh") from error
    return answer["results"] if isinstance(answer, dict) else []
