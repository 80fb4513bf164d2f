"""A reward that differs between the completions of a group, so that a tiny model has something to learn."""

from __future__ import annotations


def variety(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Share of even token ids."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
