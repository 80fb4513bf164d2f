"""Repeat a dumped step on one process, completion by completion, and say which of them is not finite and where.

Not covered: other ranks' rounding; DeepSpeed is left out, so the gradient is that of the plain model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm_mhpo.checkpoint.opening import open_policy
from vlm_mhpo.checkpoint.policy_folder import find_policy, holds_policy
from vlm_mhpo.config import Config, parse_config
from vlm_mhpo.errors import ModelError
from vlm_mhpo.faults.dump import POLICY_FOLDER, Dump, read_dump
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.objectives import Objective, build_objective
from vlm_mhpo.objectives.common import kl_penalty
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring import RewardError, VerifierError
from vlm_mhpo.scoring.scorer import score_groups, start_scorer
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.types import ScoredGroup


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one completion did.

    Attributes:
        rank, prompt_id, completion: which; `completion` counts from 0 in its group.
        num_tokens: its length.
        advantage: as dumped.
        token: position of the first log-ratio that is not finite, else of the largest one.
        log_ratio: nats, there.
        loss: its part of the loss of the whole minibatch.
        grad_norm: L2 norm of the gradient of that part.
        refusal: why the model or the objective could not read it; "" = it could.
    """

    rank: int
    prompt_id: str
    completion: int
    num_tokens: int
    advantage: float
    token: int
    log_ratio: float
    loss: float
    grad_norm: float
    refusal: str = ""

    @property
    def is_finite(self) -> bool:
        """Nothing is wrong with it."""
        return not self.refusal and all(map(math.isfinite, (self.advantage, self.log_ratio, self.loss, self.grad_norm)))

    def __str__(self) -> str:
        text = (
            f"rank {self.rank}, prompt {self.prompt_id}, completion {self.completion} ({self.num_tokens} tokens): "
            f"advantage {self.advantage:.4g}, log-ratio {self.log_ratio:.4g} at token {self.token}, loss "
            f"{self.loss:.4g}, gradient norm {self.grad_norm:.4g}"
        )
        return f"{text}; refused: {self.refusal}" if self.refusal else text


def report(folder: Path, model: str | None = None) -> tuple[str, bool]:
    """What a replay of a dump finds, for a terminal, and whether everything was finite; arguments as in `replay`."""
    dumps, found = replay(folder, model)
    try:
        rewards = _changed_rewards(dumps, config_of(dumps[0], folder))
    except (RewardError, VerifierError) as problem:
        rewards = [f"scoring fails: {problem}"]
    return as_text(dumps, found, rewards), all(one.is_finite for one in found)


def replay(folder: Path, model: str | None = None) -> tuple[list[Dump], list[Replayed]]:
    """Repeat loss and gradient of every completion of a dump.

    Args:
        folder: RUN/dumps/step_N.
        model: run folder, checkpoint or model; default: the policy in the dump, else the run's newest checkpoint then.

    Raises:
        ConfigError: not a dump; ModelError: no weights.
    """
    dumps = read_dump(folder)
    config = config_of(dumps[0], folder)
    ranks.start(config.num_threads)
    found = config.model.model_copy(update={"path": _policy_for(folder, dumps[0], model), "revision": None})
    opened = open_policy(found, folder, "repeat")
    objective = build_objective(config.objective, config.rollout.max_completion_length)
    return dumps, list(replayed(dumps, opened.policy, opened.codec, objective, config))


def config_of(dump: Dump, folder: Path) -> Config:
    """The configuration of the run that was dumped."""
    return parse_config(dump.values, where=str(folder))


def _policy_for(folder: Path, dump: Dump, model: str | None) -> str:
    """The weights that a replay uses."""
    if model is not None:
        return find_policy(model)
    for candidate in (folder / POLICY_FOLDER, Path(dump.checkpoint or "-") / POLICY_FOLDER):
        if holds_policy(candidate):
            return str(candidate)
    raise ModelError(f"{folder} holds no policy and the run's checkpoint is gone: give the weights with --model")


def replayed(
    dumps: Sequence[Dump], policy: Policy, codec: Codec, objective: Objective, config: Config
) -> Iterator[Replayed]:
    """Every completion in turn, with the denominators of the whole minibatch."""
    rows = [(flat, row, dump) for dump in dumps for flat, row in enumerate(dump.batch.old_log_probs)]
    counts = {
        "num_completions": len(rows),
        "num_tokens": max(1, sum(len(row) for flat, row, dump in rows if flat not in dump.batch.masked)),
    }
    for dump in dumps:
        flat = 0
        for scored in dump.batch.groups:
            for index in range(len(scored.group.completions)):
                yield _replay_one(dump, scored, index, flat, policy, codec, objective, config, counts)
                flat += 1


