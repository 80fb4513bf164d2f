"""Metrics of micro-batches and ranks become global ones; `metric_table` says what each is.

A tensor is named KIND/NAME, so that a loss, a user's own included, says with the name how it is reduced: `sum/NAME` is
divided by the global number of tokens, `part/NAME` by `whole/NAME` (0/0 is left out), `min/NAME` and `max/NAME` are
extremes, `add/NAME` is a plain sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from vlm_mhpo.records.metric_table import ADD, MAX, MIN, PART, SUM
from vlm_mhpo.runtime.ranks import device, reduce

_WHOLE = "whole"
_FOLDS = {MIN: torch.minimum, MAX: torch.maximum}


def fold(metrics: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Take the [] tensors of another micro-batch of this rank into `metrics`."""
    for name, value in more.items():
        join = _FOLDS.get(name.split("/", 1)[0], torch.add)
        metrics[name] = join(metrics[name], value) if name in metrics else value


def reduce_metrics(metrics: Mapping[str, Tensor], count: Tensor) -> dict[str, float]:
    """Global statistics of per-rank metrics, in three collectives however many there are.

    Args:
        metrics: [] tensors by KIND/NAME; the same names on all ranks.
        count: [] number of things that the `sum/` entries run over on this rank.

    Returns:
        NAME to value, in sorted order.
    """
    target = device()

    def reduced(kinds: tuple[str, ...], operation: dist.ReduceOp, extra: Mapping[str, Tensor]) -> dict[str, float]:
        chosen = {key: metrics[key] for key in sorted(metrics) if key.split("/", 1)[0] in kinds} | extra
        if not chosen:
            return {}
        stacked = torch.stack([value.detach().to(target, torch.float64) for value in chosen.values()])
        return dict(zip(chosen, reduce(stacked, operation).tolist(), strict=True))

    sums = reduced((SUM, PART, _WHOLE, ADD), dist.ReduceOp.SUM, {"": count})
    extremes = reduced((MIN,), dist.ReduceOp.MIN, {}) | reduced((MAX,), dist.ReduceOp.MAX, {})
    total = sums.pop("")
    result = {}
    for key, value in (sums | extremes).items():
        kind, name = key.split("/", 1)
        whole = sums[f"{_WHOLE}/{name}"] if kind == PART else total if kind == SUM else 1.0
        # Without a token anywhere the extremes are those of an empty set, infinite.
        if kind != _WHOLE and whole > 0 and (total > 0 or kind not in _FOLDS):
            result[name] = value / whole
    return dict(sorted(result.items()))
