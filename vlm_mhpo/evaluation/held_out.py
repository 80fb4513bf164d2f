"""Sample held-out prompts, verify, summarise: greedy accuracy or Avg@k with a 95 % interval.

Not covered: benchmark protocols and paired comparisons.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep import Row
from rewards import Item, Verifier
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.records.images import store_images
from vlm_mhpo.rollout.base import Sampler, SamplingParams
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.samples import asked_choices
from vlm_mhpo.types import Group

# Prompts that are built and sampled at a time: bounds the memory of their pixels.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class JudgedCompletion:
    """One completion with its verdict."""

    text: str
    verdict: str
    correct: bool
    extracted: str | None
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class JudgedItem:
    """One held-out row with its judged completions."""

    id: str
    problem: str
    gold: str
    num_images: int
    images: tuple[str, ...]
    source: str
    kind: str
    choices: tuple[str, ...] | None
    completions: tuple[JudgedCompletion, ...]

    @property
    def accuracy(self) -> float:
        """Share of correct completions."""
        return sum(completion.correct for completion in self.completions) / len(self.completions)


def evaluate(
    rows: Sequence[Row],
    builder: PromptBuilder,
    sampler: Sampler,
    verifier: Verifier,
    params: SamplingParams,
    *,
    template: str,
    seed: int,
    image_dir: Path | None = None,
    gallery: int = 0,
    together: Callable[[Callable[[], list[Group]]], list[Group]] = lambda sample: sample(),
) -> list[JudgedItem]:
    """Judge `params.num_samples` completions of every row; the same list, in row order, on all ranks.

    Args:
        rows: held-out rows; ranks share them.
        builder, sampler, verifier: how prompts are made, sampled, verified.
        params: decoding.
        template: response format that the answer is read from.
        seed: of the sampling, when it is not greedy.
        image_dir: run folder that pictures of the first `gallery` rows are stored under; None = none.
        gallery: number of such rows.
        together: calls what it is given, which samples; all ranks get here equally often.
    """
    rank, world = ranks.rank(), ranks.world_size()
    mine = list(range(rank, len(rows), world))
    judged: list[tuple[int, JudgedItem]] = []
    with progress(len(rows)) as advance:
        # ZeRO-3 gathers weights on every sampler call, so all ranks make the same number of calls.
        for start in range(0, -(-len(rows) // world), CHUNK):
            indices = mine[start : start + CHUNK]
            prompts = [builder(rows[index]) for index in indices]
            report = partial(count_rows, advance, world)
            groups = together(partial(sampler.sample, prompts, params, (seed, "eval"), report))
            for index, item in zip(indices, judge(groups, verifier, template), strict=True):
                judged.append((index, item))
            advance(0, [item.accuracy for _, item in judged])
    everything = sorted((pair for part in ranks.gather_objects(judged) for pair in part), key=lambda pair: pair[0])
    if image_dir is None or not ranks.is_main():
        return [item for _, item in everything]
    return [with_images(item, rows[index], image_dir) if index < gallery else item for index, item in everything]


def count_rows(advance: Callable[[int, list[float] | None], None], world: int, done: Sequence[Group]) -> None:
    """Move the bar by groups of this rank, as if all ranks were as far."""
    advance(len(done) * world, None)


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, list[float] | None], None]]:
    """A bar with the running accuracy on the main rank."""
    with tqdm(total=total, desc="evaluating", unit="row", disable=not ranks.is_main(), leave=False) as bar:

        def advance(count: int, accuracies: list[float] | None) -> None:
            bar.update(min(count, total - bar.n))
            if accuracies:
                bar.set_postfix(accuracy=f"{100 * sum(accuracies) / len(accuracies):.1f} %")

        yield advance


def judge(groups: Sequence[Group], verifier: Verifier, template: str) -> list[JudgedItem]:
    """Verify every completion."""
    items = []
    for group in groups:
        row = group.prompt.row
        for completion in group.completions:
            items.append(
                Item(completion.text, row.answer, template, row.kind, asked_choices(row), row.precision, row.unit)
            )
    scores = iter(verifier.score(items))
    judged = []
    for group in groups:
        row = group.prompt.row
        completions = tuple(
            JudgedCompletion(c.text, score.verdict.value, score.correct, score.extracted, len(c.token_ids), c.truncated)
            for c, score in ((c, next(scores)) for c in group.completions)
        )
        judged.append(
            JudgedItem(
                row.id, row.problem, row.answer, len(row.images), (), row.source, row.kind, row.choices, completions
            )
        )
    return judged


def with_images(item: JudgedItem, row: Row, image_dir: Path) -> JudgedItem:
    """The item with paths of stored copies of its pictures."""
    values = {name: getattr(item, name) for name in JudgedItem.__slots__}
    return JudgedItem(**{**values, "images": tuple(store_images(image_dir, row.images))})


def summarise(items: Sequence[JudgedItem], *, name: str, step: int, params: SamplingParams) -> dict:
    """The JSON record of an evaluation: accuracy with its interval, by source and kind, verdicts, every item."""
    accuracies = [item.accuracy for item in items]
    completions = [completion for item in items for completion in item.completions]
    low, high = interval(accuracies)
    return {
        "name": name,
        "step": step,
        "num_rows": len(items),
        "num_samples": params.num_samples,
        "temperature": params.temperature,
        "accuracy": sum(accuracies) / len(accuracies),
        "accuracy_low": low,
        "accuracy_high": high,
        "by_source": breakdown(items, lambda item: item.source),
        "by_kind": breakdown(items, lambda item: item.kind),
        "verdicts": dict(sorted(Counter(completion.verdict for completion in completions).items())),
        "mean_length": sum(completion.num_tokens for completion in completions) / len(completions),
        "clipped_ratio": sum(completion.truncated for completion in completions) / len(completions),
        "items": [asdict(item) for item in items],
    }


def interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: Wilson for right-or-wrong rows, else a bootstrap over rows (clustered by problem)."""
    import numpy as np
    from scipy import stats

    if all(value in (0.0, 1.0) for value in accuracies):
        low, high = stats.binomtest(int(sum(accuracies)), len(accuracies)).proportion_ci(0.95, method="wilson")
        return float(low), float(high)
    if len(accuracies) == 1:
        # One averaged row says nothing about the spread over rows.
        return 0.0, 1.0
    result = stats.bootstrap(
        (np.asarray(accuracies),), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def breakdown(items: Sequence[JudgedItem], key: Callable[[JudgedItem], str]) -> dict[str, dict]:
    """Rows and accuracy of each value of `key`."""
    groups: dict[str, list[float]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item.accuracy)
    return {name: {"num_rows": len(v), "accuracy": sum(v) / len(v)} for name, v in sorted(groups.items())}


def write_evaluation(folder: Path, record: dict) -> tuple[Path, Path]:
    """Write `NAME.json` and a Markdown table `NAME.md`; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file, markdown_file = folder / f"{record['name']}.json", folder / f"{record['name']}.md"
    json_file.write_text(json.dumps(record, indent=1))
    markdown_file.write_text(markdown(record))
    return json_file, markdown_file


def markdown(record: dict) -> str:
    """An evaluation record as a table."""
    decoding = "greedy" if record["temperature"] == 0 else f"Avg@{record['num_samples']} at T = {record['temperature']}"
    lines = [
        f"# Evaluation: {record['name']}",
        "",
        f"{record['num_rows']} rows, {decoding}, after step {record['step']}; mean length "
        f"{record['mean_length']:.1f} tokens, {100 * record['clipped_ratio']:.1f} % cut at the budget.",
        "",
        "| rows | accuracy | 95 % interval |",
        "| --- | --- | --- |",
        f"| all ({record['num_rows']}) | {100 * record['accuracy']:.1f} % | "
        f"{100 * record['accuracy_low']:.1f} to {100 * record['accuracy_high']:.1f} % |",
    ]
    for title in ("by_source", "by_kind"):
        lines += [
            f"| {title[3:]} {name} ({part['num_rows']}) | {100 * part['accuracy']:.1f} % | |"
            for name, part in record[title].items()
        ]
    verdicts = ", ".join(f"{name} {count}" for name, count in record["verdicts"].items())
    return "\n".join([*lines, "", f"Verdicts: {verdicts}.", ""])
