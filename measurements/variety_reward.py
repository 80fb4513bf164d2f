"""A reward that any completion earns some of: without differences an untrained model has nothing to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def variety(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """The share of a completion's tokens that are not repeats (TRL's signature)."""
    return [len(set(ids)) / len(ids) for ids in completion_ids]
