"""What the tests of evaluation start from: hand-made rows, a benchmark with a plain rule, whole reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_prep import Row
from data_prep.schema import make_row
from vlm_mhpo.evaluation.benchmarks import Benchmark, Judged, Official
from vlm_mhpo.evaluation.protocol import protocol_hash
from vlm_mhpo.evaluation.results import benchmark_result
from vlm_mhpo.records.evaluation import Item, ItemCompletion, Protocol, Results

HASH = "0123456789ab"


def official(row: Row, response: str) -> Official:
    """Right if the response ends in the gold."""
    return Official(response.endswith(row.answer), response.split()[-1] if response.split() else None)


def worst_case(judged: Sequence[Judged]) -> dict[str, float]:
    """Share of problems whose every answer is right."""
    by_problem: dict[str, bool] = {}
    for one in judged:
        name = one.row.id.partition("/")[0]
        by_problem[name] = by_problem.get(name, True) and one.correct
    return {"worst_case": sum(by_problem.values()) / len(by_problem)}


BENCHMARK = Benchmark(
    name="made",
    title="Made | <b>up</b> & 100 %",
    citation="arXiv:0000.00000",
    splits=("test",),
    sources=(),
    download="download it to {folder}",
    prompt=lambda row: f"Question: {row.problem}",
    official=official,
    instruction=" Answer shortly.",
    deviation="the judge is a rule",
    categories=lambda row: {"shape": row.source} if row.source else {},
    problem=lambda row: row.id.partition("/")[0],
    aggregate=worst_case,
)


def row(id: str, *, source: str = "", images: Sequence[bytes] = (), answer: str = "7", **fields) -> Row:
    """A row; what stands before / in its id is its problem."""
    return make_row(id=id, problem=f"What is it in {id}?", answer=answer, images=images, source=source, **fields)


def completion(mark: str) -> ItemCompletion:
    """One completion.

    + right by both, o right by the official rule alone, v by ours alone, - wrong, n no answer, h timeout, t wrong and
    cut at the budget, T right and cut there.
    """
    verdict = {"+": "correct", "v": "correct", "T": "correct", "n": "no_answer", "h": "timeout"}.get(mark, "wrong")
    return ItemCompletion(
        text=f"text {mark}",
        official=mark in "+oT",
        extracted=None if mark == "n" else "7",
        verdict=verdict,
        correct=verdict == "correct",
        num_tokens=10 if mark in "tT" else 4,
        truncated=mark in "tT",
    )


def item(id: str, marks: str, **categories: str) -> Item:
    """A judged row."""
    return Item(
        id=id,
        problem=id.partition("/")[0],
        question=f"What is it in {id}?",
        choices=None,
        gold="7",
        kind="number",
        images=(),
        categories=categories,
        completions=tuple(map(completion, marks)),
    )


def items(marks: Mapping[str, str]) -> list[Item]:
    """Judged rows by id."""
    return [item(id, text) for id, text in marks.items()]


def singles(marks: str) -> list[Item]:
    """One row with one completion for each mark."""
    return [item(f"p{index}", mark) for index, mark in enumerate(marks)]


def result(judged: Sequence[Item], **options):
    """The figures of hand-made rows."""
    rows = [row(one.id) for one in judged]
    settings = {"split": "test", "protocol_hash": HASH, "items_file": "results/made.jsonl"}
    return benchmark_result(BENCHMARK, rows, judged, **settings | options)


def protocol(num_samples: int = 1, **change) -> Protocol:
    """A protocol; fields of its benchmark may be changed by name too."""
    own = {"split": "test", "num_rows": 2, "instruction": "", "prompts": "aa", "data": "bb", "judge": None}
    own |= {name: change.pop(name) for name in list(change) if name in own}
    values = dict(
        prompt="official",
        system_prompt=None,
        min_pixels=3136,
        max_pixels=1003520,
        num_samples=num_samples,
        temperature=0.0 if num_samples == 1 else 1.0,
        top_p=1.0,
        top_k=0,
        max_tokens=64,
        seed=0,
        grader="1",
        benchmarks={"made": own},
    )
    return Protocol.model_validate(values | change)


def results(judged: Sequence[Item], *, model: str = "models/one", comparison=None, options=None, **change) -> Results:
    """A whole results.json of hand-made rows; `change` is of the protocol, `options` of the figures."""
    pinned = protocol(len(judged[0].completions), **change)
    return Results(
        model=model,
        model_digest=None,
        created_by="vlm-mhpo 0",
        protocol=pinned,
        protocol_hash=protocol_hash(pinned),
        benchmarks=(result(judged, protocol_hash=protocol_hash(pinned, "made"), **(options or {})),),
        comparison=comparison,
    )
