"""Where two nested states or two sets of weights differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlm_mhpo.records.metric_table import TIMES, metric_of


def first_difference(one: Any, other: Any, place: str = "") -> str | None:
    """The first place where two nested states differ by a bit; None when they are the same.

    Objects of DeepSpeed are compared by what they hold.
    """
    if type(one) is not type(other):
        return f"{place}: a {type(one).__name__} and a {type(other).__name__}"
    if isinstance(one, Tensor):
        if one.dtype == other.dtype and torch.equal(one, other):
            return None
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{place}: shapes or types differ"
        return f"{place}: differs by up to {float((one.double() - other.double()).abs().max()):.1e}"
    if isinstance(one, Mapping):
        if list(one) != list(other):
            return f"{place}: keys differ"
        pairs = [(f"{place}/{key}", one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{place}: {len(one)} and {len(other)} entries"
        pairs = [(f"{place}/{index}", *pair) for index, pair in enumerate(zip(one, other, strict=True))]
    elif type(one).__module__.startswith("deepspeed") and hasattr(one, "__dict__"):
        return first_difference(vars(one), vars(other), place)
    else:
        return None if one == other or (one != one and other != other) else f"{place}: {one} and {other}"
    found = (first_difference(a, b, inner) for inner, a, b in pairs)
    return next((difference for difference in found if difference), None)


def weights_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of the safetensors files below a folder."""
    return {name: value for file in sorted(folder.rglob("*.safetensors")) for name, value in load_file(file).items()}


def metrics_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, times left out."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if not _is_time(name)} for row in rows]


def _is_time(name: str) -> bool:
    """Whether a metric is a time, which no two runs share."""
    metric = metric_of(name)
    return metric is not None and metric.group == TIMES
