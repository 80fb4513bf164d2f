"""The rows of a run: read from their sources, and every prompt checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data_prep import DataError, Row, RowError, scan_rows
from vlm_mhpo.config import DataConfig
from vlm_mhpo.errors import PromptError, TrainingError, VlmMhpoError
from vlm_mhpo.prompts import checked
from vlm_mhpo.prompts.builder import OverlongPrompt, PromptBuilder
from vlm_mhpo.prompts.messages import has_system
from vlm_mhpo.runtime import ranks

NUM_NAMED = 3


def read_rows(
    source: str | list[str], config: DataConfig, split: str | None, limit: int | None, *, skips_bad: bool = False
) -> list[Row]:
    """All rows of a source, or the first `limit`.

    Args:
        skips_bad: leave rows out that cannot be read, as far as `data.max_bad_share` goes, and say which.

    Raises:
        RowError: a row that cannot be read; TrainingError: no rows, or too many that cannot be read.
    """
    rows: list[Row] = []
    bad: list[RowError] = []
    root = Path(config.image_root) if config.image_root else None
    options = {"format": config.format, "split": split, "image_root": root, "columns": config.columns or None}
    options |= {"ignore_columns": config.ignore_columns, "answer_lists": config.answer_lists}
    for row in scan_rows(source, **options):
        if isinstance(row, Row):
            rows.append(row)
        elif skips_bad:
            bad.append(row)
        else:
            raise row
        if limit and len(rows) >= limit:
            break
    if not rows and not bad:
        raise TrainingError(f"{source}: no rows{f' in split {split!r}' if split else ''}")
    _say_bad(list(map(str, bad)), len(rows) + len(bad), config.max_bad_share, str(source))
    return rows


def _say_bad(reasons: Sequence[str], num_rows: int, max_share: float, what: str) -> None:
    """Name rows that are left out; TrainingError when they are too many."""
    if not reasons:
        return
    named = "".join(f"\n  {reason}" for reason in reasons[:NUM_NAMED])
    text = f"{len(reasons)} of {num_rows} rows of {what} cannot be used"
    if len(reasons) > max_share * num_rows:
        raise TrainingError(f"{text}, more than data.max_bad_share={max_share:g}:{named}")
    if ranks.is_main():
        tqdm.write(f"{text} and are left out (data.on_bad_row=skip):{named}")


def usable_rows(
    rows: Sequence[Row], builder: PromptBuilder, *, overlong: str, what: str, max_bad_share: float | None = None
) -> list[Row]:
    """The rows whose prompts fit; every image is opened once here, so that a bad one stops the run before it starts.

    What was found is kept beside the data (see `prompts.checked`): rows that were checked in the same state for the
    same processor are not opened again.

    Args:
        rows: candidates.
        builder: makes the prompts.
        overlong: "filter" leaves rows above the length limit out, "error" stops and names that remedy, "never" stops
            where a row left out would change what is measured.
        what: name for messages, such as "training".
        max_bad_share: leave rows out that cannot become a prompt, up to this share; None = such a row stops the run.

    Raises:
        PromptError, DataError: a row cannot become a prompt.
        TrainingError: no row is left, or too many cannot become a prompt.
    """
    _say_without_images(rows, builder, what)
    _say_own_systems(rows, builder, what)
    name, found = _recalled(rows, builder, max_bad_share)
    # Only the check can name the row that is too long.
    if found is None or (found[0] and overlong != "filter"):
        found = _check(rows, builder, overlong, what, max_bad_share)
        if name and ranks.is_main():
            checked.remember(name, rows, found)
    gone, reason = set(found[0]), found[1]
    if len(gone) == len(rows):
        raise TrainingError(f"no {what} rows are left after filtering {len(rows)}; the first refusal: {reason}")
    if gone and ranks.is_main():
        tqdm.write(f"{len(gone)} of {len(rows)} {what} rows are left out: {reason}")
    return [row for index, row in enumerate(rows) if index not in gone]


def _say_without_images(rows: Sequence[Row], builder: PromptBuilder, what: str) -> None:
    """A vision model on texts alone is rarely meant: a column of images may have another name."""
    if (
        getattr(builder, "shows_images", False)
        and not any(row.images or row.videos for row in rows)
        and ranks.is_main()
    ):
        tqdm.write(f"WARNING: none of the {len(rows)} {what} rows has an image (data.columns names their column)")


def _say_own_systems(rows: Sequence[Row], builder: PromptBuilder, what: str) -> None:
    """A run with a system prompt is told of the rows that have one of their own, which stands in its place."""
    own = [row for row in rows if has_system(row)]
    if own and getattr(builder, "system_prompt", None) and ranks.is_main():
        tqdm.write(
            f"{len(own)} of {len(rows)} {what} rows (first: row {own[0].id}) bring a system message of their own, "
            "which stands in the place of data.system_prompt"
        )


def _recalled(
    rows: Sequence[Row], builder: PromptBuilder, max_bad_share: float | None
) -> tuple[str | None, checked.Found | None]:
    """The name of this check on the main rank, and what it found before, the same on all ranks."""
    if not isinstance(builder, PromptBuilder):
        return None, None
    name = checked.name_of(rows, builder) if ranks.is_main() else None
    name = f"skipping-{max_bad_share:g}-{name}" if name and max_bad_share is not None else name
    return name, ranks.gather_objects(checked.recall(name, rows) if name else None)[0]


def _check(
    rows: Sequence[Row], builder: PromptBuilder, overlong: str, what: str, max_bad_share: float | None
) -> checked.Found:
    """Build every prompt once, the rows shared among the ranks."""
    mine = range(ranks.rank(), len(rows), ranks.world_size())
    dropped: list[int] = []
    first_reason = ""
    bad: dict[int, str] = {}
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
            if max_bad_share is not None:
                bad[index] = str(problem)
                continue
            error = problem if isinstance(problem, PromptError) else PromptError(str(problem))
            break
    ranks.raise_together(error)
    gathered = ranks.gather_objects((dropped, first_reason, bad))
    gone = [index for indices, _, _ in gathered for index in indices]
    refused = dict(sorted(entry for _, _, part in gathered for entry in part.items()))
    _say_bad(list(refused.values()), len(rows), max_bad_share or 0.0, f"the {what} set")
    reason = next((text for text in (*(text for _, text, _ in gathered), *refused.values()) if text), "")
    return sorted([*gone, *refused]), reason
