"""From judged rows to the figures of a report: pure, and the same bytes for the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from data_prep import Row
from rewards import Verdict
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.benchmarks import Benchmark, Judged
from vlm_mhpo.evaluation.benchmarks.types import JudgeRule
from vlm_mhpo.evaluation.overlap import Shared
from vlm_mhpo.records import statistics
from vlm_mhpo.records.evaluation import (
    Accuracy,
    BenchmarkComparison,
    BenchmarkResult,
    CategoryScore,
    Difference,
    Item,
    ItemCompletion,
    JudgeScore,
    Overlap,
    ProbeScore,
    Scores,
)

TRUNCATED = "truncated"


def benchmark_result(
    benchmark: Benchmark,
    rows: Sequence[Row],
    items: Sequence[Item],
    *,
    split: str,
    protocol_hash: str,
    items_file: str,
    probes: Mapping[str, ProbeScore] | None = None,
    shared: Shared | None = None,
) -> BenchmarkResult:
    """Everything measured on one benchmark.

    Args:
        benchmark: names and the scores of its authors.
        rows: of `items`, in their order.
        items: judged rows, at least one, all with the same number of completions.
        split, protocol_hash, items_file, probes: as in the record.
        shared: overlap with training rows.

    Raises:
        EvaluationError: there are no rows, or rows differ in their number of completions.
    """
    sizes = {len(item.completions) for item in items}
    if len(sizes) != 1 or 0 in sizes:
        raise EvaluationError(f"{benchmark.name}: rows with {sorted(sizes)} completions: each needs the same number")
    (num_samples,) = sizes
    completions = [completion for item in items for completion in item.completions]
    judged = [
        Judged(row, completion.official, sample)
        for row, item in zip(rows, items, strict=True)
        for sample, completion in enumerate(item.completions)
    ]
    verdicts = Counter(TRUNCATED if c.truncated and not c.correct else c.verdict for c in completions)
    return BenchmarkResult(
        name=benchmark.name,
        title=benchmark.title,
        citation=benchmark.citation,
        split=split,
        deviation=benchmark.deviation,
        num_problems=len({item.problem for item in items}),
        num_rows=len(items),
        num_samples=num_samples,
        protocol_hash=protocol_hash,
        scores=Scores(official=accuracy_of(items), ours=accuracy_of(items, official=False)),
        unanswered=sum(c.official and not c.correct and _is_unanswered(c) for c in completions) / len(completions),
        judge=judge_score(benchmark.judge, items) if benchmark.judge else None,
        pass_at=pass_rates(items, num_samples),
        extra=dict(sorted(benchmark.aggregate(judged).items())),
        verdicts={verdict: count / len(completions) for verdict, count in sorted(verdicts.items())},
        by_worker=sum(completion.by_worker for completion in completions) / len(completions),
        mean_tokens=sum(completion.num_tokens for completion in completions) / len(completions),
        categories=categories(items),
        probes=dict(probes or {}),
        overlap=None if shared is None else _overlap_record(items, shared),
        items=items_file,
    )


def _is_unanswered(completion: ItemCompletion) -> bool:
    """Whether a completion holds no answer: it is empty, was cut at the budget, or our verifier finds none."""
    return completion.truncated or not completion.text.strip() or completion.verdict == Verdict.no_answer.value


def accuracy_of(items: Sequence[Item], *, official: bool = True) -> Accuracy:
    """Accuracy of at least one row, under the official rule or our verifier."""
    shares = [item.official if official else item.ours for item in items]
    found = statistics.accuracy(shares, [item.problem for item in items])
    return Accuracy(accuracy=found.mean, low=found.low, high=found.high)


def judge_score(rule: JudgeRule, items: Sequence[Item]) -> JudgeScore | None:
    """Accuracy under a language model and how far it agrees with the official rule; None where none was asked."""
    pairs = [(one.official, one.judge) for item in items for one in item.completions if one.judge]
    if not pairs:
        return None
    found = statistics.accuracy([item.judged for item in items], [item.problem for item in items])
    counts = Counter(judge.verdict for _, judge in pairs)
    return JudgeScore(
        accuracy=found.mean,
        low=found.low,
        high=found.high,
        source=rule.source,
        agreement=sum(official == (judge.verdict == "right") for official, judge in pairs) / len(pairs),
        unreadable=counts["unreadable"],
        refused=counts["refused"],
    )


def pass_rates(items: Sequence[Item], num_samples: int) -> dict[int, float]:
    """Unbiased pass@j of the official rule for every j up to the number of samples."""
    counts = [sum(completion.official for completion in item.completions) for item in items]
    return {
        j: sum(statistics.pass_at(count, num_samples, j) for count in counts) / len(counts)
        for j in range(1, num_samples + 1)
    }


def categories(items: Sequence[Item]) -> dict[str, dict[str, CategoryScore]]:
    """Official accuracy by axis and value, both in the order of their names."""
    members: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        for axis, value in item.categories.items():
            members.setdefault(axis, {}).setdefault(value, []).append(item)
    return {
        axis: {
            value: CategoryScore(num_rows=len(part), **accuracy_of(part).model_dump())
            for value, part in sorted(values.items())
        }
        for axis, values in sorted(members.items())
    }


def probe_score(plain: Sequence[Item], probed: Sequence[Item]) -> ProbeScore:
    """What of the greedy score of rows with images is lost without them; at least one row."""
    found = _paired(zip(plain, probed, strict=True))
    return ProbeScore(num_rows=len(probed), needs_picture=difference_of(found), **accuracy_of(probed).model_dump())


def difference_of(found: statistics.Paired) -> Difference:
    """A difference as it is recorded."""
    return Difference(difference=found.difference, low=found.low, high=found.high, p=found.p)


def _paired(pairs: Iterable[tuple[Item, Item]]) -> statistics.Paired:
    """Official accuracy of the first of each pair minus that of the second."""
    ours, theirs, problems = zip(*((a.official, b.official, a.problem) for a, b in pairs), strict=True)
    return statistics.paired(ours, theirs, problems)


def _overlap_record(items: Sequence[Item], shared: Shared) -> Overlap:
    """How many rows training has seen, and the accuracy on the others."""
    clean = [item for item in items if item.id not in shared.all_ids]
    return Overlap(
        train=shared.train,
        num_train_rows=shared.num_train_rows,
        **{sign: len(ids) for sign, ids in shared.ids.items()},
        num_clean_rows=len(clean),
        clean=accuracy_of(clean) if clean else None,
        ids=tuple(item.id for item in items if item.id in shared.all_ids),
    )


def compare_items(name: str, ours: Sequence[Item], theirs: Sequence[Item]) -> BenchmarkComparison:
    """Ours minus theirs on the rows that both have.

    Raises:
        EvaluationError: they share no row.
    """
    base = {item.id: item for item in theirs}
    pairs = [(item, base[item.id]) for item in ours if item.id in base]
    if not pairs:
        raise EvaluationError(f"{name}: the two reports share no row: evaluate both on the same data")
    return BenchmarkComparison(name=name, num_rows=len(pairs), **asdict(_paired(pairs)))
