"""Judge the rows of one benchmark under one condition: chunks of rows, shared by the ranks, resumable.

A chunk is the unit of everything: what is sampled together, written together and done again after a kill. So neither
the number of ranks nor an interruption changes a batch, and with it a score.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep import DataError, Row
from rewards import Item as Asked
from rewards import Verifier
from vlm_mhpo.errors import EvaluationError, PromptError, VlmMhpoError
from vlm_mhpo.evaluation import shards
from vlm_mhpo.evaluation.benchmarks import Benchmark
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.records.evaluation import Item, ItemCompletion
from vlm_mhpo.rollout.base import Sampler, SamplingParams
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.samples import asked_choices
from vlm_mhpo.types import Group

CHUNK_SIZE = 64


Together = Callable[[Callable[[], list[Group]]], list[Group]]


def at_once(sample: Callable[[], list[Group]]) -> list[Group]:
    """Sample, with nothing to do beside."""
    return sample()


@dataclass(frozen=True, slots=True)
class Examiner:
    """What asks, samples and verifies.

    Attributes:
        builder: makes the prompts, adding nothing to the official question.
        sampler, verifier: of the policy; ours.
        template: response format that our verifier reads.
        seed: of sampling.
        together: calls what it is given, which samples; all ranks get there equally often.
    """

    builder: PromptBuilder
    sampler: Sampler
    verifier: Verifier
    template: str
    seed: int
    together: Together = at_once


@dataclass(frozen=True, slots=True)
class Task:
    """The rows of a benchmark under one condition.

    Attributes:
        name: of its files, such as "mathvista" or "mathvista.blank".
        benchmark: its rules.
        rows: as they are judged.
        asked: the same rows as the model sees them.
        params: decoding.
    """

    name: str
    benchmark: Benchmark
    rows: tuple[Row, ...]
    asked: tuple[Row, ...]
    params: SamplingParams

    @property
    def ids(self) -> list[str]:
        """Of its rows, in order."""
        return [row.id for row in self.rows]


def run_task(
    task: Task, examiner: Examiner, folder: Path, *, gallery: int = 0, chunk_size: int = CHUNK_SIZE
) -> list[Item]:
    """Judge what is not judged yet, keep it in `folder/results/NAME.jsonl`, and return all rows in order.

    Args:
        task: what to judge; all ranks call with the same.
        examiner: how.
        folder: of the report.
        gallery: rows, from the first, whose pictures are copied to `folder/images`.
        chunk_size: rows that are sampled and written together.

    Raises:
        EvaluationError: the records on disk are damaged, doubled or of other rows.
        PromptError: a row cannot be asked.
    """
    file, parts = folder / "results" / f"{task.name}.jsonl", folder / "parts" / task.name
    finished = on_main(lambda: None if file.is_file() else shards.recover(parts, task.ids, chunk_size))
    if finished is not None:
        own = parts / f"rank-{ranks.rank():04d}.jsonl"
        judge_chunks(task, examiner, lambda pairs: shards.append_chunk(own, pairs), finished, chunk_size)
        on_main(lambda: merge(task, file, parts, folder, gallery))
    return shards.read_items(file, task.ids)


def merge(task: Task, file: Path, parts: Path, folder: Path, gallery: int) -> None:
    """The ranks' files as one, with copies of the first pictures."""
    from vlm_mhpo.records.images import store_images

    items = [
        item.model_copy(update={"images": tuple(store_images(folder, row.images))}) if place < gallery else item
        for place, (item, row) in enumerate(zip(shards.merge(parts, task.ids), task.asked, strict=True))
    ]
    shards.write_items(file, items)
    shards.remove_parts(parts)


def judge_in_memory(task: Task, examiner: Examiner, *, chunk_size: int = CHUNK_SIZE) -> list[Item]:
    """All rows in order, judged without a trace on disk; the same on all ranks."""
    mine: list[tuple[int, Item]] = []
    judge_chunks(task, examiner, mine.extend, set(), chunk_size)
    pairs = [pair for part in ranks.gather_objects(mine) for pair in part]
    return [item for _, item in sorted(pairs, key=lambda pair: pair[0])]


def judge_chunks(
    task: Task,
    examiner: Examiner,
    keep: Callable[[list[tuple[int, Item]]], None],
    finished: Collection[int],
    chunk_size: int,
) -> None:
    """Judge this rank's share of the chunks that are not finished, and hand each over as soon as it is there."""
    num_rows, world = len(task.rows), ranks.world_size()
    open_chunks = [chunk for chunk in range(-(-num_rows // chunk_size)) if chunk not in finished]
    num_open = sum(min(num_rows, (chunk + 1) * chunk_size) - chunk * chunk_size for chunk in open_chunks)
    with tqdm(
        total=num_rows,
        initial=num_rows - num_open,
        desc=task.name,
        unit="row",
        disable=not ranks.is_main(),
        leave=False,
    ) as bar:
        right = seen = 0.0
        # All ranks make the same number of rounds: whole weights (ZeRO-3) are gathered by all or none.
        for start in range(0, len(open_chunks), world):
            mine = open_chunks[start : start + world][ranks.rank() : ranks.rank() + 1]
            places = [row for chunk in mine for row in range(num_rows)[chunk * chunk_size : (chunk + 1) * chunk_size]]
            items = judge_rows(task, examiner, places)
            if items:
                keep(list(zip(places, items, strict=True)))
            for official, count in ranks.gather_objects((sum(item.official for item in items), len(items))):
                right, seen = right + official, seen + count
                bar.update(count)
            bar.set_postfix(accuracy=f"{100 * right / seen:.1f} %", refresh=False)


def judge_rows(task: Task, examiner: Examiner, places: Sequence[int]) -> list[Item]:
    """Ask, sample and judge the rows at `places`; PromptError on all ranks when one cannot ask a row of its own."""
    prompts, error = [], None
    try:
        prompts = [examiner.builder(task.asked[place]) for place in places]
    except PromptError as problem:
        error = problem
    except DataError as problem:
        error = PromptError(str(problem))
    ranks.raise_together(error)
    parts = (examiner.seed, "benchmark", task.name)
    groups = examiner.together(partial(examiner.sampler.sample, prompts, task.params, parts))
    return judge_groups(task, examiner, [task.rows[place] for place in places], groups)


def judge_groups(task: Task, examiner: Examiner, rows: Sequence[Row], groups: Sequence[Group]) -> list[Item]:
    """Both verdicts of every completion."""
    pairs = [(row, completion) for row, group in zip(rows, groups, strict=True) for completion in group.completions]
    scores = examiner.verifier.score(
        [
            Asked(c.text, row.answer, examiner.template, row.kind, asked_choices(row), row.precision, row.unit)
            for row, c in pairs
        ]
    )
    judged = []
    for (row, completion), score in zip(pairs, scores, strict=True):
        official = task.benchmark.official(row, completion.text)
        judged.append(
            ItemCompletion(
                text=completion.text,
                official=official.correct,
                extracted=official.extracted,
                verdict=score.verdict.value,
                correct=score.correct,
                num_tokens=len(completion.token_ids),
                truncated=completion.truncated,
            )
        )
    size = task.params.num_samples
    return [to_item(task.benchmark, row, judged[index * size : (index + 1) * size]) for index, row in enumerate(rows)]


def to_item(benchmark: Benchmark, row: Row, completions: Sequence[ItemCompletion]) -> Item:
    """A row's record, without pictures."""
    return Item(
        id=row.id,
        problem=benchmark.problem(row),
        question=row.problem,
        choices=row.choices,
        gold=row.answer,
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
