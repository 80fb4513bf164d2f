"""Sampling on vLLM servers: prompts go out as servers have room, groups come in as they are done, failures go again.

A request that fails is put to another server with the same seeds, so that a step's result is the same (up to the
engine's own reproducibility) whatever happened meanwhile. A server that failed gets the current weights again, and has
to answer, before it is used.
"""

from __future__ import annotations

import asyncio
import atexit
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from vlm_mhpo.config import VllmConfig
from vlm_mhpo.errors import NoServerError, RolloutError
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import OnGroups, SamplingParams, nothing
from vlm_mhpo.rollout.vllm.client import BadRequest, ServerLost
from vlm_mhpo.rollout.vllm.fingerprint import HOT, PARAMS, Forward, Gap, chosen_probes, gap_of, own_log_probs
from vlm_mhpo.rollout.vllm.request import Requests, StaleAnswer, WrongAnswer
from vlm_mhpo.rollout.vllm.servers import Server, Servers
from vlm_mhpo.rollout.vllm.sync import WeightSync
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.http import read_token
from vlm_mhpo.types import Group, Prompt

# Seconds between two looks at what the run is asked to do meanwhile, and between two tries to win a server back.
TICK_S, PROBE_S = 0.2, 10.0
# Answers to one prompt that may be wrong, and servers that may be lost over it, before the prompt is to blame.
MAX_WRONG, MAX_LOST = 3, 12


