"""Benchmarks while a run trains, and when to stop because a metric no longer improves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards import Verifier
from vlm_mhpo import distributed
from vlm_mhpo.config import Config
from vlm_mhpo.evaluation.benchmark_run import examiner_of
from vlm_mhpo.evaluation.chosen import Chosen, choose
from vlm_mhpo.evaluation.results import accuracy_of
from vlm_mhpo.evaluation.standalone import evaluation_params
from vlm_mhpo.evaluation.tasks import Task, judge_in_memory
from vlm_mhpo.setup import Setup


def chosen_benchmarks(config: Config) -> list[Chosen]:
    """The benchmarks of `eval.benchmarks` with their rows; read once, before the first step."""
    return choose(
        config.eval.benchmarks,
        folder=Path(config.eval.benchmark_dir),
        limit=config.eval.max_benchmark_rows,
        prompt=config.eval.prompt,
    )


def is_due(config: Config, step: int) -> bool:
    """Whether the policy is evaluated after `step` steps."""
    if step == 0:
        return config.eval.before
    return step == config.train.max_steps or bool(config.eval.every and step % config.eval.every == 0)


def benchmark_metrics(setup: Setup, chosen: Sequence[Chosen], verifier: Verifier, step: int) -> dict[str, float]:
    """eval/NAME/accuracy (official) and eval/NAME/our_accuracy after `step` steps; {} when no evaluation is due."""
    if not is_due(setup.config, step):
        return {}
    examiner = examiner_of(setup.config, setup.tools, setup.policy.family, setup.sampler, verifier)
    params = evaluation_params(setup.config)
    metrics = {}
    for one in chosen:
        task = Task(one.name, one.benchmark, one.rows, one.asked, params)
        items = judge_in_memory(task, examiner)
        metrics[f"eval/{one.name}/accuracy"] = accuracy_of(items).accuracy
        metrics[f"eval/{one.name}/our_accuracy"] = accuracy_of(items, official=False).accuracy
    return metrics


def past_values(setup: Setup) -> list[float]:
    """The values of `eval.early_stop.metric` that the run's metrics.jsonl holds; the same on all ranks."""
    rule, file = setup.config.eval.early_stop, setup.run_dir / "metrics.jsonl"
    values: list[float] = []
    if rule and distributed.is_main() and file.is_file():
        values = [
            value for line in file.read_text().splitlines() for value in new_values(setup.config, json.loads(line))
        ]
    return distributed.gather_objects(values)[0]


def new_values(config: Config, metrics: Mapping[str, float]) -> list[float]:
    """The value of `eval.early_stop.metric` in a row of metrics, if it is there."""
    rule = config.eval.early_stop
    return [metrics[rule.metric]] if rule and rule.metric in metrics else []


def no_longer_improves(config: Config, values: Sequence[float]) -> bool:
    """Whether the last `eval.early_stop.patience` values are all no higher than the best before them."""
    rule = config.eval.early_stop
    if not rule or len(values) <= rule.patience:
        return False
    return max(values[-rule.patience :]) <= max(values[: -rule.patience])