def _replay_one(
    dump: Dump,
    scored: ScoredGroup,
    index: int,
    flat: int,
    policy: Policy,
    codec: Codec,
    objective: Objective,
    config: Config,
    counts: dict[str, int],
) -> Replayed:
    """Loss and gradient of one completion alone; those of a minibatch are the sums over its completions."""
    ids, prompt = scored.group.completions[index].token_ids, scored.group.prompt
    policy.zero_grad(set_to_none=True)
    token, size, loss_value, norm, refusal = 0, math.nan, math.nan, math.nan, ""
    try:
        (one,) = micro_batches(
            policy, [prompt], [[ids]], max_tokens=config.train.max_tokens_per_micro_batch, pad_id=codec.pad_id
        )
        entropy_coef = config.objective.entropy_coef
        log_probs_N, entropy_N = policy(
            one.rows,
            temperature=config.rollout.temperature,
            chunk_size=config.train.logits_chunk_size,
            with_entropy=bool(entropy_coef),
            entropy_learns=bool(entropy_coef),
        )
        log_probs_BT, mask_BT = one.scatter(log_probs_N)
        old_BT = dump.batch.old_log_probs[flat].to(log_probs_BT)[None]
        token, size = worst((log_probs_BT - old_BT)[0].detach())
        if flat in dump.batch.fresh and config.rollout.old_log_probs == "trainer":
            old_BT = log_probs_BT.detach()
        if flat in dump.batch.masked:
            mask_BT = torch.zeros_like(mask_BT)
        advantages_B = log_probs_BT.new_tensor([dump.batch.advantages[flat]])
        loss, _ = objective.loss(log_probs_BT, old_BT, advantages_B, mask_BT, **counts)
        if dump.batch.reference_log_probs is not None:
            frozen_BT = dump.batch.reference_log_probs[flat].to(log_probs_BT)[None]
            kl_BT = kl_penalty(log_probs_BT, frozen_BT, mask_BT)
            loss = loss + config.objective.beta * objective.aggregate(kl_BT, mask_BT, **counts)
        if entropy_coef:
            loss = loss - entropy_coef * objective.aggregate(one.scatter(entropy_N)[0], mask_BT, **counts)
        loss.backward()
        loss_value, norm = float(loss.detach()), _gradient_norm(policy)
    except (ValueError, IndexError, RuntimeError) as problem:
        # What stopped the run may stop it here again, and that is the answer.
        refusal = f"{type(problem).__name__}: {problem}"
    return Replayed(
        dump.rank, prompt.id, index, len(ids), dump.batch.advantages[flat], token, size, loss_value, norm, refusal
    )


def worst(log_ratio_T: Tensor) -> tuple[int, float]:
    """Position and value of the first entry that is not finite, else of the largest by size."""
    bad_T = (~torch.isfinite(log_ratio_T)).nonzero()
    position = int(bad_T[0]) if len(bad_T) else int(log_ratio_T.abs().argmax())
    return position, float(log_ratio_T[position])


def _gradient_norm(policy: Policy) -> float:
    """L2 norm over all gradients."""
    squares = [weight.grad.double().square().sum() for weight in policy.parameters() if weight.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _changed_rewards(dumps: Sequence[Dump], config: Config) -> list[str]:
    """Score the dumped completions again; one line for each whose rewards are now others.

    Raises:
        RewardError, VerifierError: what stopped the run, if that was it.
    """
    lines = []
    with start_scorer(config.rewards, max_completion_length=config.rollout.max_completion_length) as scorer:
        for dump in dumps:
            groups = [scored.group for scored in dump.batch.groups]
            steps = {"step": dump.step - 1, "max_steps": config.train.max_steps}
            again = score_groups(scorer, groups, config.data.template, **steps)
            for old, new in zip(dump.batch.groups, again, strict=True):
                pairs = zip(old.rewards, new.rewards, old.verdicts, new.verdicts, strict=True)
                lines += [
                    f"rank {dump.rank}, prompt {old.group.prompt.id}, completion {index}: reward {before} ({verdict}), "
                    f"now {now} ({now_verdict})"
                    for index, (before, now, verdict, now_verdict) in enumerate(pairs)
                    if before != now
                ]
    return lines


def as_text(dumps: Sequence[Dump], found: Sequence[Replayed], rewards: Sequence[str]) -> str:
    """The findings for a terminal: everything that is not finite, or else the largest gradients."""
    bad = [one for one in found if not one.is_finite]
    shown = bad or sorted(found, key=lambda one: -one.grad_norm)[:5]
    title = f"{len(bad)} of {len(found)} completions are not finite:" if bad else "all finite; the largest gradients:"
    lines = [f"step {dumps[0].step}: {dumps[0].reason}", title, *map(str, shown)]
    if rewards:
        lines += ["rewards that come out differently now:", *rewards]
    return "\n".join(lines)