class VllmSampler:
    """Samples from servers that hold the policy's weights.

    Args:
        config: the servers.
        policy, codec: of the trainer; tokens, bans, and what a server's log-probs are compared with.
        sync: gives them weights; None = they are read only, and must hold the policy's already.
        forward: the policy, or an engine around it.
        whole_weights: context in which all weights are whole (ZeRO-3), for the frozen tower.
        is_collective: all ranks sample equally often, and fail together.
    """

    def __init__(
        self,
        config: VllmConfig,
        policy: Policy,
        codec: Codec,
        *,
        sync: WeightSync | None = None,
        forward: Forward | None = None,
        whole_weights: Callable[[], AbstractContextManager] = nullcontext,
        is_collective: bool = False,
    ) -> None:
        self.config, self.policy, self.codec, self.weights = config, policy, codec, sync
        self.version, self.whole_weights, self.is_collective = 0, whole_weights, is_collective
        self.forward = policy if forward is None else forward
        self.dtype = str(next(policy.parameters()).dtype).removeprefix("torch.")
        self.servers = Servers(config, read_token(config.token_file, "rollout.vllm.token_file"))
        self.requests = Requests(codec, policy.banned_V.cpu(), policy.family)
        self.probes: list[Prompt] = []
        self.is_proven = False
        self.before: list[Group] = []
        self.figures: dict[str, float] = {}
        self.num_retries = 0
        self.runner, self.is_closed = asyncio.Runner(), False
        self._alone_since: float | None = None
        atexit.register(self.close)

    # ---- weights ---------------------------------------------------------------------------------------------------

    def sync(self, step: int) -> None:
        """Give all servers the trainer's weights, which are those after `step` steps; called on all ranks.

        A server that does not take them is left out until it does.

        Raises:
            RolloutError: a server was started otherwise than this run needs it.
        """
        if self.weights is None or (self.weights.version is not None and self.version == step):
            self.version = step
            return
        begun, error = time.perf_counter(), None
        try:
            if ranks.is_main():
                self.runner.run(self._meet_all())
        except RolloutError as problem:
            error = problem
        ranks.raise_together(error)
        self.weights.push(self.runner, step, [server for server in self.servers.all if server.is_met])
        self.version, self.is_proven = step, False
        self._agree()
        self.figures |= {
            "sampling/sync_time": time.perf_counter() - begun,
            "sampling/sync_bytes": float(self.weights.num_bytes),
        }

    async def _meet_all(self) -> None:
        """Learn what each server is that is not known yet; those that do not answer stay lost."""

        async def meet(server: Server) -> None:
            try:
                await self._meet(server)
            except ServerLost as error:
                server.lose(str(error))

        await asyncio.gather(*(meet(server) for server in self.servers.all if not server.is_met))

    async def _meet(self, server: Server) -> None:
        await self.servers.meet(server, self.dtype, self.weights.backend if self.weights else None)

    def _agree(self) -> None:
        """Every rank takes the main rank's word for which servers are fit."""
        states = [(one.is_fit, one.is_met, one.reason, one.identity) for one in self.servers.all]
        for server, state in zip(self.servers.all, ranks.gather_objects(states)[0], strict=True):
            server.is_fit, server.is_met, server.reason, server.identity = state

    # ---- sampling --------------------------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_groups: OnGroups | None = None,
        on_token: Callable[[], None] = nothing,
    ) -> list[Group]:
        """See `rollout.base.Sampler.sample`; `on_token` is called several times a second.

        Raises:
            NoServerError: none was fit for `give_up_after` minutes. RolloutError: see `Requests.group`.
        """
        groups: list[Group] = []
        error: RolloutError | None = None
        problem: BaseException | None = None
        try:
            self._prove(prompts, on_token)
            groups = self.runner.run(self._draw(self._seen(prompts), params, seed_parts, on_groups, on_token))
        except RolloutError as found:
            error = found
        # Whoever asked this rank to stop finds the others where they agree on it, and not in here.
        except BaseException as found:
            problem = found
        if self.is_collective:
            ranks.raise_together(error)
        if error or problem:
            raise error or problem
        return groups

    def _seen(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts as training reads them: with features in the place of pixels where the tower is frozen."""
        if not self.is_collective or not self.policy.vision_frozen:
            return list(prompts)
        with torch.no_grad(), self.whole_weights():
            return self.policy.with_image_features(prompts)

    async def _draw(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_groups: OnGroups | None,
        on_token: Callable[[], None],
    ) -> list[Group]:
        """One group per prompt, in order."""
        groups: dict[int, Group] = {}
        todo, wrong, lost = deque(range(len(prompts))), Counter(), Counter()
        open_at: dict[asyncio.Task[Group], int] = {}
        revivals: dict[Server, asyncio.Task[None]] = {}
        try:
            while len(groups) < len(prompts):
                while todo and (server := self.servers.free()):
                    place = todo.popleft()
                    task = asyncio.ensure_future(self._ask(server, prompts[place], params, seed_parts))
                    open_at[task] = place
                self._tend(revivals)
                waiting = [*open_at, *revivals.values()]
                done, _ = await asyncio.wait(waiting, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                on_token()
                for task in done & open_at.keys():
                    place = open_at.pop(task)
                    if (group := self._taken(task, prompts[place], wrong, lost)) is None:
                        self.num_retries += 1
                        todo.appendleft(place)
                        continue
                    groups[place] = group
                    if on_groups:
                        on_groups([group])
        finally:
            await _cancelled([*open_at, *revivals.values()])
        return [groups[place] for place in range(len(prompts))]

    def _taken(
        self, task: asyncio.Task[Group], prompt: Prompt, wrong: Counter[str], lost: Counter[str]
    ) -> Group | None:
        """The group of a request; None when it is to be put again."""
        try:
            return task.result()
        except StaleAnswer:
            return None
        except WrongAnswer as error:
            wrong[prompt.id] += 1
            if wrong[prompt.id] >= MAX_WRONG:
                raise RolloutError(
                    f"row {prompt.id}: {wrong[prompt.id]} answers of rollout servers are wrong, the last {error}"
                ) from error
        except ServerLost as error:
            lost[prompt.id] += 1
            if lost[prompt.id] >= MAX_LOST:
                raise RolloutError(
                    f"row {prompt.id}: {lost[prompt.id]} rollout servers in a row were lost over it, the last {error}"
                ) from error
        return None

    async def _ask(
        self, server: Server, prompt: Prompt, params: SamplingParams, seed_parts: tuple[int | str, ...]
    ) -> Group:
        """The group of one prompt from one server, which is lost when it does not give it."""
        server.refuse_what_it_cannot(prompt, params)
        body = self.requests.body(prompt, params, seed_parts)
        try:
            with server.working():
                path = "/inference/v1/generate"
                answer = await server.client.call(path, body, timeout_s=self.config.request_timeout)
            version = self.weights.version if self.weights else None
            return self.requests.group(answer, prompt, params, version)
        except BadRequest as error:
            raise BadRequest(f"row {prompt.id}: {error}") from error
        except (ServerLost, WrongAnswer) as error:
            server.lose(str(error))
            raise

    # ---- servers that were lost ------------------------------------------------------------------------------------

    def _tend(self, revivals: dict[Server, asyncio.Task[None]]) -> None:
        """Try to win lost servers back, and give up when there has been none for too long."""
        for server in [one for one, task in revivals.items() if task.done()]:
            revivals.pop(server).result()
        for server in self.servers.lost:
            if server not in revivals:
                revivals[server] = asyncio.ensure_future(self._revive(server))
        if self.servers.fit:
            self._alone_since = None
            return
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > 60 * self.config.give_up_after:
            raise NoServerError(
                f"no rollout server has been fit for use for {self.config.give_up_after:g} minutes "
                f"({self.servers.told()}): start one with scripts/serve_rollouts.sh"
            )

    async def _revive(self, server: Server) -> None:
        """Until it has the current weights and has answered."""
        while True:
            begun = time.perf_counter()
            try:
                await self._meet(server)
                if self.weights:
                    await self.weights.renew(server)
                server.is_fit = True
                return
            except ServerLost as error:
                server.lose(str(error))
            finally:
                server.sync_s += time.perf_counter() - begun
            await asyncio.sleep(PROBE_S)

    # ---- proof -----------------------------------------------------------------------------------------------------

    def _prove(self, prompts: Sequence[Prompt], on_token: Callable[[], None]) -> None:
        """See by log-probs that servers hold the policy, once after every sync; called on all ranks.

        Raises:
            RolloutError: a server does not, also after it was given the weights once more.
        """
        if self.is_proven:
            return
        self.probes = self.probes or chosen_probes(prompts)
        # All ranks or none: under ZeRO-3 a forward is everybody's.
        if (self.is_collective and ranks.largest(int(not self.probes))) or not self.probes:
            return
        for is_last in (False, True):
            wrong = self._gaps(on_token)
            if self.is_collective:
                wrong = [one for some in ranks.gather_objects(wrong) for one in some]
            if not wrong:
                break
            told = "; ".join(f"{url} differs by {gap.max:.2g} at most, {gap.mean:.2g} on average" for url, gap in wrong)
            if is_last or self.weights is None:
                raise RolloutError(
                    f"rollout servers do not hold the policy: their log-probs of fixed prompts are not the trainer's, "
                    f"nats ({told}); restart them with the trainer's model folder and --dtype {self.dtype}"
                )
            urls = {url for url, _ in wrong}
            self.weights.push(self.runner, self.version, [one for one in self.servers.all if one.url in urls])
            self._agree()
        self.is_proven = True

    def _gaps(self, on_token: Callable[[], None]) -> list[tuple[str, Gap]]:
        """The servers that this rank looks at whose log-probs are not the trainer's; one forward on every rank."""
        answers = self.runner.run(self._fingerprints(on_token))
        groups = [group for some in answers.values() for group in some]
        # What the weights before this sync said: if the trainer still says the same, nothing is proven either way.
        own = own_log_probs(self.policy, self.forward, [*groups, *self.before], self.codec.pad_id)
        wrong, start = [], 0
        for url, some in answers.items():
            num = sum(len(group.completions) for group in some)
            gap = gap_of(some, own[start : start + num])
            start += num
            self.figures |= {"sampling/fingerprint/max": gap.max, "sampling/fingerprint/mean": gap.mean}
            if gap.is_beyond(self.dtype):
                wrong.append((url, gap))
        if self.before:
            self.figures["sampling/fingerprint/moved"] = gap_of(self.before, own[start:]).max
        if not wrong:
            self.before = next(iter(answers.values()))
        return wrong

    async def _fingerprints(self, on_token: Callable[[], None]) -> dict[str, list[Group]]:
        """What each server samples from the probes, by address; the main rank looks at all, the others at one."""
        if not self.servers.fit:
            # Waits for one, as long as sampling would.
            await self._draw(self.probes[:1], PARAMS, ("fingerprint",), None, on_token)
        fit = self.servers.fit
        chosen = fit if ranks.is_main() else [fit[ranks.rank() % len(fit)]]
        found: dict[str, list[Group]] = {}
        for server in chosen:
            try:
                if not self.before and server.takes(self.probes[0], HOT):
                    await self._ask(server, self.probes[0], HOT, ("fingerprint",))
                found[server.url] = [await self._ask(server, one, PARAMS, ("fingerprint",)) for one in self.probes]
            except (ServerLost, WrongAnswer):
                continue
            on_token()
        return found or await self._fingerprints(on_token)

    # ---- figures ---------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """See `rollout.base.Sampler.metrics`."""
        figures = self.figures | self.servers.fresh_times()
        figures |= {
            "sampling/num_servers": float(len(self.servers.fit)),
            "sampling/num_retries": float(self.num_retries),
        }
        self.num_retries = 0
        return figures

    def close(self) -> None:
        """Close connections and take away weights in `sync_dir`."""
        if self.is_closed:
            return
        self.is_closed = True
        atexit.unregister(self.close)
        self.runner.run(self.servers.close())
        self.runner.close()
        if self.weights:
            self.weights.close()


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Give up tasks; a server gives up a request whose connection is closed."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
