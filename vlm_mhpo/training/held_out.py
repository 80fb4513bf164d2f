"""Benchmarks while a run trains, and when to stop because a metric no longer improves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from tqdm import tqdm

from rewards import Verifier
from vlm_mhpo.config import Config
from vlm_mhpo.evaluation.benchmark_run import benchmark_judge
from vlm_mhpo.evaluation.held_out import held_out_params, judge_held_out, write_evaluation
from vlm_mhpo.evaluation.results import accuracy_of
from vlm_mhpo.evaluation.tasks import Judge, Task, Together, at_once, judge_in_memory
from vlm_mhpo.faults.guard import Guard
from vlm_mhpo.faults.stopping import Interrupted
from vlm_mhpo.records.evaluation import Evaluation
from vlm_mhpo.records.recorder import Recorder
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.assembly import Setup
from vlm_mhpo.training.guarded import leave_before


def benchmark_metrics(setup: Setup, verifier: Verifier, step: int, together: Together = at_once) -> dict[str, float]:
    """eval/NAME/accuracy (official) and eval/NAME/our_accuracy after `step` steps, on all ranks; {} when not due.

    Args:
        setup, verifier: the run and what verifies its completions.
        step: finished steps.
        together: calls what it is given, which samples; all ranks get there equally often.
    """
    if not (setup.benchmarks and is_due(setup.config, step)):
        return {}
    config = setup.config
    family, sampler = setup.policy.family, setup.sampler
    judge = benchmark_judge(config.eval, config.data, setup.codec, family, sampler, verifier, together)
    params = held_out_params(config.eval, config.rollout)
    metrics = {}
    for one in setup.benchmarks:
        items = judge_in_memory(Task(one.name, one.benchmark, one.rows, one.asked, params), judge)
        metrics[f"eval/{one.name}/accuracy"] = accuracy_of(items).accuracy
        metrics[f"eval/{one.name}/our_accuracy"] = accuracy_of(items, official=False).accuracy
    return metrics


def is_due(config: Config, step: int) -> bool:
    """Whether the policy is evaluated after `step` steps."""
    if step == 0:
        return config.eval.before
    return step == config.train.max_steps or bool(config.eval.every and step % config.eval.every == 0)


def stops_early(setup: Setup, metrics: Mapping[str, float], step: int) -> bool:
    """Whether `eval.early_stop` ends the run after `step` steps; the same on all ranks.

    Args:
        setup: the run; the values up to now are read from its metrics.jsonl, so a continued run decides alike.
        metrics: row of this step, if it is not in the file yet.
        step: finished steps.
    """
    rule = setup.config.eval.early_stop
    if rule is None or step == setup.config.train.max_steps or not is_due(setup.config, step):
        return False
    stops = False
    if ranks.is_main():
        file = setup.run_dir / "metrics.jsonl"
        rows = [*map(json.loads, file.read_text().splitlines() if file.is_file() else []), metrics]
        values = [row[rule.metric] for row in rows if rule.metric in row]
        stops = no_longer_improves(values, rule.patience)
        if stops:
            tqdm.write(f"step {step}: {rule.metric} has no new best in {rule.patience} evaluations: the run ends here")
    return ranks.gather_objects(stops)[0]


def no_longer_improves(values: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` values are all no higher than the best before them."""
    return len(values) > patience and max(values[-patience:]) <= max(values[:-patience])


def evaluate_at_start(setup: Setup, guard: Guard, verifier: Verifier, recorder: Recorder | None, start: int) -> None:
    """The evaluation before the first step, or the one after step `start` if a stop cut it off."""
    if start == 0:
        if not setup.config.eval.before:
            return
        guard.watchdog.enter("evaluate", 0)
        try:
            record = run_evaluation(setup, guard, verifier, name="before", step=0)
            metrics = evaluation_metrics(record) | benchmark_metrics(setup, verifier, 0, guard.stop.sample)
        except Interrupted:
            leave_before(setup, guard, 0, 0)
        if recorder and metrics:
            recorder.write_metrics(0, metrics)
        return
    sought = "eval/accuracy" if setup.eval_rows else next((f"eval/{b.name}/accuracy" for b in setup.benchmarks), None)
    # Only the main rank reads the records.
    if sought and ranks.largest(int(recorder is not None and recorder.lacks(start, sought))):
        metrics = evaluate_if_due(setup, guard, verifier, start)
        if recorder and metrics:
            recorder.amend(start, metrics)


def evaluate_if_due(setup: Setup, guard: Guard, verifier: Verifier, step: int) -> dict[str, float]:
    """Metrics of the evaluation after `step`; the one after the last step is kept as eval/after.json.

    {} when none is due, or when it was given up because of a stop: the run makes up for it when it continues.
    """
    config = setup.config
    last, every = step == config.train.max_steps, config.eval.every
    if not (last or (every and step % every == 0)):
        return {}
    guard.watchdog.enter("evaluate", step)
    try:
        record = run_evaluation(setup, guard, verifier, name="after" if last else f"step_{step}", step=step, keep=last)
        return evaluation_metrics(record) | benchmark_metrics(setup, verifier, step, guard.stop.sample)
    except Interrupted:
        return {}


def ends_early(setup: Setup, guard: Guard, verifier: Verifier, metrics: dict[str, float], step: int) -> bool:
    """Whether `eval.early_stop` ends the run after `step`; then its evaluation is kept as eval/after.json."""
    if not stops_early(setup, metrics, step):
        return False
    with suppress(Interrupted):
        run_evaluation(setup, guard, verifier, name="after", step=step)
    return True


def run_evaluation(
    setup: Setup, guard: Guard, verifier: Verifier, *, name: str, step: int, keep: bool = True
) -> Evaluation | None:
    """Evaluate the policy on the held-out rows; with `keep`, write eval/NAME.json and .md. None without such rows.

    Raises:
        Interrupted: on all ranks, when one was asked to stop.
    """
    if not setup.eval_rows:
        return None
    config = setup.config
    record = judge_held_out(
        setup.eval_rows,
        Judge(setup.builder, setup.sampler, verifier, config.data.template, config.seed, guard.stop.sample),
        held_out_params(config.eval, config.rollout),
        name=name,
        step=step,
        image_dir=setup.run_dir if keep else None,
        gallery=config.eval.gallery,
    )
    if keep and ranks.is_main():
        write_evaluation(setup.run_dir / "eval", record)
    return record


def evaluation_metrics(record: Evaluation | None) -> dict[str, float]:
    """The row of metrics.jsonl of an evaluation."""
    if not record:
        return {}
    metrics = {"eval/accuracy": record.accuracy, "eval/mean_length": record.mean_length}
    return metrics | {f"eval/{source}/accuracy": part.accuracy for source, part in record.by_source.items()}
