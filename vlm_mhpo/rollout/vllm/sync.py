"""Give servers the weights of a step: pause, load, compare sums, clear caches, resume; whatever fails leaves it unfit.

A server reports success after half a push and answers from caches of old weights, so the order here is what makes its
answers those of the policy; `fingerprint` then believes log-probs alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vlm_mhpo.config import VllmConfig
from vlm_mhpo.errors import RolloutError
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.vllm.client import ServerLost
from vlm_mhpo.rollout.vllm.learning import WholeWeights, learning_layers, whole_layers
from vlm_mhpo.rollout.vllm.on_server.weight_transport import broadcast, gloo_group, sum_of, total_of
from vlm_mhpo.rollout.vllm.servers import QUICK_S, Server, rpc
from vlm_mhpo.runtime import ranks

CACHES = ("prefix", "mm", "encoder")


class WeightSync(Protocol):
    """A way of giving servers weights; one object per rank.

    Attributes:
        backend: its name at the server.
        version: of the weights that were last given, RUN:step; None before.
        num_bytes: of them.
    """

    backend: str
    version: str | None
    num_bytes: int

    def push(self, runner: asyncio.Runner, step: int, servers: list[Server]) -> None:
        """Give all servers the weights after `step` steps; on all ranks. Those that fail are lost."""
        ...

    async def renew(self, server: Server) -> None:
        """Give one server the weights of the last push, while the others sample. ServerLost when it cannot be."""
        ...

    def close(self) -> None:
        """Take away what was left behind."""
        ...


def new_run() -> str:
    """A name that no other run has, the same on all ranks."""
    return ranks.gather_objects(secrets.token_hex(4))[0]


class FilesSync:
    """Weights as safetensors in a folder that trainer and servers see; a server that comes back finds them there."""

    backend = "files"

    def __init__(self, config: VllmConfig, policy: Policy, whole_weights: WholeWeights) -> None:
        self.config, self.policy, self.whole_weights = config, policy, whole_weights
        self.layers = learning_layers(policy)
        self.run, self.version, self.num_bytes = new_run(), None, 0
        self.root = Path(config.sync_dir).expanduser().resolve()
        self.files: list[str] = []
        self.sums: dict[str, str] = {}

    def push(self, runner: asyncio.Runner, step: int, servers: list[Server]) -> None:
        """See `WeightSync`.

        Raises:
            RolloutError: on all ranks, when the folder cannot be written.
        """
        error = None
        try:
            described = self._write(step)
        except OSError as problem:
            described = None
            error = RolloutError(
                f"rollout.vllm.sync_dir={self.root}: the weights cannot be written ({problem.strerror or problem}): "
                "make room, or name another folder"
            )
        ranks.raise_together(error)
        self.files, self.sums, self.num_bytes, self.version = ranks.gather_objects(described)[0]
        if ranks.is_main():
            runner.run(_with_all(servers, self._give))

    def _write(self, step: int) -> tuple[list[str], dict[str, str], int, str] | None:
        """Write the layers, on the main rank, and forget those of the step before last; all ranks take part."""
        from safetensors.torch import save_file

        name = f"{self.run}/step_{step}"
        part, sums, files, num_bytes, problem = self.root / f"{name}.part", {}, [], 0, None
        for index, tensors in enumerate(whole_layers(self.policy, self.layers, self.whole_weights)):
            if not ranks.is_main() or problem:
                continue
            try:
                part.mkdir(parents=True, exist_ok=True, mode=0o700)
                save_file(tensors, part / f"{index:04}.safetensors")
            # safetensors' own error, of a full disk for one, is no OSError.
            except Exception as found:
                problem = found
            files.append(f"{name}/{index:04}.safetensors")
            sums |= {key: sum_of(key, value) for key, value in tensors.items()}
            num_bytes += sum(value.nbytes for value in tensors.values())
        if problem:
            raise OSError(0, str(problem))
        if not ranks.is_main():
            return None
        whole = self.root / name
        shutil.rmtree(whole, ignore_errors=True)
        # Not there yet where nothing learns.
        part.mkdir(parents=True, exist_ok=True)
        part.rename(whole)
        kept = {whole.name, Path(self.files[0]).parent.name if self.files else ""}
        for folder in (self.root / self.run).glob("step_*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        return files, sums, num_bytes, f"{self.run}:{step}"

    async def _give(self, server: Server) -> None:
        await open_update(server, self.config.sync_timeout, {"root": str(self.root)})
        body = {"update_info": {"files": self.files, "sums": self.sums}}
        await server.client.call("/update_weights", body, timeout_s=self.config.sync_timeout)
        await close_update(server, self.config.sync_timeout, self.version, total_of(self.sums))

    async def renew(self, server: Server) -> None:
        """See `WeightSync`; of several ranks that find a server back, one does it."""
        if await _holds(server, self.version):
            return
        with self._alone(server) as is_alone:
            if not is_alone:
                raise ServerLost("is given its weights by another rank")
            await self._give(server)

    @contextlib.contextmanager
    def _alone(self, server: Server) -> Iterator[bool]:
        """Whether nobody else is giving this server weights; also False where this host does not see the folder."""
        folder = self.root / self.run
        if not folder.is_dir():
            yield False
            return
        name = hashlib.sha256(server.url.encode()).hexdigest()[:8]
        with (folder / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def close(self) -> None:
        """See `WeightSync`."""
        if ranks.is_main():
            shutil.rmtree(self.root / self.run, ignore_errors=True)


class GlooSync:
    """Weights over TCP from the main rank to the workers of each server; a lost server waits for the next push."""

    backend = "gloo"

    def __init__(self, config: VllmConfig, policy: Policy, whole_weights: WholeWeights) -> None:
        self.config, self.policy, self.whole_weights = config, policy, whole_weights
        self.layers = learning_layers(policy)
        self.run, self.version, self.num_bytes = new_run(), None, 0
        self.groups: dict[str, Any] = {}

    def push(self, runner: asyncio.Runner, step: int, servers: list[Server]) -> None:
        """See `WeightSync`."""
        self.version = f"{self.run}:{step}"
        self.num_bytes, sums = 0, dict[str, str]()
        if ranks.is_main():
            runner.run(_with_all(servers, self._open))
        for tensors in whole_layers(self.policy, self.layers, self.whole_weights):
            if ranks.is_main():
                sums |= {key: sum_of(key, value) for key, value in tensors.items()}
                runner.run(_with_all([one for one in servers if one.is_fit], lambda one, t=tensors: self._send(one, t)))
                self.num_bytes += sum(value.nbytes for value in tensors.values())
        if ranks.is_main():
            runner.run(_with_all([one for one in servers if one.is_fit], lambda one: self._close(one, total_of(sums))))

    async def _open(self, server: Server) -> None:
        init = None
        if server.url not in self.groups or not server.is_fit:
            self.groups.pop(server.url, None)
            world = await server.client.call("/get_world_size", method="GET", timeout_s=QUICK_S)
            init = {
                "master_address": os.environ.get("MASTER_ADDR", "127.0.0.1"),
                "master_port": ranks.free_port(),
                "world_size": 1 + world["world_size"],
                "timeout_s": self.config.sync_timeout,
                "prefix": secrets.token_hex(4),
            }
        await open_update(server, self.config.sync_timeout, init, self._join)

    async def _join(self, server: Server, init: dict[str, Any]) -> None:
        place = "0.0.0.0" if init["master_address"] != "127.0.0.1" else "127.0.0.1"
        arguments = place, init["master_port"], 0, init["world_size"], init["timeout_s"], init["prefix"]
        try:
            self.groups[server.url] = await asyncio.to_thread(gloo_group, *arguments)
        except RuntimeError as error:
            raise ServerLost(f"does not join the group that weights are sent by ({error})") from error

    async def _send(self, server: Server, tensors: dict[str, Tensor]) -> None:
        described = {
            "names": list(tensors),
            "dtype_names": [str(value.dtype).removeprefix("torch.") for value in tensors.values()],
            "shapes": [list(value.shape) for value in tensors.values()],
        }
        group, limit = self.groups[server.url], self.config.sync_timeout

        def send() -> None:
            for value in tensors.values():
                broadcast(group, value)

        try:
            call = server.client.call("/update_weights", {"update_info": described}, timeout_s=limit)
            await asyncio.gather(call, asyncio.to_thread(send))
        except RuntimeError as error:
            raise ServerLost(f"does not take the weights that are sent ({error})") from error

    async def _close(self, server: Server, total: str) -> None:
        await close_update(server, self.config.sync_timeout, self.version, total)

    async def renew(self, server: Server) -> None:
        """See `WeightSync`."""
        if not await _holds(server, self.version):
            raise ServerLost("gets its weights at the next step")

    def close(self) -> None:
        """See `WeightSync`."""
        self.groups.clear()


async def open_update(server: Server, timeout_s: float, init: dict[str, Any] | None, join: Any = None) -> None:
    """Pause a server and begin an update; ServerLost as always.

    Args:
        init: of the handshake; None = it was done before.
        join: done at the same time as the handshake, which waits for it.
    """
    call = server.client.call
    if init is not None:
        asked = [call("/init_weight_transfer_engine", {"init_info": init}, timeout_s=timeout_s)]
        await asyncio.gather(*asked, *([join(server, init)] if join else []))
    await call("/pause?mode=wait", timeout_s=timeout_s)
    try:
        await call("/start_weight_update", timeout_s=timeout_s)
    except ServerLost as error:
        if "already" not in str(error):
            raise
        # Whoever began it has died.
        await call("/finish_weight_update", timeout_s=timeout_s)
        await call("/start_weight_update", timeout_s=timeout_s)


async def close_update(server: Server, timeout_s: float, version: str | None, total: str) -> None:
    """End an update, see that all of it is there, forget what older weights have left, and go on."""
    call = server.client.call
    await call("/finish_weight_update", {"weight_version": version}, timeout_s=timeout_s)
    for loaded in await rpc(server, "mhpo_loaded"):
        if loaded.get("total") != total:
            raise ServerLost(f"has loaded other weights than it was given ({loaded.get('num_tensors')} tensors)")
    # Together, and while nothing runs: one alone is filled again from another.
    for cache in CACHES:
        await call(f"/reset_{cache}_cache", timeout_s=timeout_s)
    await call("/resume", timeout_s=timeout_s)


async def _holds(server: Server, version: str | None) -> bool:
    """Whether a server has weights of this version and serves them."""
    info = await server.client.call("/weight_info", method="GET", timeout_s=QUICK_S)
    paused = await server.client.call("/is_paused", method="GET", timeout_s=QUICK_S)
    found = info.get("weight_version") if isinstance(info, dict) else None
    return found == version and isinstance(paused, dict) and not paused.get("is_paused", True)


async def _with_all(servers: list[Server], act: Any) -> None:
    """`act` with each server at once; those that fail are lost."""

    async def one(server: Server) -> None:
        begun = time.perf_counter()
        try:
            await act(server)
            server.is_fit = True
        except ServerLost as error:
            server.lose(str(error))
        finally:
            server.sync_s += time.perf_counter() - begun

    await asyncio.gather(*(one(server) for server in servers))
