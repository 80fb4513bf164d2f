"""Metrics of the ranks become global ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from vlm_mhpo.runtime.ranks import device, reduce


def reduce_metrics(metrics: dict[str, Tensor], count: Tensor) -> dict[str, float]:
    """Global statistics of per-rank metrics, in three collectives however many there are.

    Args:
        metrics: `sum/NAME` is divided by the global `count`; `part/NAME` by `whole/NAME` (0/0 = left out);
            `min/NAME`, `max/NAME` are extremes; `add/NAME` is a plain sum. [] tensors.
        count: [] number of things that the `sum/` entries run over on this rank.

    Returns:
        NAME to value, in sorted order.
    """
    groups = {
        kind: sorted(key for key in metrics if key.split("/", 1)[0] in kinds) for kind, kinds in REDUCTIONS.items()
    }
    target = device()

    def stacked(kind: str, extra: Iterable[Tensor] = ()) -> Tensor:
        values = [*(metrics[key] for key in groups[kind]), *extra]
        return torch.stack([value.detach().to(target, torch.float64) for value in values]) if values else torch.zeros(0)

    sums = reduce(stacked("sum", [count]), dist.ReduceOp.SUM).tolist()
    lows = reduce(stacked("min"), dist.ReduceOp.MIN).tolist() if groups["min"] else []
    highs = reduce(stacked("max"), dist.ReduceOp.MAX).tolist() if groups["max"] else []
    total = sums.pop()
    if total == 0:
        # No token anywhere: the extremes are those of an empty set, infinite.
        lows, highs = [], []
        groups |= {"min": [], "max": []}
    raw = dict(zip(groups["sum"], sums, strict=True))
    result = {
        key.split("/", 1)[1]: value
        for keys, values in ((groups["min"], lows), (groups["max"], highs))
        for key, value in zip(keys, values, strict=True)
    }
    for key, value in raw.items():
        kind, name = key.split("/", 1)
        if kind == "sum" and total > 0:
            result[name] = value / total
        elif kind == "add":
            result[name] = value
        elif kind == "part" and raw[f"whole/{name}"] > 0:
            result[name] = value / raw[f"whole/{name}"]
    return dict(sorted(result.items()))


REDUCTIONS = {"sum": ("sum", "part", "whole", "add"), "min": ("min",), "max": ("max",)}
