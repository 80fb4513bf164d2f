"""What watches over a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from vlm_mhpo.config import FaultsConfig, RewardsConfig, RolloutConfig
from vlm_mhpo.faults.health import Alarm, Vitals, alarms, idle_steps, vitals_of
from vlm_mhpo.faults.stopping import StopRequest
from vlm_mhpo.faults.watchdog import Watchdog
from vlm_mhpo.records.metric_table import REWARD
from vlm_mhpo.runtime import ranks


@dataclass(frozen=True, slots=True)
class Guard:
    """What watches over a run.

    Attributes:
        stop: knows whether a signal asked to stop.
        watchdog: knows where the other ranks are.
        history: vitals of the finished steps, oldest first.
    """

    stop: StopRequest
    watchdog: Watchdog
    history: list[Vitals] = field(default_factory=list)

    def on_token(self) -> None:
        """Before each sampled token: this rank gets on, or gives up when the run is asked to stop."""
        self.watchdog.tick()
        self.stop.give_up()

    def examine(
        self,
        faults: FaultsConfig,
        rewards: RewardsConfig,
        rollout: RolloutConfig,
        metrics: dict[str, float],
        *,
        num_prompts: int,
    ) -> list[Alarm]:
        """Take a finished step into the history; what is wrong with the run. Adds `idle_steps` to its metrics."""
        self.history.append(vitals_of(metrics))
        metrics["idle_steps"] = float(idle_steps(self.history))
        return alarms(self.history, faults, rewards, rollout, num_prompts)

    def remember(self, metrics_file: Path, last_step: int) -> None:
        """Take the history of a run that goes on from its metrics; called by all ranks, read by the main one."""
        found = read_history(metrics_file, last_step) if ranks.is_main() else []
        self.history.extend(ranks.gather_objects(found)[0])


def read_history(metrics_file: Path, last_step: int) -> list[Vitals]:
    """Vitals of the training steps in a metrics.jsonl, up to `last_step`."""
    lines = metrics_file.read_text().splitlines() if metrics_file.is_file() else []
    rows = [json.loads(line) for line in lines]
    return [vitals_of(row) for row in rows if REWARD.name in row and row["step"] <= last_step]
