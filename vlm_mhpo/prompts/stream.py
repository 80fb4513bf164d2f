"""Which prompts a step trains on: a pure function of seed and step, shared evenly by the ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from data_prep import Row
from vlm_mhpo.errors import TrainingError
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.runtime.seeding import derive_seed, permutation
from vlm_mhpo.types import Prompt


class PromptStream:
    """The prompts of each step.

    An epoch is a permutation of the rows; its last incomplete batch is dropped, so no step sees a row twice. `build`
    makes the prompts of some rows, as `PromptBuilder.build` does.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        build: Callable[[Sequence[Row]], list[Prompt]],
        *,
        seed: int,
        num_prompts: int,
        num_minibatches: int = 1,
    ) -> None:
        if len(rows) < num_prompts:
            raise TrainingError(
                f"{len(rows)} rows cannot fill a batch of {num_prompts} different prompts: add rows or lower "
                "num_prompts_per_step"
            )
        self.rows = rows
        self.build = build
        self.seed = seed
        self.num_prompts = num_prompts
        self.num_minibatches = num_minibatches
        self.steps_per_epoch = len(rows) // num_prompts

    def indices(self, step: int) -> list[int]:
        """Rows of the whole batch of `step`, all ranks, minibatch after minibatch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = permutation(derive_seed(self.seed, "order", epoch), len(self.rows))
        return order[within * self.num_prompts : (within + 1) * self.num_prompts].tolist()

    def for_step(self, step: int) -> list[Prompt]:
        """This rank's prompts of `step`, its share of each minibatch in turn."""
        chosen = self.indices(step)
        size = self.num_prompts // self.num_minibatches
        share = size // ranks.world_size()
        start = ranks.rank() * share
        mine = [
            index for m in range(self.num_minibatches) for index in chosen[m * size + start : m * size + start + share]
        ]
        with span("prompts"):
            return self.build([self.rows[index] for index in mine])

    def others(self, step: int, attempt: int, count: int, *, exclude: Collection[str]) -> list[Prompt]:
        """Up to `count` prompts of this rank for another try of `step`, none with an id in `exclude`.

        Ranks draw from disjoint parts of one permutation.
        """
        order = permutation(derive_seed(self.seed, "resample", step, attempt), len(self.rows)).tolist()
        mine = order[ranks.rank() :: ranks.world_size()]
        chosen = [index for index in mine if self.rows[index].id not in exclude][:count]
        return self.build([self.rows[index] for index in chosen])
