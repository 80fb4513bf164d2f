"""What reward functions may know of a completion."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from data_prep import Row, contact_sheet, open_image
from rewards import Sample
from vlm_mhpo.types import Completion, Group, Prompt


class OpenedImages(Sequence):
    """The images of a row and contact sheets of its videos behind them.

    Each is decoded when it is first looked at: most reward functions look at none.
    """

    def __init__(self, row: Row) -> None:
        self._sources = [*((open_image, image) for image in row.images), *((contact_sheet, it) for it in row.videos)]
        self._opened: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, place: int) -> Image.Image:
        opened, source = self._sources[place]
        if place not in self._opened:
            self._opened[place] = opened(source)
        return self._opened[place]


def to_samples(groups: Sequence[Group], template: str) -> list[Sample]:
    """What reward functions may know of every completion, group after group; a group shares its opened images."""
    return [
        to_sample(group.prompt, completion, template, images)
        for group in groups
        for images in [OpenedImages(group.prompt.row)]
        for completion in group.completions
    ]


def to_sample(
    prompt: Prompt, completion: Completion, template: str, images: Sequence[Image.Image] | None = None
) -> Sample:
    """What a reward function may know of one completion."""
    row = prompt.row
    own = {"id": row.id, "source": row.source, "split": row.split}
    own |= {"images": OpenedImages(row) if images is None else images}
    own |= {"solution": row.solution} if row.solution else {}
    # Always there, so that no function that names it depends on the rows of its batch.
    own |= {"equivalent_answers": list(row.equivalent_answers)}
    return Sample(
        prompt=row.problem,
        completion=completion.text,
        gold=row.gold,
        template=template,
        kind=row.kind,
        choices=asked_choices(row),
        precision=row.precision,
        unit=row.unit,
        num_tokens=len(completion.token_ids),
        truncated=completion.truncated,
        completion_ids=completion.token_ids,
        # A row's own columns (data_source, level, ...) under their names; ours win.
        columns={**row.metadata, **own},
        opened=prompt.opens,
        earlier_turns=row.earlier_turns,
    )


def asked_choices(row: Row) -> tuple[str, ...] | None:
    """The choices that the prompt showed; a letter answers nothing when the question was asked without them."""
    return row.choices if row.kind == "choice" else None
