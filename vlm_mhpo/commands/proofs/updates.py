"""One update of a fixed global batch on this rank, on a fresh engine; leaves the weights that came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vlm_mhpo.config import Config, load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.rollout.base import Sampler, SamplingParams
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.seeding import derive_seed, uniforms
from vlm_mhpo.training.assembly import build_parts
from vlm_mhpo.training.forwards import update_settings
from vlm_mhpo.training.minibatches import advantages_of
from vlm_mhpo.training.update import update_on
from vlm_mhpo.types import Completion, Group, Minibatch, Prompt, ScoredGroup

# Nats that old and reference log-probs are away from the sampler's, at most: ratios on both sides of 1.
SPREAD = 0.3


def run_update(job: dict[str, Any]) -> None:
    """One job: {"config", "completions", "start", "weights": files, "max_tokens", "chunk_size", "packed"}.

    The first job samples the completions and writes them, and the weights before the update; later ones read them.
    `max_tokens` 0 = about two completions beside their prompt.
    """
    config = load_config(job["config"])
    parts = build_parts(config, config.train, what="the check's")
    engine = parts.engine
    prompts = [parts.builder(row) for row in parts.train_rows[: config.train.num_prompts_per_step]]
    file = Path(job["completions"])
    if not file.exists():
        file.write_text(json.dumps(sample(parts.sampler, prompts, config)))
        write_weights(engine, Path(job["start"]))
    batch = _shared_batch(prompts, json.loads(file.read_text()), config, packed=job["packed"])
    objective = build_objective(config.objective, config.rollout.max_completion_length)
    longest = max(prompt.num_tokens for prompt in prompts)
    settings = replace(
        update_settings(
            config.train,
            config.rollout,
            objective,
            beta=config.objective.beta,
            entropy_coef=config.objective.entropy_coef,
            pad_id=parts.codec.pad_id,
        ),
        max_tokens=job["max_tokens"] or longest + 2 * config.rollout.max_completion_length,
        chunk_size=job["chunk_size"],
    )
    update_on(engine, objective, [batch], settings, learning_rate=config.train.learning_rate, step=1)
    write_weights(engine, Path(job["weights"]))
    engine.deepspeed.destroy()


def sample(sampler: Sampler, prompts: Sequence[Prompt], config: Config) -> list[list[list[Any]]]:
    """[token ids, log-probs] of each completion of each prompt."""
    rollout = config.rollout
    params = SamplingParams(rollout.num_generations, rollout.max_completion_length, rollout.temperature)
    groups = sampler.sample(prompts, params, (config.seed, "check"))
    return [[[list(c.token_ids), c.log_probs.tolist()] for c in group.completions] for group in groups]


def _shared_batch(
    prompts: Sequence[Prompt], sampled: list[list[list[Any]]], config: Config, *, packed: bool
) -> Minibatch:
    """This rank's share of the batch: advantages of made-up rewards, constants a little off the sampler's."""
    share = len(prompts) // ranks.world_size()
    mine = slice(ranks.rank() * share, (ranks.rank() + 1) * share)
    groups = [scored(prompt, texts) for prompt, texts in zip(prompts[mine], sampled[mine], strict=True)]
    advantages_PG = advantages_of(groups, config.train.scale_rewards, config.train.advantage)
    return Minibatch(
        groups=groups if packed else one_by_one(groups),
        advantages=tuple(advantages_PG.flatten().tolist()),
        old_log_probs=moved(groups, "old"),
        reference_log_probs=moved(groups, "reference") if config.objective.beta else None,
    )


def scored(prompt: Prompt, texts: list[list[Any]]) -> ScoredGroup:
    """A group with rewards that are a pure function of the prompt's id."""
    completions = tuple(Completion(tuple(ids), torch.tensor(values), "", truncated=True) for ids, values in texts)
    rewards = tuple(uniforms(derive_seed("check", "reward", prompt.id), len(texts)).tolist())
    size = len(completions)
    return ScoredGroup(Group(prompt, completions), rewards, {}, ("not_verified",) * size, (None,) * size)


def moved(groups: Sequence[ScoredGroup], name: str) -> tuple[torch.Tensor, ...]:
    """The sampler's log-probs, each moved by up to SPREAD; the same on any number of ranks."""
    rows = []
    for group in groups:
        for index, completion in enumerate(group.group.completions):
            seed = derive_seed("check", name, group.group.prompt.id, index)
            draws_T = torch.from_numpy(uniforms(seed, len(completion.log_probs)))
            rows.append(completion.log_probs.double() + SPREAD * (2 * draws_T - 1))
    return tuple(rows)


def one_by_one(groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """Every completion as a group of its own, in the same order: nothing is packed."""
    return [
        replace(
            each,
            group=replace(each.group, completions=(completion,)),
            rewards=(each.rewards[index],),
            verdicts=each.verdicts[index : index + 1],
            extracted=each.extracted[index : index + 1],
        )
        for each in groups
        for index, completion in enumerate(each.group.completions)
    ]


def write_weights(engine: Engine, file: Path) -> None:
    """Whole weights under the names of the transformers model, written by the main rank."""
    with engine.whole_weights():
        if ranks.is_main():
            # Named parameters and not the state: tied weights appear once.
            weights = engine.policy.model.named_parameters()
            save_file({name: value.detach().cpu().clone().contiguous() for name, value in weights}, file)
    ranks.barrier()
