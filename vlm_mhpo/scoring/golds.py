"""Golds as answers: one that our verifier refuses can reward no completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_prep import Row
from rewards import Item, Score
from vlm_mhpo.config import RewardsConfig
from vlm_mhpo.scoring.scorer import start_verifier


def gold_scores(rows: Iterable[Row], config: RewardsConfig) -> Iterator[tuple[str, Score]]:
    """(gold, verdict on it as its own answer) of each row, in order; of several golds the first that is refused."""
    with start_verifier(config) as verifier:
        for row in rows:
            about = (row.kind, row.choices, row.precision, row.unit)
            scores = [
                (
                    gold,
                    verifier.score_one(
                        Item(f"<think>gold</think><answer>{gold}</answer>", gold, "think_answer", *about)
                    ),
                )
                for gold in row.golds
            ]
            yield next((pair for pair in scores if not pair[1].correct), scores[0])
