"""What user functions are told of the run, and what they log besides their values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from rewards.types import RewardError


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What reward functions read of transformers' class of this name: finished training steps, and of how many."""

    global_step: int = 0
    max_steps: int = 0


class Logbook:
    """Of one batch at a time; the reward functions of a scorer share it.

    Attributes:
        trainer_state: where the run stands.
        metrics: numbers that functions logged, by name.
        columns: values that functions logged, one per sample, by name.
    """

    def __init__(self) -> None:
        self.begin(TrainerState(), num_samples=0)

    def begin(self, trainer_state: TrainerState, *, num_samples: int) -> None:
        """A new batch of `num_samples` samples."""
        self.trainer_state, self._num_samples = trainer_state, num_samples
        self.metrics: dict[str, list[float]] = {}
        self.columns: dict[str, tuple[Any, ...]] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Record a number, as TRL's `log_metric`; RewardError for anything else."""
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(f"log_metric({name!r}, ...) takes a finite number, not {value!r}")
        self.metrics.setdefault(str(name), []).append(float(value))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Record one value per sample, as TRL's `log_extra`; RewardError for another number of them."""
        if len(values) != self._num_samples:
            raise RewardError(f"log_extra({column!r}, ...): {len(values)} values for {self._num_samples} samples")
        self.columns[str(column)] = tuple(values)
