"""Verdicts of groups that are there already, while others are still sampled."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rewards import Score, Scorer
from vlm_mhpo.scoring.samples import to_samples
from vlm_mhpo.types import Group


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
