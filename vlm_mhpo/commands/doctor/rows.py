"""The rows themselves: golds that verify, and prompts that fit, on a bounded sample of training and held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from data_prep import DataError, Row
from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.commands.doctor.shapes import family_on_this_machine
from vlm_mhpo.config import Config, DataConfig
from vlm_mhpo.errors import VlmMhpoError
from vlm_mhpo.models.folder import read_processor
from vlm_mhpo.models.loading import NO_LIMIT, counting_codec
from vlm_mhpo.models.tiny import build_processor, build_tokenizer, tiny_family
from vlm_mhpo.prompts.builder import PromptBuilder, prompt_builder
from vlm_mhpo.prompts.rows import read_rows
from vlm_mhpo.scoring.golds import gold_scores
from vlm_mhpo.types import Prompt

NUM_NAMED = 3


def examine_rows(config: Config, *, num_rows: int) -> Iterator[Check]:
    """Golds and prompts of both sources; at most `num_rows` rows of each are looked at."""
    data = config.data
    try:
        builder = unlimited_builder(config)
    except VlmMhpoError as error:
        builder = None
        yield Check("warning", "prompts", f"{error}; token counts are not examined")
    sources = [("training", data.train, data.train_split, data.max_rows)]
    if data.eval:
        sources.append(("held-out", data.eval, data.eval_split, data.max_eval_rows))
    for what, source, split, limit in sources:
        try:
            rows = read_rows(source, data, split, limit)
        except (DataError, VlmMhpoError) as error:
            yield Check("error", f"{what} rows", str(error))
            continue
        needed = config.train.num_prompts_per_step
        if what == "training" and len(rows) < needed:
            cure = "add rows or lower train.num_prompts_per_step"
            yield Check("error", f"{what} rows", f"{len(rows)} cannot fill a batch of {needed} prompts: {cure}")
        sample = spread(rows, num_rows)
        yield _examine_golds(sample, len(rows), what, config)
        if builder:
            prompts, problems = build_prompts(sample, builder, what)
            if problems:
                text = f"{len(problems)} of {len(sample)} cannot be built: {problems[0]}"
                yield Check("error", f"{what} prompts", text)
            if prompts:
                overlong = data.overlong_prompts if what == "training" else "error"
                yield _examine_lengths(prompts, builder, data, overlong, what)


def spread(rows: Sequence[Row], number: int) -> Sequence[Row]:
    """At most `number` rows, evenly spread; the first one among them."""
    if len(rows) <= number:
        return rows
    return [rows[index * len(rows) // number] for index in range(number)]


def _examine_golds(sample: Sequence[Row], num_all: int, what: str, config: Config) -> Check:
    """Share of golds that our verifier accepts as their own answers."""
    shown = tqdm(sample, desc=f"verifying {what} golds", unit="row", leave=False)
    scores = gold_scores(shown, config.rewards)
    bad = [(row, gold, score) for row, (gold, score) in zip(sample, scores, strict=True) if not score.correct]
    seen = f"{len(sample) - len(bad)} of {len(sample)} golds verify ({num_all} rows in all)"
    if not bad:
        return Check("ok", f"{what} golds", seen)
    named = "; ".join(f"row {row.id}: {gold[:40]!r}: {score.reason}" for row, gold, score in bad[:NUM_NAMED])
    state = "error" if len(bad) == len(sample) else "warning"
    cure = "no completion of these can be rewarded: mend them, or leave them out with `vlm-mhpo prepare`"
    return Check(state, f"{what} golds", f"{seen}; {named}; {cure}")


def unlimited_builder(config: Config) -> PromptBuilder:
    """The prompts of a run with no limit to their length, by the model's processor alone; never online.

    Raises:
        ModelError: config or processor are not on this machine.
    """
    model = config.model
    family = family_on_this_machine(model)
    if tiny := tiny_family(model.path):
        processor = build_processor(tiny, build_tokenizer(tiny))
    else:
        processor = read_processor(model.path, family, revision=model.revision, offline=True)
    codec = counting_codec(processor, family, model.min_pixels, model.max_pixels, path=model.path)
    return prompt_builder(config.data.model_copy(update={"max_prompt_length": NO_LIMIT}), codec, family)


def build_prompts(sample: Sequence[Row], builder: PromptBuilder, what: str) -> tuple[list[Prompt], list[str]]:
    """Prompts without their pixels, and what was wrong with the rows that have none."""
    prompts, problems = [], []
    for row in tqdm(sample, desc=f"building {what} prompts", unit="row", leave=False):
        try:
            prompts.append(builder(row))
        except (VlmMhpoError, DataError) as error:
            problems.append(str(error))
    return prompts, problems


def _examine_lengths(
    prompts: Sequence[Prompt], builder: PromptBuilder, data: DataConfig, overlong: str, what: str
) -> Check:
    """The longest prompts, and the pixel limit under which those that are too long would fit."""
    limit = data.max_prompt_length
    longest = sorted(prompts, key=lambda prompt: -prompt.num_tokens)
    named = "; ".join(
        f"row {prompt.id}: {prompt.num_tokens} tokens, {prompt.num_image_tokens} of them of images or "
        f"videos, {100 * prompt.num_tokens / limit:.0f} % of the limit"
        for prompt in longest[:NUM_NAMED]
    )
    too_long = [prompt for prompt in longest if prompt.num_tokens > limit]
    text = f"longest of {len(prompts)}, of data.max_prompt_length={limit}: {named}"
    if not too_long:
        return Check("ok", f"{what} prompts", text)
    pixels = _fitting_pixels(too_long, limit, builder)
    cure = f"raise data.max_prompt_length to {longest[0].num_tokens}"
    if pixels:
        cure += f", or set model.max_pixels={pixels}"
    stops = "stops the run" if overlong == "error" else "leaves them out"
    text += f"; {len(too_long)} are too long, which {stops}: {cure}"
    state = "error" if overlong == "error" or len(too_long) == len(prompts) else "warning"
    return Check(state, f"{what} prompts", text)


def _fitting_pixels(too_long: Sequence[Prompt], limit: int, builder: PromptBuilder) -> int | None:
    """The largest model.max_pixels under which every one of these prompts fits; None when their text is too long."""
    least: int | None = None
    if not builder.family.has_pixel_limits or builder.family.own_inputs:
        return None
    for prompt in too_long:
        for_images = limit - (prompt.num_tokens - prompt.num_image_tokens)
        each = for_images // max(1, len(prompt.row.images))
        if prompt.row.videos or not prompt.row.images or each < 1:
            return None
        pixels = each * builder.family.vision.pixels_per_token(builder.codec.processor)
        least = pixels if least is None else min(least, pixels)
    return least
