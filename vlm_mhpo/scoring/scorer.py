"""From groups to scored groups: the rewards package behind the trainer's nouns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from data_prep import Row
from rewards import RewardSpec, Sample, Score, Scorer, Verifier, build_scorer
from vlm_mhpo.config import RewardsConfig
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Completion, Group, Prompt, ScoredGroup

NOT_VERIFIED = "not_verified"


def start_scorer(config: RewardsConfig, *, max_completion_length: int) -> Scorer:
    """The weighted rewards of a configuration with their verifier processes; a context manager."""
    specs = [RewardSpec(name=f.name, weight=f.weight, path=f.path, kwargs=f.kwargs) for f in config.functions]
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


class EarlyVerdicts:
    """Verdicts of groups that are there already, made in a thread while the rest of the batch is still sampled."""

    def __init__(self, scorer: Scorer, template: str, thread: ThreadPoolExecutor) -> None:
        self._scorer = scorer
        self._template = template
        self._thread = thread
        self._begun: list[tuple[Sequence[Group], Future[Sequence[Score]]]] = []

    def begin(self, groups: Sequence[Group]) -> None:
        """Verify these in the background, after those of earlier calls."""
        self._begun.append((groups, self._thread.submit(self._scorer.verify, to_samples(groups, self._template))))

    def wait(self, groups: Sequence[Group]) -> list[Score]:
        """The verdicts of all completions of `groups`, which were all begun; raises what verification raised."""
        # By identity: a step that crosses the end of an epoch may hold the same prompt twice.
        by_group: dict[int, Sequence[Score]] = {}
        for batch, future in self._begun:
            scores, start = future.result(), 0
            for group in batch:
                by_group[id(group)] = scores[start : start + len(group.completions)]
                start += len(group.completions)
        return [score for group in groups for score in by_group[id(group)]]


@contextmanager
def early_verdicts(scorer: Scorer, template: str) -> Iterator[EarlyVerdicts]:
    """Early verdicts of one rollout batch."""
    with ThreadPoolExecutor(1, thread_name_prefix="verify") as thread:
        yield EarlyVerdicts(scorer, template, thread)


def score_groups(
    scorer: Scorer, groups: Sequence[Group], template: str, early: EarlyVerdicts | None = None
) -> list[ScoredGroup]:
    """Reward every completion of every group.

    Args:
        scorer: the rewards; each function is called once, with all samples.
        groups: of a rollout batch.
        template: response format that answers are read from.
        early: has begun to verify all these groups; None = verify now.
    Raises:
        rewards.RewardError: a user's function failed; rewards.VerifierError: workers keep dying. Both name the sample.
    """
    samples = to_samples(groups, template)
    table = scorer.score(samples, early.wait(groups) if early else None)
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
            )
        )
    return scored


def to_samples(groups: Sequence[Group], template: str) -> list[Sample]:
    """What reward functions may know of every completion, group after group."""
    return [to_sample(group.prompt, completion, template) for group in groups for completion in group.completions]


def to_sample(prompt: Prompt, completion: Completion, template: str) -> Sample:
    """What a reward function may know of one completion."""
    row = prompt.row
    return Sample(
        prompt=row.problem,
        completion=completion.text,
        gold=row.answer,
        template=template,
        kind=row.kind,
        choices=asked_choices(row),
        precision=row.precision,
        unit=row.unit,
        num_tokens=len(completion.token_ids),
        truncated=completion.truncated,
        completion_ids=completion.token_ids,
        # A row's own columns (data_source, level, ...) under their names; ours win.
        columns={**row.metadata, "id": row.id, "source": row.source, "split": row.split, "images": row.images},
    )


def asked_choices(row: Row) -> tuple[str, ...] | None:
    """The choices that the prompt showed; a letter answers nothing when the question was asked without them."""
    return row.choices if row.kind == "choice" else None


def reward_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Global reward, verdict and length metrics under TRL's names; the same on all ranks."""
    local = [
        (
            list(group.rewards),
            {name: list(values) for name, values in group.rewards_by_name.items()},
            list(group.verdicts),
            [(len(c.token_ids), c.truncated) for c in group.group.completions],
            group.group.prompt.num_tokens,
        )
        for group in scored
    ]
    groups = [group for part in ranks.gather_objects(local) for group in part]
    rewards = [reward for group in groups for reward in group[0]]
    lengths = [length for group in groups for length, _ in group[3]]
    finished = [length for group in groups for length, truncated in group[3] if not truncated]
    verdicts = [verdict for group in groups for verdict in group[2]]
    count = len(rewards)
    metrics = {
        "reward": mean(rewards),
        # As in TRL: the mean over groups of the std inside a group.
        "reward_std": mean([std(group[0]) for group in groups]),
        "frac_reward_zero_std": mean([float(max(group[0]) == min(group[0])) for group in groups]),
        "completions/mean_length": mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1.0 - len(finished) / count,
        "num_tokens": float(sum(lengths) + sum(group[4] for group in groups)),
    }
    if finished:
        metrics["completions/mean_terminated_length"] = mean(finished)
        metrics["completions/min_terminated_length"] = float(min(finished))
        metrics["completions/max_terminated_length"] = float(max(finished))
    for name in groups[0][1]:
        values = [value for group in groups for value in group[1][name] if value is not None]
        if values:
            metrics[f"rewards/{name}/mean"] = mean(values)
            metrics[f"rewards/{name}/std"] = std(values)
    for verdict in sorted(set(verdicts)):
        metrics[f"verdicts/{verdict}"] = verdicts.count(verdict) / count
    return metrics


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)


def std(values: Sequence[float]) -> float:
    """Unbiased standard deviation; 0 for one value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return (sum((value - centre) ** 2 for value in values) / (len(values) - 1)) ** 0.5
