"""Signs in the metrics that a run wastes its time: idle, truncated, timing out, never right, or sampled elsewhere.

A pure function of the rows so far, so that a resumed run judges as the undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from vlm_mhpo.config import FaultsConfig, RewardsConfig, RolloutConfig
from vlm_mhpo.records.metric_table import FLAT_GROUPS, LENGTH_CUT, SAMPLING_GAP, VERDICT

# A share of fewer verifications than this is an accident; smaller batches are judged together with those before.
MIN_VERIFIED = 64
# Steps before a streak of zeros whose mean accuracy says what chance would do.
ACCURACY_WINDOW = 20
# Zeros that chance brings more often than this are left alone; a long run looks at its streak thousands of times.
MAX_CHANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is looked at in one step, all shares over all ranks; None = nothing was verified, or nothing updated.

    `sampling_gap` is the mean distance of sampler and trainer, nats per token.
    """

    idle: bool
    truncated: bool
    timeouts: float | None
    accuracy: float | None
    sampling_gap: float | None = None


@dataclass(frozen=True, slots=True)
class Alarm:
    """One sentence, and whether it ends the run."""

    message: str
    stops: bool


def vitals_of(metrics: Mapping[str, float]) -> Vitals:
    """The vitals in a row of metrics.jsonl that a training step wrote."""
    shares = {found["verdict"]: metrics[name] for name in metrics if (found := VERDICT.words(name))}
    verified = shares.keys() - {"not_verified"}
    return Vitals(
        idle=metrics[FLAT_GROUPS.name] == 1.0,
        truncated=metrics[LENGTH_CUT.name] == 1.0,
        timeouts=shares.get("timeout", 0.0) if verified else None,
        accuracy=shares.get("correct", 0.0) if verified else None,
        sampling_gap=metrics.get(SAMPLING_GAP.of(size="mean")),
    )


def idle_steps(history: Sequence[Vitals]) -> int:
    """Steps up to the last one in which every group had equal rewards, so that there was nothing to learn."""
    return _streak(history, lambda vitals: vitals.idle)


def alarms(
    history: Sequence[Vitals], faults: FaultsConfig, rewards: RewardsConfig, rollout: RolloutConfig, num_prompts: int
) -> list[Alarm]:
    """What is wrong after the last step of `history` (oldest first, at least one).

    Args:
        faults, rewards, rollout: hold the limits and what the messages name.
        num_prompts: of a step, over all ranks.
    """
    found = []
    # Said when the limit is reached, not at each step after it.
    if faults.max_idle_steps and (idle := idle_steps(history)) == faults.max_idle_steps:
        found.append(
            Alarm(
                f"{idle} steps in a row every group had equal rewards, so nothing is learnt: use easier or harder "
                "prompts, a higher rollout.temperature, or rollout.dynamic_sampling=true (faults.max_idle_steps)",
                faults.on_idle == "stop",
            )
        )
    cut = _streak(history, lambda vitals: vitals.truncated)
    if faults.max_truncated_steps and cut == faults.max_truncated_steps:
        found.append(
            Alarm(
                f"{cut} steps in a row every completion was cut at rollout.max_completion_length="
                f"{rollout.max_completion_length}: raise it (faults.max_truncated_steps)",
                faults.on_truncated == "stop",
            )
        )
    if faults.max_sampling_gap:
        found += _sampling_alarms(history, faults)
    share = timeout_share(history, num_prompts * rollout.num_generations)
    if share is not None and share > rewards.max_timeout_share:
        found.append(
            Alarm(
                f"{100 * share:.0f} % of the verifications timed out, so their rewards mean nothing: raise "
                "rewards.timeout_s, or look at the completions (rewards.max_timeout_share)",
                True,
            )
        )
    zeros = _streak(history, lambda vitals: vitals.accuracy == 0.0)
    limit = rewards.max_zero_accuracy_steps
    if limit and zeros >= limit and _chance_of_zeros(history, zeros, num_prompts) < MAX_CHANCE:
        found.append(
            Alarm(
                f"no completion was right in the last {zeros} steps, and before there were some: the policy has "
                "collapsed or the verifier is broken; look at samples/ (rewards.max_zero_accuracy_steps)",
                True,
            )
        )
    return found


def _sampling_alarms(history: Sequence[Vitals], faults: FaultsConfig) -> list[Alarm]:
    """Completions of the last step do not come from the policy that is trained; a warning is said once."""
    beyond = [vitals.sampling_gap for vitals in history if (vitals.sampling_gap or 0.0) > faults.max_sampling_gap]
    stops = faults.on_sampling_gap == "stop"
    if (history[-1].sampling_gap or 0.0) <= faults.max_sampling_gap or (len(beyond) > 1 and not stops):
        return []
    message = (
        f"sampler and trainer differ by {beyond[-1]:.2g} nats per token at equal weights, so the completions come from "
        "another policy than the one that is trained: `vlm-mhpo doctor CONFIG --parity` tells rounding, which "
        "model.dtype=float32 takes away, from a fault (faults.max_sampling_gap)"
    )
    return [Alarm(message, stops)]


def _streak(history: Sequence[Vitals], holds: Callable[[Vitals], bool]) -> int:
    """Steps up to the last one for all of which `holds`."""
    return sum(1 for _ in takewhile(holds, reversed(history)))


def timeout_share(history: Sequence[Vitals], num_completions: int) -> float | None:
    """Share of time-outs among the last verifications, at least MIN_VERIFIED of them; None when there are too few."""
    shares: list[float] = []
    for vitals in reversed(history):
        if vitals.timeouts is None:
            break
        shares.append(vitals.timeouts)
        if len(shares) * num_completions >= MIN_VERIFIED:
            return sum(shares) / len(shares)
    return None


def _chance_of_zeros(history: Sequence[Vitals], zeros: int, num_prompts: int) -> float:
    """The chance that `zeros` steps without a correct completion follow on what was before; 1 when nothing was right.

    The completions of a prompt may all fail together, so each prompt counts as one try. Few tries before the streak
    tell little about their rate: it is integrated out (uniform prior), chance = B(k + 1, n - k + m + 1) /
    B(k + 1, n - k + 1) for k successes in n tries and m failures after them.
    """
    before = history[: len(history) - zeros][-ACCURACY_WINDOW:]
    known = [vitals.accuracy for vitals in before if vitals.accuracy is not None]
    if not any(known):
        return 1.0
    right, tries, failures = sum(known) * num_prompts, len(known) * num_prompts, zeros * num_prompts
    wrong = tries - right
    return math.exp(
        math.lgamma(wrong + failures + 1)
        - math.lgamma(tries + failures + 2)
        - math.lgamma(wrong + 1)
        + math.lgamma(tries + 2)
    )
