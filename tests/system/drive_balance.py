"""Balance uneven groups over ranks and print, on each, what every rank holds afterwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.builders import problem_row
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.balance import balance
from vlm_mhpo.types import Completion, Group, Media, Prompt, ScoredGroup


def group_of(rank: int, index: int, length: int) -> ScoredGroup:
    """A group that shows in every field where it comes from."""
    name = f"{rank}.{index}"
    media = Media({"pixels": torch.full((3, 2), 10.0 * rank + index)})
    prompt = Prompt(problem_row(name, name), name, torch.arange(5), torch.zeros(5), media)
    completions = tuple(
        Completion((rank, index) * length, torch.full((2 * length,), 0.5), name, False) for _ in range(2)
    )
    return ScoredGroup(Group(prompt, completions), (float(rank), float(index)), {}, ("correct",) * 2, (None,) * 2)


def main() -> None:
    """Two minibatches of two groups a rank; the first rank's are long."""
    ranks.start(1)
    rank = ranks.rank()
    scored = [group_of(rank, index, 40 - 3 * index if rank == 0 else 2 + index) for index in range(4)]
    after = balance(scored, 2)
    facts = [
        (
            each.group.prompt.id,
            each.group.prompt.media.tensors["pixels"][0, 0].item(),
            list(each.rewards),
            sum(len(c.token_ids) for c in each.group.completions),
        )
        for each in after
    ]
    Path(f"{sys.argv[1]}/{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
