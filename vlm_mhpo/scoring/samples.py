"""What reward functions may know of a completion."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep import Row
from rewards import Sample
from vlm_mhpo.types import Completion, Group, Prompt


def to_samples(groups: Sequence[Group], template: str) -> list[Sample]:
    """What reward functions may know of every completion, group after group."""
    return [to_sample(group.prompt, completion, template) for group in groups for completion in group.completions]


def to_sample(prompt: Prompt, completion: Completion, template: str) -> Sample:
    """What a reward function may know of one completion."""
    row = prompt.row
    return Sample(
        prompt=row.problem,
        completion=completion.text,
        gold=row.answer,
        template=template,
        kind=row.kind,
        choices=asked_choices(row),
        precision=row.precision,
        unit=row.unit,
        num_tokens=len(completion.token_ids),
        truncated=completion.truncated,
        completion_ids=completion.token_ids,
        # A row's own columns (data_source, level, ...) under their names; ours win.
        columns={**row.metadata, "id": row.id, "source": row.source, "split": row.split, "images": row.images},
    )


def asked_choices(row: Row) -> tuple[str, ...] | None:
    """The choices that the prompt showed; a letter answers nothing when the question was asked without them."""
    return row.choices if row.kind == "choice" else None
