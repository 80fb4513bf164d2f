"""Judge rows under one condition, held-out ones or a benchmark's: in chunks, shared by the ranks, resumable.

A chunk is the unit of everything: what is sampled together, written together and done again after a kill. So neither
the number of ranks nor an interruption changes a batch of a report, and with it a score.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep import DataError, Row
from rewards import Item as Asked
from rewards import Score, Verifier
from vlm_mhpo.errors import EvaluationError, OutOfMemoryError, PromptError, VlmMhpoError
from vlm_mhpo.evaluation import shards
from vlm_mhpo.evaluation.benchmarks import Benchmark, Official
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.records.evaluation import Item, ItemCompletion
from vlm_mhpo.rollout.base import Sampler, SamplingParams
from vlm_mhpo.rollout.finite import all_finite
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.samples import asked_choices
from vlm_mhpo.types import Group

CHUNK_SIZE = 64

Together = Callable[[Callable[[], list[Group]]], list[Group]]


def at_once(sample: Callable[[], list[Group]]) -> list[Group]:
    """Sample, with nothing to do beside."""
    return sample()


@dataclass(frozen=True, slots=True)
class Judge:
    """What asks, samples and verifies.

    Attributes:
        builder: makes the prompts; of benchmarks, adding nothing to the official question.
        sampler, verifier: of the policy; ours.
        template: response format that our verifier reads.
        seed: of sampling.
        together: calls what it is given, which samples, and may give up; all ranks get there equally often.
    """

    builder: PromptBuilder
    sampler: Sampler
    verifier: Verifier
    template: str
    seed: int
    together: Together = at_once


@dataclass(frozen=True, slots=True)
class Task:
    """Rows under one condition.

    Attributes:
        name: of its files and its progress bar, such as "mathvista" or "mathvista.blank".
        benchmark: its rules; `held_out.HELD_OUT` for rows that our verifier decides.
        rows: as they are judged.
        asked: the same rows as the model sees them.
        params: decoding.
        stream: names the stream of random draws; () = that of a benchmark under its name.
    """

    name: str
    benchmark: Benchmark
    rows: Sequence[Row]
    asked: Sequence[Row]
    params: SamplingParams
    stream: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """Of its rows, in order."""
        return [row.id for row in self.rows]


def run_task(task: Task, judge: Judge, folder: Path, *, gallery: int = 0, chunk_size: int = CHUNK_SIZE) -> list[Item]:
    """Judge what is not judged yet, keep it in `folder/results/NAME.jsonl`, and return all rows in order.

    Args:
        task: what to judge; all ranks call with the same.
        judge: how.
        folder: of the report.
        gallery: rows, from the first, whose images are copied to `folder/images`.
        chunk_size: rows that are sampled and written together.

    Raises:
        EvaluationError: the records on disk are damaged, doubled or of other rows.
        PromptError: a row cannot be asked.
    """
    file, parts = folder / "results" / f"{task.name}.jsonl", folder / "parts" / task.name
    finished = on_main(lambda: None if file.is_file() else shards.recover(parts, task.ids, chunk_size))
    if finished is not None:
        own = parts / f"rank-{ranks.rank():04d}.jsonl"
        _judge_chunks(task, judge, lambda pairs: shards.append_chunk(own, pairs), finished, chunk_size)
        on_main(lambda: _merge(task, file, parts, folder, gallery))
    return shards.read_items(file, task.ids)


def _merge(task: Task, file: Path, parts: Path, folder: Path, gallery: int) -> None:
    """The ranks' files as one, with copies of the first images."""
    from vlm_mhpo.records.images import store_media

    items = [
        item.model_copy(update={"images": tuple(store_media(folder, row))}) if place < gallery else item
        for place, (item, row) in enumerate(zip(shards.merge(parts, task.ids), task.asked, strict=True))
    ]
    shards.write_items(file, items)
    shards.remove_parts(parts)


def judge_in_memory(task: Task, judge: Judge, *, chunk_size: int = CHUNK_SIZE) -> list[Item]:
    """All rows in order, judged without a trace on disk; the same on all ranks."""
    mine: list[tuple[int, Item]] = []
    _judge_chunks(task, judge, mine.extend, set(), chunk_size)
    pairs = [pair for part in ranks.gather_objects(mine) for pair in part]
    return [item for _, item in sorted(pairs, key=lambda pair: pair[0])]


