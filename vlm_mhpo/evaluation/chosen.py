"""Which benchmarks are asked for, with their rows and the questions that the model sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_prep import Row
from vlm_mhpo.config import DataConfig, EvalConfig
from vlm_mhpo.errors import ConfigError, EvaluationError
from vlm_mhpo.evaluation.benchmarks import BENCHMARKS, Benchmark, benchmark_rows, find
from vlm_mhpo.evaluation.protocol import benchmark_protocol
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.records.evaluation import BenchmarkProtocol


@dataclass(frozen=True, slots=True)
class BenchmarkRows:
    """A benchmark with its rows.

    Attributes:
        benchmark: its rules.
        split: whose rows.
        rows: as they are judged.
        asked: the same rows as the model is asked: the official question, or as in training.
    """

    benchmark: Benchmark
    split: str
    rows: tuple[Row, ...]
    asked: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The benchmark's."""
        return self.benchmark.name

    @property
    def protocol(self) -> BenchmarkProtocol:
        """What pins its questions and data; reads every image file."""
        instruction = self.benchmark.instruction
        return benchmark_protocol(self.rows, self.asked, split=self.split, instruction=instruction)


def choose(
    entries: Iterable[str],
    *,
    folder: Path,
    places: Mapping[str, str] | None = None,
    limit: int | None = None,
    prompt: Literal["official", "run"] = "official",
) -> list[BenchmarkRows]:
    """Find and read benchmarks.

    Args:
        entries: NAME, NAME@SPLIT, or either with =PLACE behind it, where the rows are.
        folder: of benchmarks, each in a folder of its name; see `benchmarks.benchmark_rows`.
        places: where rows are, by name; for entries without =PLACE.
        limit: use only the first rows of each.
        prompt: "official" asks the benchmark's own question, "run" leaves the rows to the run's prompt.

    Raises:
        ConfigError: an unknown benchmark or split, one that is named twice, or a place of none that is named.
        DataError: rows cannot be had; says what to download and where to put it.
        EvaluationError: a benchmark without rows.
    """
    parsed = [_parse_entry(entry) for entry in entries]
    names = [name for name, _, _ in parsed]
    twice = sorted({name for name in names if names.count(name) > 1})
    strange = sorted(set(places or {}) - set(names))
    if twice or strange:
        raise ConfigError(
            f"{twice[0]} is named twice among the benchmarks"
            if twice
            else f"--data {strange[0]}=...: that benchmark is not among those named ({', '.join(names)})"
        )
    return [
        with_rows(find(name), split, place or (places or {}).get(name), folder, limit, prompt)
        for name, split, place in parsed
    ]


def chosen_benchmarks(evaluation: EvalConfig) -> list[BenchmarkRows]:
    """The benchmarks of `eval.benchmarks`, for a run that trains."""
    return choose(
        evaluation.benchmarks,
        folder=Path(evaluation.benchmark_dir),
        limit=evaluation.max_benchmark_rows,
        prompt=evaluation.prompt,
    )


def benchmark_builder(
    prompt: Literal["official", "run"], data: DataConfig, codec: Codec, family: Family, max_completion_length: int
) -> PromptBuilder:
    """Makes prompts of `BenchmarkRows.asked`; only the run's own question gets the run's instruction.

    A run's data.max_prompt_length is for its own rows: a benchmark may use all positions of the model but those of the
    completion.
    """
    return PromptBuilder(
        codec,
        family,
        system_prompt=data.system_prompt,
        instruction=data.instruction if prompt == "run" else "",
        max_prompt_length=codec.max_context - max_completion_length,
        video=data.video,
        limit=f"eval.max_completion_length leaves {{}} of the model's {codec.max_context} positions: lower it",
    )


def rows_by_name(entry: str) -> list[Row] | None:
    """Rows of a benchmark, as `choose` finds them in the default folder; None for an entry that names none.

    Raises:
        ConfigError: no such split; DataError: the benchmark is not on this disk.
    """
    name, split, place = _parse_entry(entry)
    if name not in BENCHMARKS or Path(entry).exists():
        return None
    folder = Path(EvalConfig().benchmark_dir)
    return benchmark_rows(find(name), split=split, source=place, folder=folder)


def _parse_entry(entry: str) -> tuple[str, str | None, str | None]:
    """(name, split or None, place or None) of NAME[@SPLIT][=PLACE]."""
    named, _, place = entry.partition("=")
    name, _, split = named.strip().partition("@")
    return name, split or None, place or None


def with_rows(
    benchmark: Benchmark, split: str | None, place: str | None, folder: Path, limit: int | None, prompt: str
) -> BenchmarkRows:
    """One benchmark with its rows."""
    rows = tuple(benchmark_rows(benchmark, split=split, source=place, folder=folder)[:limit])
    if not rows:
        raise EvaluationError(f"{benchmark.name}: {place or folder / benchmark.name} has no rows of it")
    shown = rows if prompt == "run" else tuple(_official_question(benchmark, row) for row in rows)
    return BenchmarkRows(benchmark, split or benchmark.splits[0], rows, shown)


def _official_question(benchmark: Benchmark, row: Row) -> Row:
    """The row with the whole official text as its problem, to which nothing is added."""
    return replace(row, problem=benchmark.prompt(row) + benchmark.instruction, kind="auto", choices=None)
