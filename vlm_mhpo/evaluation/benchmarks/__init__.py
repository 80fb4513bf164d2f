"""The registry of benchmarks: official prompts, official scoring rules, categories and extra scores, by name."""

from __future__ import annotations

from difflib import get_close_matches

from vlm_mhpo.errors import ConfigError
from vlm_mhpo.evaluation.benchmarks import (
    chartqa,
    charxiv,
    dynamath,
    geometry,
    hallusionbench,
    logicvista,
    m3cot,
    mathverse,
    mathvision,
    mathvista,
    mm_math,
    mmk12,
    mmmu,
    olympiadbench,
    puzzles,
    text,
    we_math,
)
from vlm_mhpo.evaluation.benchmarks.rows import benchmark_rows
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Judged, Official

__all__ = ["BENCHMARKS", "Benchmark", "Judged", "Official", "benchmark_rows", "find"]

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        mathvista.BENCHMARK,
        mathverse.BENCHMARK,
        mathvision.BENCHMARK,
        dynamath.BENCHMARK,
        we_math.BENCHMARK,
        geometry.FREE_FORM,
        geometry.CHOICE,
        geometry.GEOQA,
        mmk12.BENCHMARK,
        puzzles.PUZZLEVQA,
        puzzles.ALGOPUZZLEVQA,
        logicvista.BENCHMARK,
        olympiadbench.BENCHMARK,
        mmmu.MMMU,
        mmmu.PRO,
        mmmu.PRO_VISION,
        charxiv.BENCHMARK,
        hallusionbench.BENCHMARK,
        mm_math.BENCHMARK,
        m3cot.BENCHMARK,
        chartqa.BENCHMARK,
        text.MATH500,
        text.AIME24,
        text.AIME25,
        text.AMC23,
        text.HMMT25,
        text.GSM8K,
    )
}


def find(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ConfigError: there is none; the text names the nearest.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(BENCHMARKS)}"
    raise ConfigError(f"{name!r} is no known benchmark; {hint}")
