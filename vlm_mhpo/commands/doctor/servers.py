"""Rollout servers: do they answer, keep others out, and take what this run will ask? Nothing is sampled or pushed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.config import Config
from vlm_mhpo.errors import NoServerError, RolloutError, VlmMhpoError
from vlm_mhpo.rollout.vllm.client import ServerLost
from vlm_mhpo.rollout.vllm.servers import Server, Servers
from vlm_mhpo.runtime.http import read_token


def examine_servers(config: Config) -> Iterator[Check]:
    """One check per server of `rollout.vllm.servers`."""
    try:
        servers = Servers(config.rollout.vllm, read_token(config.rollout.vllm.token_file, "rollout.vllm.token_file"))
    except VlmMhpoError as error:
        yield Check.refusal("rollout servers", error)
        return
    yield from asyncio.run(_examined(config, servers))


async def _examined(config: Config, servers: Servers) -> list[Check]:
    try:
        return list(await asyncio.gather(*(_one(config, servers, server) for server in servers.all)))
    finally:
        await servers.close()


async def _one(config: Config, servers: Servers, server: Server) -> Check:
    try:
        await servers.meet(server, config.model.dtype, config.rollout.vllm.sync)
        limits = server.identity
        needed = config.data.max_prompt_length + config.rollout.max_completion_length
        if limits["max_model_len"] < needed:
            raise RolloutError(
                f"it holds {limits['max_model_len']} tokens, and data.max_prompt_length + "
                f"rollout.max_completion_length = {needed}: start it with --max-len {needed}"
            )
        if limits["max_num_seqs"] < config.rollout.num_generations:
            raise RolloutError(
                f"it samples {limits['max_num_seqs']} completions at a time, and rollout.num_generations = "
                f"{config.rollout.num_generations}: start it with --max-seqs {config.rollout.num_generations} or more"
            )
    except ServerLost as error:
        return Check.refusal(server.url, NoServerError(f"it {error}: start it with scripts/serve_rollouts.sh"))
    except RolloutError as error:
        return Check.refusal(server.url, error)
    text = f"{limits['class']} in {limits['dtype']}, {limits['max_model_len']} tokens, {limits['max_images']} images"
    return Check("ok", server.url, f"{text}; --parity compares its log-probs with the model's")
