"""Program: trains 20 steps on recorded completions in place of sampled ones and writes the curve that came out.

    python -m tests.system.drive_curve tests/data/golden_curve.json

writes the committed curve anew, after a change that is meant to change the numbers. Without sampling nothing in it
hangs on a draw that another processor could round to another token.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vlm_mhpo.config import load_config
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.training.run import open_training
from vlm_mhpo.types import Completion, Group, Prompt

NUM_STEPS = 20
CURVE = ("policy_loss", "grad_norm", "reward", "kl", "entropy", "completions/mean_length")
OVERRIDES = (
    f"train.max_steps={NUM_STEPS}",
    "data.eval=null",
    "train.mask_truncated_completions=true",
    "objective.beta=0.05",
    # Three times lower than elsewhere: rounding that differs from processor to processor grows less on the way.
    "train.learning_rate=3.0e-4",
    "deepspeed.zero_stage=2",
    "checkpoint.save_steps=0",
)


class Recorded:
    """A sampler that draws completions from a generator and not from the policy: the same whatever the weights are."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.version = 0

    def sync(self, step: int) -> None:
        """See `rollout.base.Sampler.sync`."""

    def metrics(self) -> dict[str, float]:
        """See `rollout.base.Sampler.metrics`."""
        return {}

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_groups: Callable[[Sequence[Group]], None] | None = None,
    ) -> list[Group]:
        """See `rollout.base.Sampler.sample`; `seed_parts` end in the step."""
        random = np.random.default_rng(int(seed_parts[-1]))
        draws = range(params.num_samples)
        groups = [Group(prompt, tuple(self._draw(random, params) for _ in draws)) for prompt in prompts]
        if on_groups:
            on_groups(groups)
        return groups

    def _draw(self, random: np.random.Generator, params: SamplingParams) -> Completion:
        """Single characters, by ids that every tiny tokenizer has; a third of the completions reaches the budget."""
        length = min(params.max_tokens, int(random.integers(1, params.max_tokens * 3 // 2)))
        ids = random.integers(20, 80, size=length).tolist()
        if truncated := length == params.max_tokens:
            return Completion(tuple(ids), torch.full((length,), -6.0), self.codec.tokenizer.decode(ids), truncated)
        ids[-1] = min(self.codec.end_ids)
        return Completion(tuple(ids), torch.full((length,), -6.0), self.codec.tokenizer.decode(ids[:-1]), truncated)


def curve(run_dir: Path) -> dict[str, list[float]]:
    """Train in `run_dir` and return what `CURVE` names, step by step."""
    config = load_config(str(Path(__file__).with_name("base.yaml")), [*OVERRIDES, f"output_dir={run_dir}"])
    with open_training(config) as (loop, start):
        recorded = Recorded(loop.prompts.build.__self__.codec)
        replace(loop, rollout=replace(loop.rollout, sampler=recorded)).run(start)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    return {name: [row[name] for row in rows] for name in CURVE}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = curve(Path(folder) / "run")
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in found.items()]
    Path(sys.argv[1]).write_text("{\n" + ",\n".join(lines) + "\n}\n")
