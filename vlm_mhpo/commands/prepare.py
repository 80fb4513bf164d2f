"""`vlm-mhpo prepare`: rows that are filtered, rated by a model if asked for, checked and written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_prep import Row, RowError
from data_prep.loading import none_has_an_image
from data_prep.prepare.filters import Filter, answer_form_filter, kind_filter, prompt_token_filter
from data_prep.prepare.prepare import LETTERS_FILE, prepare
from vlm_mhpo.config import Config


@dataclass(frozen=True, slots=True)
class Rating:
    """How often a model answers a row, and what is kept.

    Attributes:
        config: whose prompts and sampling are used.
        model: folder or hub name.
        num_samples: completions per row.
        bounds: least and largest share of correct ones.
    """

    config: Config
    model: str
    num_samples: int
    bounds: tuple[float, float]


def row_filters(
    kinds: Sequence[str], answer_forms: Sequence[str], max_prompt_tokens: int | None, model: str | None
) -> list[Filter]:
    """The filters of what a row says, as far as they are asked for; `model` counts the tokens of prompts."""
    filters = [kind_filter(kinds)] if kinds else []
    filters += [answer_form_filter(answer_forms)] if answer_forms else []
    if max_prompt_tokens is not None and model is not None:
        from vlm_mhpo.prompts.token_counts import token_counter

        filters.append(prompt_token_filter(token_counter(model), max_prompt_tokens, model))
    return filters


def prepare_rows(
    rows: Iterable[Row | RowError],
    out: Path,
    filters: Sequence[Filter],
    rating: Rating | None,
    *,
    heldout: float | None,
    max_bad_share: float,
    seen: Collection[str] = (),
) -> str:
    """Write the rows as `data_prep.prepare.prepare` does; returns what became of them, for people.

    Args:
        seen: holds the names of the source's columns once its rows are read.

    Raises:
        DataError: see there, and for bounds of a rating that are none; ModelError: its model cannot be loaded.
    """
    with ExitStack() as stack:
        if rating:
            from vlm_mhpo.commands.pass_rate import rated

            cache = out.with_name(f".{out.name}.pass_rates.jsonl")
            how = {"num_samples": rating.num_samples, "bounds": rating.bounds, "cache": cache}
            rows, chosen = stack.enter_context(rated(rows, filters, rating.config, rating.model, **how))
            filters = [*filters, chosen]
        report = prepare(rows, out, max_bad_share=max_bad_share, filters=filters, heldout=heldout)
    text = f"{report.num_rows} rows in {report.out_dir}, {len(report.refused)} refused"
    text += "".join(f", {number} dropped by {name}" for name, number in report.num_dropped.items())
    if report.num_resumed:
        text += f" ({report.num_resumed} rows of an interrupted run)"
    if report.letters:
        row_id, gold = report.letters[0]
        text += (
            f"\n{len(report.letters)} golds can only be compared letter by letter, such as {gold[:40]!r} of row "
            f"{row_id}: a right answer in other words is refused; all are in {report.out_dir / LETTERS_FILE}"
        )
    if not report.num_with_images:
        text += f"\nnote: {none_has_an_image(report.num_rows, seen)}"
    splits = report.counts["split"].items() if heldout else ()
    return "\n".join([text, *(f"{name}: {number} rows" for name, number in splits)])
