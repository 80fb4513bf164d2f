"""Which prompts a step trains on: a pure function of seed and step, shared evenly by the ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tqdm import tqdm

from data_prep import DataError, Row, load_rows
from vlm_mhpo.config import DataConfig
from vlm_mhpo.errors import PromptError, TrainingError, VlmMhpoError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.loading import Tools
from vlm_mhpo.prompts.builder import OverlongPrompt, PromptBuilder
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.seeding import derive_seed, permutation
from vlm_mhpo.types import Prompt


def prompt_builder(config: DataConfig, tools: Tools, family: Family) -> PromptBuilder:
    """The prompt of a configuration, the same for warm start, training and evaluation."""
    return PromptBuilder(
        tools,
        family,
        system_prompt=config.system_prompt,
        instruction=config.instruction,
        max_prompt_length=config.max_prompt_length,
    )


def read_rows(source: str | list[str], config: DataConfig, split: str | None, limit: int | None) -> list[Row]:
    """All rows of a source, or the first `limit`; TrainingError when there are none."""
    rows: list[Row] = []
    root = Path(config.image_root) if config.image_root else None
    for row in load_rows(source, format=config.format, split=split, image_root=root):
        rows.append(row)
        if limit and len(rows) >= limit:
            break
    if not rows:
        raise TrainingError(f"{source}: no rows{f' in split {split!r}' if split else ''}")
    return rows


def usable_rows(rows: Sequence[Row], builder: PromptBuilder, *, overlong: str, what: str) -> list[Row]:
    """The rows whose prompts fit; every image is opened once here, so that a bad one stops the run before it starts.

    Args:
        rows: candidates.
        builder: makes the prompts.
        overlong: "filter" leaves rows above the length limit out, "error" stops.
        what: name for messages, such as "training".

    Raises:
        PromptError, DataError: a row cannot become a prompt.
        TrainingError: no row is left.
    """
    mine = range(ranks.rank(), len(rows), ranks.world_size())
    dropped: list[int] = []
    first_reason = ""
    error: VlmMhpoError | None = None
    for index in tqdm(mine, desc=f"checking {what} rows", unit="row", disable=not ranks.is_main(), leave=False):
        try:
            builder(rows[index])
        except OverlongPrompt as problem:
            if overlong == "error":
                error = problem
                break
            first_reason = first_reason or str(problem)
            dropped.append(index)
        except (PromptError, DataError) as problem:
            error = problem if isinstance(problem, PromptError) else PromptError(str(problem))
            break
    ranks.raise_together(error)
    gathered = ranks.gather_objects((dropped, first_reason))
    gone = {index for indices, _ in gathered for index in indices}
    reason = next((text for _, text in gathered if text), "")
    if len(gone) == len(rows):
        raise TrainingError(f"no {what} rows are left after filtering {len(rows)}; the first refusal: {reason}")
    if gone and ranks.is_main():
        tqdm.write(f"{len(gone)} of {len(rows)} {what} rows are left out: {reason}")
    return [row for index, row in enumerate(rows) if index not in gone]


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
        return self.build([self.rows[index] for index in mine])

    def others(self, step: int, attempt: int, count: int, *, exclude: Collection[str]) -> list[Prompt]:
        """Up to `count` prompts of this rank for another try of `step`, none with an id in `exclude`.

        Ranks draw from disjoint parts of one permutation.
        """
        order = permutation(derive_seed(self.seed, "resample", step, attempt), len(self.rows)).tolist()
        mine = order[ranks.rank() :: ranks.world_size()]
        chosen = [index for index in mine if self.rows[index].id not in exclude][:count]
        return self.build([self.rows[index] for index in chosen])
