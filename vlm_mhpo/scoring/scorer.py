"""From groups to scored groups: the rewards package behind the trainer's nouns."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rewards import RewardSpec, Scorer, Verifier, build_scorer
from vlm_mhpo.config import RewardsConfig
from vlm_mhpo.scoring.early import EarlyVerdicts
from vlm_mhpo.scoring.samples import to_samples
from vlm_mhpo.types import Group, ScoredGroup

NOT_VERIFIED = "not_verified"


def start_scorer(config: RewardsConfig, *, max_completion_length: int) -> Scorer:
    """The weighted rewards of a configuration with their verifier processes; a context manager."""
    specs = [
        RewardSpec(name=f.name, weight=f.weight, path=f.path, conversational=f.conversational, kwargs=f.kwargs)
        for f in config.functions
    ]
    return build_scorer(
        specs,
        num_workers=config.num_workers,
        timeout_s=config.timeout_s,
        memory_limit_bytes=config.memory_limit_mib * 2**20,
        max_completion_length=max_completion_length,
    )


def start_verifier(config: RewardsConfig) -> Verifier:
    """Verifier processes for evaluation; a context manager. Entering it begins to load what answers need."""
    return Verifier(config.num_workers, config.timeout_s, config.memory_limit_mib * 2**20)


class Scoring:
    """Groups to scored groups, with verdicts that begin while other groups are still sampled; a context manager.

    Args:
        scorer: the rewards.
        template: response format that answers are read from.
        max_steps: of the run; reward functions are told.
    """

    def __init__(self, scorer: Scorer, template: str, max_steps: int = 0) -> None:
        self._scorer, self._template, self._max_steps = scorer, template, max_steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self._early = EarlyVerdicts(scorer, template, self._thread)

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def begin(self, groups: Sequence[Group]) -> None:
        """Groups of the current rollout that are there already."""
        self._early.begin(groups)

    def __call__(self, groups: Sequence[Group], step: int = 0) -> list[ScoredGroup]:
        """Score a rollout whose groups were all begun, after `step` steps; raises what `score_groups` raises."""
        early, self._early = self._early, EarlyVerdicts(self._scorer, self._template, self._thread)
        return score_groups(self._scorer, groups, self._template, early, step=step, max_steps=self._max_steps)


def score_groups(
    scorer: Scorer,
    groups: Sequence[Group],
    template: str,
    early: EarlyVerdicts | None = None,
    *,
    step: int = 0,
    max_steps: int = 0,
) -> list[ScoredGroup]:
    """Reward every completion of every group.

    Args:
        scorer: the rewards; each function is called once, with all samples.
        groups: of a rollout batch.
        template: response format that answers are read from.
        early: has begun to verify all these groups; None = verify now.
        step, max_steps: finished training steps, and of how many; reward functions are told.

    Raises:
        rewards.RewardError: a user's function failed; rewards.VerifierError: workers keep dying. Both name the sample.
    """
    samples = to_samples(groups, template)
    verified = early.wait(groups) if early else None
    table = scorer.score(samples, verified, global_step=step, max_steps=max_steps)
    # Without a weighted accuracy reward nothing was verified.
    verdicts = [verdict.value for verdict in table.verdicts] or [NOT_VERIFIED] * len(samples)
    extracted = [score.extracted for score in table.scores] or [None] * len(samples)
    scored: list[ScoredGroup] = []
    start = 0
    for group in groups:
        part = slice(start, start + len(group.completions))
        start = part.stop
        scored.append(
            ScoredGroup(
                group=group,
                rewards=tuple(table.totals[part]),
                rewards_by_name={name: tuple(values[part]) for name, values in table.by_name.items()},
                verdicts=tuple(verdicts[part]),
                extracted=tuple(extracted[part]),
                logged=table.logged,
                columns={name: values[part] for name, values in table.columns.items()},
                num_by_worker=sum(score.by_worker for score in table.scores[part]),
            )
        )
    return scored
