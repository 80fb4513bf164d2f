"""Order and seeds are pure: a run stopped anywhere, on any number of ranks, in any process sees the same prompts."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from tests.builders import problem_row
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.runtime import ranks

NUM_STEPS = 25
ROWS = [problem_row(f"row-{index}", f"What is {index} plus 1 ?") for index in range(101)]


def stream_of(num_ranks: int) -> PromptStream:
    """Three prompts per rank and step out of 101, so that epochs end inside a run and leave some rows out."""
    return PromptStream(ROWS, lambda row: row, seed=7, num_prompts=3 * num_ranks)


def test_no_prompt_is_lost_or_seen_twice_from_200_stop_points_on_1_to_8_ranks(monkeypatch):
    drawn = np.random.default_rng(0)
    straight = {
        num_ranks: Counter(f"row-{i}" for step in range(NUM_STEPS) for i in stream_of(num_ranks).indices(step))
        for num_ranks in range(1, 9)
    }
    seen_ranks = set()
    for _ in range(200):
        num_ranks, stop = int(drawn.integers(1, 9)), int(drawn.integers(0, NUM_STEPS + 1))
        seen_ranks.add(num_ranks)
        monkeypatch.setattr(ranks, "world_size", lambda num_ranks=num_ranks: num_ranks)
        seen: Counter[str] = Counter()
        for rank in range(num_ranks):
            monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
            for steps in (range(stop), range(stop, NUM_STEPS)):
                # A new process has nothing but the step to go by.
                stream = stream_of(num_ranks)
                seen.update(prompt.id for step in steps for prompt in stream.for_step(step))
        assert seen == straight[num_ranks], (num_ranks, stop)
    assert seen_ranks == set(range(1, 9))


PROGRAM = """
import hashlib, itertools, sys
import numpy as np
from vlm_mhpo.runtime.seeding import derive_seed, permutation
steps = int(sys.argv[1])
keys = itertools.product(range(steps), (f"row-{index}" for index in range(1250)), range(8))
seeds = np.fromiter((derive_seed(0, "rollout", *key) for key in keys), dtype=np.uint64)
order = permutation(derive_seed(0, "order", 3), 1000)
print(len(seeds), len(np.unique(seeds)), hashlib.sha256(seeds.tobytes() + order.tobytes()).hexdigest())
"""


def outputs(num_steps: int) -> set[str]:
    """What processes say that differ in their hash seed and in the ranks that a launcher told them of."""
    found = set()
    for hash_seed, rank, world_size in (("0", "0", "1"), ("1", "1", "2"), ("4242", "5", "8")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "RANK": rank, "WORLD_SIZE": world_size}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(num_steps)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        found.add(done.stdout)
    return found


def test_seeds_are_the_same_in_every_process():
    (output,) = outputs(5)
    assert output.split()[:2] == ["50000", "50000"]


@pytest.mark.full
def test_a_million_seeds_are_distinct_and_the_same_in_every_process():
    (output,) = outputs(100)
    assert output.split()[:2] == ["1000000", "1000000"]
