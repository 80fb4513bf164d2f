"""Golds as answers: one that our verifier refuses can reward no completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_prep import Row
from rewards import Item, Score
from vlm_mhpo.config import RewardsConfig
from vlm_mhpo.scoring.scorer import start_verifier


def gold_scores(rows: Iterable[Row], config: RewardsConfig) -> Iterator[Score]:
    """The verdict on each row's gold as its own answer, in order."""
    with start_verifier(config) as verifier:
        for row in rows:
            response, extras = (
                f"<think>gold</think><answer>{row.answer}</answer>",
                (row.choices, row.precision, row.unit),
            )
            yield verifier.score_one(Item(response, row.answer, "think_answer", row.kind, *extras))
