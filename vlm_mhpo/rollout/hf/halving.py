"""Sampling goes on with half as many tokens together when the device runs out of memory.

Each completion has a seed of its own, so what is drawn stays the same. No collective is in here: a rank that halves
runs more forwards than the others, which it may, because completions end at different times anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm

from vlm_mhpo.faults.memory import enough_memory, is_out_of_memory
from vlm_mhpo.runtime import ranks

Result = TypeVar("Result")
ADVICE = (
    "deepspeed.zero_stage=3, or a lower rollout.max_completion_length with "
    "checkpoint.allow_change=[rollout.max_completion_length]"
)


def halving(
    places: Sequence[int],
    run: Callable[[Sequence[int], int], Iterator[Mapping[int, Result]]],
    budget: int,
    tokens_of: Callable[[Sequence[int]], int],
    least_of: Callable[[int], int] | None = None,
) -> Iterator[tuple[Mapping[int, Result], int]]:
    """Results by place, as they come, and the budget that they were made under.

    Args:
        places: all that is wanted.
        run: (places, budget) -> their results, with at most `budget` tokens in memory together.
        budget: to begin with.
        tokens_of: tokens of some places, all together.
        least_of: tokens of the least of a place that can be run at a time; None = all of it.

    Raises:
        OutOfMemoryError: the least that can be run did not fit either.
    """
    left = list(places)
    while left:
        with enough_memory("sampling", lambda: ADVICE):
            try:
                for done in run(left, budget):
                    left = [place for place in left if place not in done]
                    yield done, budget
                return
            except (RuntimeError, MemoryError) as problem:
                # What is less than the budget is not made smaller by half of it.
                used = min(budget, tokens_of(left))
                least = min(least_of(place) if least_of else tokens_of([place]) for place in left)
                if not is_out_of_memory(problem) or used <= least:
                    raise
        # Out here the error is gone, and with it the tensors of the frames that it came through.
        budget = used // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tqdm.write(
            f"WARNING: rank {ranks.rank()}: sampling ran out of memory with {used} tokens together and goes on with "
            f"{budget}; rollout.max_batch_tokens={budget} spares the tries"
        )
