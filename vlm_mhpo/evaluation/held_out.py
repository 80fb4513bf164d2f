"""Held-out rows (`data.eval`): a task whose rule is our verifier; recorded in eval/NAME.json, as a table in NAME.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks import Benchmark
from vlm_mhpo.evaluation.tasks import Judge, Task, judge_in_memory
from vlm_mhpo.pages.tables import markdown_table
from vlm_mhpo.records import statistics
from vlm_mhpo.records.evaluation import Breakdown, EvalCompletion, EvalItem, Evaluation, Item
from vlm_mhpo.records.images import store_media
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.runtime import ranks

# Rows that are built and sampled at a time: bounds the memory of their pixels.
CHUNK_SIZE = 256

HELD_OUT = Benchmark(
    name="held-out",
    title="Held-out rows",
    citation="",
    splits=(),
    sources=(),
    download="",
    prompt=lambda row: row.problem,
    official=None,
    categories=lambda row: {"source": row.source, "kind": row.kind},
)


def judge_held_out(
    rows: Sequence[Row],
    judge: Judge,
    params: SamplingParams,
    *,
    name: str,
    step: int | None,
    image_dir: Path | None = None,
    gallery: int = 0,
) -> Evaluation:
    """Judge `params.num_samples` completions of every row; the same record on all ranks but for the paths of images.

    Args:
        rows: at least one; ranks share them.
        judge: asks as training does.
        params: decoding.
        name, step: of the record; finished training steps, None for a model that is of no step of this run.
        image_dir: run folder that the main rank stores images of the first `gallery` rows under; None = none.
        gallery: number of such rows.

    Raises:
        PromptError: a row cannot be asked.
        Whatever `judge.together` gives up with.
    """
    task = Task(HELD_OUT.name, HELD_OUT, rows, rows, params, stream=("eval",))
    chunk_size = max(1, min(CHUNK_SIZE, -(-len(rows) // ranks.world_size())))
    found = judge_in_memory(task, judge, chunk_size=chunk_size)
    kept = gallery if image_dir is not None and ranks.is_main() else 0
    items = [
        _to_eval_item(item, len(row.images) + len(row.videos), store_media(image_dir, row) if place < kept else ())
        for place, (item, row) in enumerate(zip(found, rows, strict=True))
    ]
    return summarise(items, name=name, step=step, params=params)


def _to_eval_item(item: Item, num_images: int, images: Sequence[str]) -> EvalItem:
    """The record of one row in eval/NAME.json."""
    return EvalItem(
        id=item.id,
        problem=item.question,
        gold=item.gold,
        equivalent_answers=item.equivalent_answers,
        num_images=num_images,
        images=tuple(images),
        source=item.categories["source"],
        kind=item.kind,
        choices=item.choices,
        completions=tuple(EvalCompletion(**one.model_dump(exclude={"official", "judge"})) for one in item.completions),
    )


def summarise(items: Sequence[EvalItem], *, name: str, step: int | None, params: SamplingParams) -> Evaluation:
    """The record of an evaluation: accuracy with its interval, by source and kind, verdicts, every item."""
    completions = [completion for item in items for completion in item.completions]
    found = statistics.accuracy([item.share_correct for item in items], [item.id for item in items])
    return Evaluation(
        name=name,
        step=step,
        num_rows=len(items),
        num_samples=params.num_samples,
        temperature=params.temperature,
        accuracy=found.mean,
        accuracy_low=found.low,
        accuracy_high=found.high,
        by_source=_breakdown(items, lambda item: item.source),
        by_kind=_breakdown(items, lambda item: item.kind),
        verdicts=dict(sorted(Counter(completion.verdict for completion in completions).items())),
        by_worker=sum(completion.by_worker for completion in completions) / len(completions),
        mean_length=sum(completion.num_tokens for completion in completions) / len(completions),
        clipped_ratio=sum(completion.truncated for completion in completions) / len(completions),
        items=tuple(items),
    )


def _breakdown(items: Sequence[EvalItem], key: Callable[[EvalItem], str]) -> dict[str, Breakdown]:
    """Rows and accuracy of each value of `key`, in the order of the values."""
    groups: dict[str, list[float]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item.share_correct)
    return {name: Breakdown(num_rows=len(v), accuracy=sum(v) / len(v)) for name, v in sorted(groups.items())}


def write_evaluation(folder: Path, record: Evaluation) -> tuple[Path, Path]:
    """Write `NAME.json` and a Markdown table `NAME.md`; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file, markdown_file = folder / f"{record.name}.json", folder / f"{record.name}.md"
    json_file.write_text(json.dumps(record.model_dump(), indent=1))
    markdown_file.write_text(_markdown(record))
    return json_file, markdown_file


def _markdown(record: Evaluation) -> str:
    """An evaluation record as a table."""
    decoding = "greedy" if record.temperature == 0 else f"Avg@{record.num_samples} at T = {record.temperature}"
    interval = f"{100 * record.accuracy_low:.1f} to {100 * record.accuracy_high:.1f} %"
    rows = [(f"all ({record.num_rows})", f"{100 * record.accuracy:.1f} %", interval)]
    rows += [
        (f"{title} {name} ({part.num_rows})", f"{100 * part.accuracy:.1f} %", "")
        for title, parts in (("source", record.by_source), ("kind", record.by_kind))
        for name, part in parts.items()
    ]
    verdicts = ", ".join(f"{name} {count}" for name, count in record.verdicts.items())
    when = "a model of no step of this run" if record.step is None else f"after step {record.step}"
    paragraphs = [
        f"# Evaluation: {record.name}",
        f"{record.num_rows} rows, {decoding}, {when}; mean length {record.mean_length:.1f} tokens, "
        f"{100 * record.clipped_ratio:.1f} % cut at the budget.",
        markdown_table(("rows", "accuracy", "95 % interval"), rows),
        f"Verdicts: {verdicts}; {100 * record.by_worker:.1f} % by a worker process.",
    ]
    return "\n\n".join(paragraphs) + "\n"
