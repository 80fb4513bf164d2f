"""The rows of a run: read from their sources, and every prompt checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data_prep import DataError, Row, load_rows
from vlm_mhpo.config import DataConfig
from vlm_mhpo.errors import PromptError, TrainingError, VlmMhpoError
from vlm_mhpo.prompts import checked
from vlm_mhpo.prompts.builder import OverlongPrompt, PromptBuilder
from vlm_mhpo.runtime import ranks


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

    What was found is kept beside the data (see `prompts.checked`): rows that were checked in the same state for the
    same processor are not opened again.

    Args:
        rows: candidates.
        builder: makes the prompts.
        overlong: "filter" leaves rows above the length limit out, "error" stops and names that remedy, "never" stops
            where a row left out would change what is measured.
        what: name for messages, such as "training".

    Raises:
        PromptError, DataError: a row cannot become a prompt.
        TrainingError: no row is left.
    """
    name, found = _recalled(rows, builder)
    # Only the check can name the row that is too long.
    if found is None or (found[0] and overlong != "filter"):
        found = _check(rows, builder, overlong, what)
        if name and ranks.is_main():
            checked.remember(name, rows, found)
    gone, reason = set(found[0]), found[1]
    if len(gone) == len(rows):
        raise TrainingError(f"no {what} rows are left after filtering {len(rows)}; the first refusal: {reason}")
    if gone and ranks.is_main():
        tqdm.write(f"{len(gone)} of {len(rows)} {what} rows are left out: {reason}")
    return [row for index, row in enumerate(rows) if index not in gone]


def _recalled(rows: Sequence[Row], builder: PromptBuilder) -> tuple[str | None, checked.Found | None]:
    """The name of this check on the main rank, and what it found before, the same on all ranks."""
    if not isinstance(builder, PromptBuilder):
        return None, None
    name = checked.name_of(rows, builder) if ranks.is_main() else None
    return name, ranks.gather_objects(checked.recall(name, rows) if name else None)[0]


def _check(rows: Sequence[Row], builder: PromptBuilder, overlong: str, what: str) -> checked.Found:
    """Build every prompt once, the rows shared among the ranks."""
    mine = range(ranks.rank(), len(rows), ranks.world_size())
    dropped: list[int] = []
    first_reason = ""
    error: VlmMhpoError | None = None
    for index in tqdm(mine, desc=f"checking {what} rows", unit="row", disable=not ranks.is_main(), leave=False):
        try:
            builder(rows[index])
        except OverlongPrompt as problem:
            if overlong != "filter":
                remedy = "; data.overlong_prompts=filter leaves such rows out" if overlong == "error" else ""
                error = OverlongPrompt(f"{problem}{remedy}")
                break
            first_reason = first_reason or str(problem)
            dropped.append(index)
        except (PromptError, DataError) as problem:
            error = problem if isinstance(problem, PromptError) else PromptError(str(problem))
            break
    ranks.raise_together(error)
    gathered = ranks.gather_objects((dropped, first_reason))
    gone = sorted(index for indices, _ in gathered for index in indices)
    return gone, next((text for _, text in gathered if text), "")
