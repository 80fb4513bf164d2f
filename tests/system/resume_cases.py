"""What the resume tests share: small runs, their rows, and comparison to the bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.system.ranks import run_ranks
from vlm_mhpo.checkpoint import folder_of, safe_load

BASE = Path(__file__).with_name("base.yaml")
# As little work a step as two ranks can share.
SMALL = (
    "data.eval=null",
    "data.train=synthetic:shapes?seed=0&num_rows=16@train",
    "rollout.num_generations=2",
    "rollout.max_completion_length=4",
    "rewards.functions=[{name: even, path: 'tests/system/user_rewards.py:even_tokens'}]",
    "rewards.num_workers=1",
)


def run_all(folder: Path, requests: Sequence[dict[str, Any]], num_ranks: int) -> str:
    """Run requests of `drive_resume` in turn on `num_ranks` processes; returns what rank 0 printed."""
    folder.mkdir(parents=True, exist_ok=True)
    filled = [{"config": str(BASE), **each, "overrides": [*SMALL, *each["overrides"]]} for each in requests]
    (folder / "requests.json").write_text(json.dumps(filled))
    ended = run_ranks(
        ("-m", "tests.system.drive_resume", folder / "requests.json"), folder, num_ranks=num_ranks, timeout_s=580
    )
    assert [process.code for process in ended] == [0] * num_ranks, "\n".join(p.stderr[-3000:] for p in ended)
    return ended[0].stdout


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without the times."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "step_time" and not k.startswith("time/")} for row in rows]


def assert_same_checkpoint(first: Path, second: Path, step: int) -> None:
    """Two runs' checkpoints at a step hold the same weights and optimizer state to the bit."""
    one, other = (folder_of(run / "checkpoints", step) for run in (first, second))
    # The model, or of a run with adapters these alone.
    policies = [
        {file.name: file.read_bytes() for file in (each / "policy").glob("*.safetensors")} for each in (one, other)
    ]
    assert policies[0] and policies[0] == policies[1]
    shards = sorted(path.relative_to(one) for path in one.rglob("*.pt"))
    assert shards and shards == sorted(path.relative_to(other) for path in other.rglob("*.pt"))
    for shard in shards:
        assert_identical(safe_load(str(one / shard)), safe_load(str(other / shard)), str(shard))


def assert_identical(first: Any, second: Any, place: str) -> None:
    """Two nested states are the same to the bit; objects are compared by what they hold."""
    assert type(first) is type(second), place
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), place
    elif isinstance(first, dict):
        assert list(first) == list(second), place
        for key in first:
            assert_identical(first[key], second[key], f"{place}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_identical(one, other, f"{place}/{index}")
    elif type(first).__module__.startswith("deepspeed") and hasattr(first, "__dict__"):
        assert_identical(vars(first), vars(second), place)
    else:
        assert first == second, place
