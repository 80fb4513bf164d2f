"""Golds as answers: one that our verifier refuses can reward no completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data_prep import Row
from rewards import Item, Score
from vlm_mhpo.config import RewardsConfig
from vlm_mhpo.scoring.scorer import start_verifier


def gold_scores(rows: Iterable[Row], config: RewardsConfig) -> Iterator[Score]:
    """The verdict on each row's gold as its own answer, in order; of several golds on the first that is refused."""
    with start_verifier(config) as verifier:
        for row in rows:
            scores = [
                verifier.score_one(
                    Item(
                        f"<think>gold</think><answer>{gold}</answer>",
                        gold,
                        "think_answer",
                        row.kind,
                        row.choices,
                        row.precision,
                        row.unit,
                    )
                )
                for gold in row.golds
            ]
            yield next((score for score in scores if not score.correct), scores[0])
