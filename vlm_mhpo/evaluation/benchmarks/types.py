"""The nouns of the benchmarks: a benchmark, a verdict by its authors' rule, and a judged answer to aggregate."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from data_prep import Row

# The split of a source whose parts belong together, such as the variants of DynaMath.
ALL = "all"


@dataclass(frozen=True, slots=True)
class Official:
    """Verdict by the authors' rule on one response, with the answer that the rule took from it (None: none)."""

    correct: bool
    extracted: str | None


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer under the authors' rule: `sample` counts the completions of a row from 0."""

    row: Row
    correct: bool
    sample: int = 0


# One response before a language model: yields questions, is sent each answer, and returns the verdict; None when an
# answer is not of the form that was asked for.
JudgeSteps = Generator[str, str, Official | None]


@dataclass(frozen=True, slots=True)
class JudgeRule:
    """How a language model judges the responses to a benchmark.

    Attributes:
        steps: (row, text of a response that is not empty) to the talk about it.
        prompts: texts that its questions are made of.
        source: whose prompts these are, in one sentence.
    """

    steps: Callable[[Row, str], JudgeSteps]
    prompts: tuple[str, ...]
    source: str


def _no_categories(row: Row) -> dict[str, str]:
    """For a benchmark without categories."""
    return {}


def own_problem(row: Row) -> str:
    """For a benchmark whose rows are independent problems."""
    return row.id


def _no_scores(judged: Sequence[Judged]) -> dict[str, float]:
    """For a benchmark whose only score is accuracy."""
    return {}


def _all_rows(rows: list[Row]) -> list[Row]:
    """For a benchmark that asks every row of its source."""
    return rows


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark with its protocol; every callable is pure and takes rows as `data_prep.load_rows` yields them.

    Attributes:
        name: how users call it, such as "mathvista".
        title: how a table calls it, such as "MathVista testmini".
        citation: arXiv id, or the address of the project.
        splits: names that may be asked for, the default first; `ALL` for everything that a source holds.
        sources: sources of the default split on the hub, as `data_prep.load_rows` takes them; another split's are the
            same with its name in place of the default's; empty where the hub holds no table that we read.
        download: what to download and where to put it: one sentence, with {folder} for the place.
        prompt: row to the whole text of its question: the official wording, choices included, one <image> per
            image. Nothing but `instruction` is to be added.
        instruction: how to answer, where the official question does not say so; "" elsewhere.
        official: (row, text of a response) to the verdict under the authors' rule; never raises on a response. None:
            the rule is our verifier, in the response format of training.
        deviation: what of the official protocol is replaced, in one sentence; "" for nothing.
        categories: row to values by axis, such as {"task": "geometry problem solving"}.
        problem: row to the id that variants of one problem share.
        aggregate: scores beside accuracy, by name; shares between 0 and 1.
        subsets: splits that are a part of another one: name to (that one, whether a row belongs to the part).
        select: the rows of a source that the official protocol asks, in order.
        judge: how a language model judges, if `eval.judge` names one; None where the authors need none.
    """

    name: str
    title: str
    citation: str
    splits: tuple[str, ...]
    sources: tuple[str, ...]
    download: str
    prompt: Callable[[Row], str]
    official: Callable[[Row, str], Official] | None
    instruction: str = ""
    deviation: str = ""
    categories: Callable[[Row], Mapping[str, str]] = _no_categories
    problem: Callable[[Row], str] = own_problem
    aggregate: Callable[[Sequence[Judged]], Mapping[str, float]] = _no_scores
    subsets: Mapping[str, tuple[str, Callable[[Row], bool]]] | None = None
    select: Callable[[list[Row]], list[Row]] = _all_rows
    judge: JudgeRule | None = None
