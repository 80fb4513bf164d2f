"""What a study compares: the measures of finished runs, their means over seeds, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_mhpo.records.metric_table import ENTROPY, EVAL_ACCURACY, REWARD, SKIPPED
from vlm_mhpo.records.norms import count_spikes, percentile
from vlm_mhpo.records.statistics import Estimate, over_runs

# A run whose final accuracy is this much below its start has collapsed.
COLLAPSE_POINTS = 0.10


@dataclass(frozen=True, slots=True)
class RunMeasures:
    """One run.

    Attributes:
        accuracy_before, accuracy: held-out accuracy of the first and last evaluation, 0 to 1.
        area: mean of the learning curve of held-out accuracy over the steps (trapezoids), 0 to 1.
        norm_ratio: 99th over 50th percentile of the gradient norms before clipping.
        norm_median: their median.
        num_spikes: norms above 5 times the running median.
        clipped_share: share of updates whose norm exceeded max_grad_norm.
        drift: nats per token, mean over steps of KL to the sampling policy at the last update of a rollout batch.
        entropy: nats per token, mean of the last tenth of the steps.
        collapsed: 1.0 when the accuracy ended 10 points or more below its start, or updates were skipped.
        curve: (step, held-out accuracy) of every evaluation.
    """

    accuracy_before: float
    accuracy: float
    area: float
    norm_ratio: float
    norm_median: float
    num_spikes: float
    clipped_share: float
    drift: float
    entropy: float
    collapsed: float
    curve: tuple[tuple[int, float], ...]


MEASURES = {
    "accuracy": "final held-out accuracy",
    "area": "area under the learning curve",
    "norm_ratio": "gradient norm p99 / p50",
    "num_spikes": "gradient spikes",
    "clipped_share": "share of clipped updates",
    "collapsed": "share of collapsed runs",
    "drift": "KL to the sampling policy at the end of a batch",
    "entropy": "final entropy",
}

# Measures by variant and seed, and estimates by variant and measure.
Runs = Mapping[str, Mapping[int, RunMeasures]]
Table = Mapping[str, Mapping[str, Estimate]]


def measure(run_dir: Path) -> RunMeasures:
    """Read the measures off a finished run folder."""
    rows = _read_lines(run_dir / "metrics.jsonl")
    updates = _read_lines(run_dir / "updates.jsonl")
    max_grad_norm = json.loads((run_dir / "run.json").read_text())["config"]["train"]["max_grad_norm"]
    norms = [norm for update in updates for norm in update["grad_norm"]]
    middle = percentile(norms, 0.5) if norms else float("nan")
    curve = tuple((row["step"], row[EVAL_ACCURACY.name]) for row in rows if EVAL_ACCURACY.name in row)
    trained = [row for row in rows if REWARD.name in row]
    drifts = [update["kl_to_sampler"][-1] for update in updates if update["kl_to_sampler"]]
    entropies = [row[ENTROPY.name] for row in trained[-max(1, len(trained) // 10) :] if ENTROPY.name in row]
    skipped = sum(row[SKIPPED.name] for row in trained)
    return RunMeasures(
        accuracy_before=curve[0][1],
        accuracy=curve[-1][1],
        area=area_under(curve),
        # A median of 0 (most updates had no advantage to learn from) is no scale to compare with.
        norm_ratio=percentile(norms, 0.99) / middle if middle > 0 else float("nan"),
        norm_median=middle,
        num_spikes=float(count_spikes(norms)),
        clipped_share=sum(norm > max_grad_norm for norm in norms) / len(norms) if norms else float("nan"),
        drift=sum(drifts) / len(drifts) if drifts else float("nan"),
        entropy=sum(entropies) / len(entropies) if entropies else float("nan"),
        collapsed=float(round(curve[0][1] - curve[-1][1], 9) >= COLLAPSE_POINTS or skipped > 0),
        curve=curve,
    )


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def area_under(curve: tuple[tuple[int, float], ...]) -> float:
    """Mean height of a piecewise linear curve; the value itself for one point."""
    if len(curve) == 1:
        return curve[0][1]
    steps, heights = zip(*curve, strict=True)
    return float(np.trapezoid(heights, steps) / (steps[-1] - steps[0]))


def means(runs: Runs) -> Table:
    """Mean of every measure of every variant over its seeds, with Student's interval."""
    return {
        variant: {name: over_runs([getattr(run, name) for run in by_seed.values()]) for name in MEASURES}
        for variant, by_seed in runs.items()
    }


def differences(runs: Runs, baseline: str) -> Table:
    """Paired differences, variant minus baseline on the same seed, of every measure, with Student's interval."""
    base = runs[baseline]
    return {
        variant: {
            name: over_runs(
                [getattr(by_seed[seed], name) - getattr(base[seed], name) for seed in by_seed if seed in base]
            )
            for name in MEASURES
        }
        for variant, by_seed in runs.items()
        if variant != baseline
    }
