"""Weighted sum of named rewards over a batch of samples, each reward recorded apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.functions.logbook import Logbook, TrainerState
from rewards.functions.registry import NEEDS_SCORES, RewardFunction, resolve
from rewards.types import RewardError, RewardSpec, RewardTable, Sample, Score
from rewards.verify import Verifier


class Scorer:
    """Holds the verifier's workers; see build_scorer."""

    def __init__(
        self,
        rewards: Sequence[tuple[RewardSpec, RewardFunction, Mapping[str, Any]]],
        verifier: Verifier | None,
        logbook: Logbook | None = None,
    ) -> None:
        self._rewards, self._verifier, self._logbook = rewards, verifier, logbook or Logbook()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rewards that are computed, in order."""
        return tuple(spec.name for spec, _, _ in self._rewards)

    def verify(self, samples: Sequence[Sample]) -> Sequence[Score]:
        """The verdicts that `score` of these samples needs, in order; empty if no reward looks at them.

        May be called from any thread, for parts of a batch whose rest does not exist yet. Raises as `score`.
        """
        return self._verifier.score(samples) if self._verifier and samples else ()

    def score(
        self,
        samples: Sequence[Sample],
        scores: Sequence[Score] | None = None,
        *,
        global_step: int = 0,
        max_steps: int = 0,
    ) -> RewardTable:
        """Rewards of a batch, in sample order.

        Args:
            samples: the whole batch; every reward function is called once for it.
            scores: of `verify`, when they were made before.
            global_step, max_steps: finished training steps, and of how many; users' functions are told.
        Raises:
            RewardError: a user's function failed, or a reward does not fit a sample.
            VerifierError: the verifier's workers cannot run.
            ValueError: a sample has an unknown template or kind.
        """
        scores = self.verify(samples) if scores is None else scores
        self._logbook.begin(TrainerState(global_step, max_steps), num_samples=len(samples))
        totals = [0.0] * len(samples)
        by_name: dict[str, tuple[float | None, ...]] = {}
        for spec, function, kwargs in self._rewards:
            values = function(samples, scores, kwargs) if samples else []
            by_name[spec.name] = tuple(values)
            totals = [t if v is None else t + spec.weight * v for t, v in zip(totals, values, strict=True)]
        verdicts = tuple(score.verdict for score in scores)
        logged = {name: sum(values) / len(values) for name, values in self._logbook.metrics.items()}
        return RewardTable(tuple(totals), by_name, verdicts, tuple(scores), logged, self._logbook.columns)

    def close(self) -> None:
        """End the verifier's workers."""
        if self._verifier:
            self._verifier.close()


def build_scorer(
    specs: Sequence[RewardSpec],
    *,
    num_workers: int,
    timeout_s: float,
    memory_limit_bytes: int,
    max_completion_length: int | None = None,
) -> Scorer:
    """A scorer of the given rewards, to be used as a context manager.

    A reward of weight 0 is removed with its cost: its function is never loaded or called and its name is not in the
    table. Verdicts are made only if "accuracy" or "length" has a weight. A sample all of whose rewards are None
    totals 0.

    Args:
        specs: rewards by name; names must differ.
        num_workers, timeout_s, memory_limit_bytes: see Verifier.
        max_completion_length: tokens; the default limit of "overlong" and "length".
    Raises:
        RewardError: an unknown, doubled or unloadable reward, or nothing left to compute.
    """
    names = [spec.name for spec in specs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise RewardError(f"reward names must differ; {', '.join(doubled)} is given more than once")
    for spec in specs:
        if not math.isfinite(spec.weight):
            raise RewardError(f"reward {spec.name!r}: the weight must be a finite number, got {spec.weight}")
    active = [spec for spec in specs if spec.weight != 0]
    if not active:
        raise RewardError("no reward has a weight other than 0; give at least one, for example 'accuracy'")
    defaults = {} if max_completion_length is None else {"max_completion_length": max_completion_length}
    rewards, logbook = [], Logbook()
    for spec in active:
        kwargs = {**defaults, **spec.kwargs} if spec.path is None else dict(spec.kwargs)
        rewards.append((spec, resolve(spec, logbook), kwargs))
    needs_scores = any(spec.path is None and spec.name in NEEDS_SCORES for spec in active)
    verifier = Verifier(num_workers, timeout_s, memory_limit_bytes) if needs_scores else None
    return Scorer(rewards, verifier, logbook)
