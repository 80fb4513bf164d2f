"""Pass rates: how often a model answers each row, sampled in chunks and kept on disk, for `prepare --pass-rate`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from data_prep import DataError, Row, RowError, read_image, read_video
from data_prep.prepare.checks import with_bytes
from data_prep.prepare.filters import Filter
from vlm_mhpo.config import Config
from vlm_mhpo.errors import PromptError
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring import grader_version

# Rows that are sampled at a time; what a kill can cost.
CHUNK = 64
# Where a row carries its rate.
COLUMN = "pass_rate"

# Rows to the share of their completions that is correct; None where a row cannot be asked.
Judge = Callable[[Sequence[Row]], list[float | None]]


@contextmanager
def rated(
    rows: Iterable[Row | RowError],
    others: Sequence[Filter],
    config: Config,
    model: str,
    *,
    num_samples: int,
    bounds: tuple[float, float],
    cache: Path,
) -> Iterator[tuple[Iterator[Row | RowError], Filter]]:
    """Rows with their rates, and the filter that keeps those within `bounds`; see the functions below.

    Raises:
        DataError: bounds that are none.
        ModelError: no such model.
    """
    setting = sampling_setting(config, model, num_samples)
    chosen = pass_rate_filter(*bounds, setting)
    with _model_judge(config, model, num_samples) as judge:
        # A copy: the caller adds the filter of the rates to its own list.
        yield with_pass_rates(rows, judge, cache, setting, tuple(others)), chosen


def sampling_setting(config: Config, model: str, num_samples: int) -> str:
    """All that a rate depends on but the row, as text."""
    data = config.data.model_dump(include={"template", "instruction", "system_prompt", "max_prompt_length"})
    rollout = config.rollout.model_dump(include={"max_completion_length", "temperature", "top_p", "top_k"})
    limits = config.model.model_dump(exclude={"path"})
    own = {"model": model, "num_samples": num_samples, "seed": config.seed, "grader": grader_version()}
    return json.dumps({**own, **data, **rollout, **limits})


def pass_rate_filter(low: float, high: float, setting: str) -> Filter:
    """Keeps rows whose rate lies in [low, high]: neither beyond the model nor learnt already.

    Raises:
        DataError: the bounds are not 0 <= low <= high <= 1.
    """
    if not 0 <= low <= high <= 1:
        raise DataError(f"pass rates between {low} and {high} are none: give 0 <= lower <= upper <= 1")

    def reason(row: Row) -> str | None:
        rate = row.metadata.get(COLUMN)
        if rate is None:
            return "its prompt cannot be built within the limits"
        return None if low <= rate <= high else f"the model passes it at a rate of {rate:.2f}"

    return Filter("pass_rate", f"{low} to {high} of {setting}", reason)


def with_pass_rates(
    rows: Iterable[Row | RowError], judge: Judge, cache: Path, setting: str, others: Sequence[Filter] = ()
) -> Iterator[Row | RowError]:
    """The same rows in order, each with its rate in `metadata["pass_rate"]`.

    Args:
        rows: as `data_prep.loading.scan_rows` gives them.
        judge: samples and verifies.
        cache: JSON lines of what was sampled before; rows found there under the same setting are not sampled again.
        setting: all that a rate depends on but the row.
        others: filters that will drop rows anyway; those rows are passed on without a rate.
    """
    known = read_cache(cache)
    stream = iter(rows)
    while chunk := list(islice(stream, CHUNK)):
        loaded = [readable(row) for row in chunk]
        keys = {
            index: _key_of(row, setting)
            for index, row in enumerate(loaded)
            if row is not None and not any(each.reason(row) for each in others)
        }
        missing = [index for index, key in keys.items() if key not in known]
        if missing:
            rates = judge([row for index in missing if (row := loaded[index])])
            fresh = {keys[index]: rate for index, rate in zip(missing, rates, strict=True)}
            _append_cache(cache, fresh)
            known |= fresh
        for index, row in enumerate(chunk):
            rate = known.get(keys[index]) if index in keys else None
            yield row if rate is None else replace(row, metadata=MappingProxyType({**row.metadata, COLUMN: rate}))


def readable(row: Row | RowError) -> Row | None:
    """The row with its images as bytes; None for one that `prepare` will refuse by name."""
    if isinstance(row, RowError):
        return None
    try:
        return with_bytes(row)
    except DataError:
        return None


def _key_of(row: Row, setting: str) -> str:
    """Names a rate: everything of the row that the model or the verifier sees, and how it was sampled."""
    seen = hashlib.sha256(setting.encode())
    parts = (row.id, row.problem, row.gold, row.kind, row.choices, row.precision, row.unit, *row.earlier_turns)
    seen.update(repr(parts).encode("utf-8", "backslashreplace"))
    for image in row.images:
        seen.update(hashlib.sha256(read_image(image)).digest())
    for video in row.videos:
        data = read_video(video)
        seen.update(hashlib.sha256(data if isinstance(data, bytes) else b"".join(data)).digest())
    return seen.hexdigest()


def read_cache(file: Path) -> dict[str, float | None]:
    """Rates by key; a torn last line is a chunk that will be sampled again."""
    known: dict[str, float | None] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
            known[entry["key"]] = entry["rate"]
        except (ValueError, KeyError, TypeError):
            continue
    return known


def _append_cache(file: Path, rates: dict[str, float | None]) -> None:
    """Add rates and flush them to the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # A torn line of a killed run must not swallow the first of ours.
    torn = file.is_file() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as stream:
        stream.write(
            "\n" * torn + "".join(json.dumps({"key": key, "rate": rate}) + "\n" for key, rate in rates.items())
        )
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _model_judge(config: Config, model: str, num_samples: int) -> Iterator[Judge]:
    """A judge that samples `model` as `config` samples in training: its prompts, pixel limits, budget, temperature.

    Args:
        config: of the training that the rows are for.
        model: run folder, checkpoint, model folder or hub name.
        num_samples: completions per row.
    """
    from vlm_mhpo.checkpoint.opening import open_policy
    from vlm_mhpo.evaluation.tasks import verify_groups
    from vlm_mhpo.prompts.builder import prompt_builder
    from vlm_mhpo.rollout.build import build_sampler, rollout_params
    from vlm_mhpo.rollout.finite import all_finite
    from vlm_mhpo.scoring.scorer import start_verifier

    ranks.start(config.num_threads)
    opened = open_policy(config.model.model_copy(update={"path": model}), Path(config.output_dir), "judge")
    builder = prompt_builder(config.data, opened.codec, opened.policy.family)
    sampler = build_sampler(config.rollout, opened.policy, opened.codec)
    params = rollout_params(config.rollout, num_samples)

    with start_verifier(config.rewards) as verifier:

        def rates_of(rows: Sequence[Row]) -> list[float | None]:
            prompts = {}
            for index, row in enumerate(rows):
                try:
                    prompts[index] = builder(row)
                except (PromptError, DataError):
                    continue
            groups = sampler.sample(list(prompts.values()), params, (config.seed, "pass_rate")) if prompts else []
            groups = all_finite(groups)
            judged = verify_groups([rows[index] for index in prompts], groups, verifier, config.data.template)
            shares = (sum(score.correct for score in scores) / len(scores) for scores in judged)
            found = dict(zip(prompts, shares, strict=True))
            return [found.get(index) for index in range(len(rows))]

        yield rates_of