def _judge_chunks(
    task: Task,
    judge: Judge,
    keep: Callable[[list[tuple[int, Item]]], None],
    finished: Collection[int],
    chunk_size: int,
) -> None:
    """Judge this rank's share of the chunks that are not finished, and hand each over as soon as it is there."""
    num_rows, world = len(task.rows), ranks.world_size()
    chunks = [range(start, min(num_rows, start + chunk_size)) for start in range(0, num_rows, chunk_size)]
    open_chunks = [chunk for number, chunk in enumerate(chunks) if number not in finished]
    seen = start_at = num_rows - sum(map(len, open_chunks))
    right = 0.0
    with tqdm(
        total=num_rows, initial=start_at, desc=task.name, unit="row", disable=not ranks.is_main(), leave=False
    ) as bar:
        # All ranks make the same number of rounds: whole weights (ZeRO-3) are gathered by all or none.
        for start in range(0, len(open_chunks), world):
            mine = open_chunks[start : start + world][ranks.rank() : ranks.rank() + 1]
            places = [place for chunk in mine for place in chunk]
            items = judge_rows(task, judge, places, partial(_advance, bar, world))
            if items:
                keep(list(zip(places, items, strict=True)))
            for official, count in ranks.gather_objects((sum(item.official for item in items), len(items))):
                right, seen = right + official, seen + count
            bar.update(seen - bar.n)
            bar.set_postfix(accuracy=f"{100 * right / (seen - start_at):.1f} %", refresh=False)


def _advance(bar: tqdm, world: int, groups: Sequence[Group]) -> None:
    """Move the bar by groups of this rank, as if all ranks were as far."""
    bar.update(min(len(groups) * world, bar.total - bar.n))


def judge_rows(
    task: Task,
    judge: Judge,
    places: Sequence[int],
    on_groups: Callable[[Sequence[Group]], None] | None = None,
) -> list[Item]:
    """Ask, sample and judge the rows at `places`.

    Raises:
        PromptError: on all ranks, when one cannot ask a row of its own; NonFiniteGroups: see `finite.all_finite`.
    """
    prompts, error = [], None
    try:
        prompts = [judge.builder(task.asked[place]) for place in places]
    except PromptError as problem:
        error = problem
    except DataError as problem:
        error = PromptError(str(problem))
    ranks.raise_together(error)
    seed_parts = (judge.seed, *(task.stream or ("benchmark", task.name)))
    try:
        groups = judge.together(partial(judge.sampler.sample, prompts, task.params, seed_parts, on_groups))
    except OutOfMemoryError as problem:
        raise OutOfMemoryError(f"evaluation of {task.name}: {problem}") from problem
    groups = all_finite(groups)
    return _judge_groups(task, judge, [task.rows[place] for place in places], groups)


def verify_groups(
    rows: Sequence[Row], groups: Sequence[Group], verifier: Verifier, template: str
) -> list[tuple[Score, ...]]:
    """Our verdict on every completion of each group; one row per group, as it is judged."""
    scores = iter(
        verifier.score(
            [
                Asked(
                    c.text,
                    row.gold,
                    template,
                    row.kind,
                    asked_choices(row),
                    row.precision,
                    row.unit,
                    group.prompt.opens,
                )
                for row, group in zip(rows, groups, strict=True)
                for c in group.completions
            ]
        )
    )
    return [tuple(next(scores) for _ in group.completions) for group in groups]


def _judge_groups(task: Task, judge: Judge, rows: Sequence[Row], groups: Sequence[Group]) -> list[Item]:
    """The records of rows, without images: the verdict of the benchmark's rule and ours on every completion."""
    rule = task.benchmark.official
    items = []
    verdicts = verify_groups(rows, groups, judge.verifier, judge.template)
    for row, group, scores in zip(rows, groups, verdicts, strict=True):
        completions = []
        for completion, score in zip(group.completions, scores, strict=True):
            official = rule(row, completion.text) if rule else Official(score.correct, score.extracted)
            completions.append(
                ItemCompletion(
                    text=completion.text,
                    official=official.correct,
                    extracted=official.extracted,
                    verdict=score.verdict.value,
                    correct=score.correct,
                    num_tokens=len(completion.token_ids),
                    truncated=completion.truncated,
                    by_worker=score.by_worker,
                )
            )
        items.append(_to_item(task.benchmark, row, completions))
    return items


def _to_item(benchmark: Benchmark, row: Row, completions: Sequence[ItemCompletion]) -> Item:
    """A row's record, without images."""
    return Item(
        id=row.id,
        problem=benchmark.problem(row),
        question=row.conversation,
        choices=row.choices,
        gold=row.answer,
        equivalent_answers=row.equivalent_answers,
        kind=row.kind,
        images=(),
        categories=dict(benchmark.categories(row)),
        completions=tuple(completions),
    )


def on_main(work: Callable[[], object]) -> object:
    """What `work` returns on the main rank, on all ranks; its error too."""
    value, error = None, None
    if ranks.is_main():
        try:
            value = work()
        except VlmMhpoError as problem:
            error = problem
        except DataError as problem:
            error = EvaluationError(str(problem))
    ranks.raise_together(error)
    return ranks.gather_objects(value)[0]
