"""Benchmarks while a run trains, and when to stop because a metric no longer improves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tqdm import tqdm

from rewards import Verifier
from vlm_mhpo.config import Config
from vlm_mhpo.evaluation.benchmark_run import examiner_of
from vlm_mhpo.evaluation.results import accuracy_of
from vlm_mhpo.evaluation.standalone import evaluation_params
from vlm_mhpo.evaluation.tasks import Task, Together, at_once, judge_in_memory
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.assembly import Setup


def benchmark_metrics(setup: Setup, verifier: Verifier, step: int, together: Together = at_once) -> dict[str, float]:
    """eval/NAME/accuracy (official) and eval/NAME/our_accuracy after `step` steps, on all ranks; {} when not due.

    Args:
        setup, verifier: the run and what verifies its completions.
        step: finished steps.
        together: calls what it is given, which samples; all ranks get there equally often.
    """
    if not (setup.benchmarks and is_due(setup.config, step)):
        return {}
    examiner = examiner_of(setup.config, setup.tools, setup.policy.family, setup.sampler, verifier)
    examiner = replace(examiner, together=together)
    metrics = {}
    for one in setup.benchmarks:
        items = judge_in_memory(
            Task(one.name, one.benchmark, one.rows, one.asked, evaluation_params(setup.config)), examiner
        )
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
