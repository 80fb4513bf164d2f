"""Dynamic sampling whose groups stay flat, on each rank: writes the ids of all prompts that the rank ever had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.vlm_mhpo.test_dynamic_sampling import ids, scored, stream_of
from vlm_mhpo.rollout.refill import refill
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Prompt, ScoredGroup


def main() -> None:
    """Four prompts a rank, replaced three times out of 24."""
    ranks.start(1)
    names = [f"p{index}" for index in range(24)]
    first = [scored(f"p{4 * ranks.rank() + index}", 1, 1) for index in range(4)]
    drawn = ids(first)

    def flat_again(prompts: list[Prompt], attempt: int) -> list[ScoredGroup]:
        drawn.extend(prompt.id for prompt in prompts)
        return [scored(prompt.id, 1, 1) for prompt in prompts]

    refill(first, stream_of(*names), 0, flat_again, max_resample_times=3)
    Path(f"{sys.argv[1]}/{ranks.rank()}.json").write_text(json.dumps(drawn))


if __name__ == "__main__":
    main()
