"""Reward functions as a user would bring them: one that is easy to learn, and some that fail."""

from __future__ import annotations

import os
import time
from pathlib import Path


def even_tokens(completion_ids: list[list[int]], **_) -> list[float]:
    """Share of even token ids: about half at the start, and a policy of one token learns it at once."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def odd_tokens(completion_ids: list[list[int]], **_) -> list[float]:
    """The same, negated."""
    return [-value for value in even_tokens(completion_ids)]


def held_after_two_steps(completion_ids: list[list[int]], **_) -> list[float]:
    """As `even_tokens`; after the second step only once the file HOLD in the run's folder RUN is gone."""
    run_dir = Path(os.environ["RUN"])
    metrics = run_dir / "metrics.jsonl"
    while (run_dir / "HOLD").exists() and metrics.exists() and metrics.read_text().count("\n") >= 2:
        time.sleep(0.05)
    return even_tokens(completion_ids)


def raises(completions: list[str], **_) -> list[float]:
    """A mistake in the user's code."""
    raise KeyError("no such column")


def raises_on_the_second_rank(completions: list[str], **_) -> list[float]:
    """A mistake that only one rank meets."""
    if os.environ.get("RANK") == "1":
        raise KeyError("no such column")
    return [0.0] * len(completions)


def flat(completions: list[str], **_) -> list[float]:
    """Nothing to learn anywhere."""
    return [1.0] * len(completions)


def flat_on_the_second_rank(completion_ids: list[list[int]], **_) -> list[float]:
    """Nothing to learn on one rank."""
    return [1.0] * len(completion_ids) if os.environ.get("RANK") == "1" else even_tokens(completion_ids)


def one_too_few(completions: list[str], **_) -> list[float]:
    """The wrong number of values."""
    return [0.0] * (len(completions) - 1)


def not_a_number(completions: list[str], **_) -> list[float]:
    """A value that would poison the advantages."""
    return [float("nan")] * len(completions)
