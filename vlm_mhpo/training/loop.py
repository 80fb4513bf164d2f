"""The RL loop, which reads as the data flows: prompts, groups, rewards, minibatches, updates, records, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from vlm_mhpo.faults.health import Alarm
from vlm_mhpo.prompts.prefetch import ForStep, prefetched
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.records.recorder import Recorder
from vlm_mhpo.rollout.base import Rollout
from vlm_mhpo.rollout.refill import refill
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.scoring.metrics import reward_metrics
from vlm_mhpo.scoring.scorer import Scoring
from vlm_mhpo.training.guarded import Step, Watch, score_together
from vlm_mhpo.training.held_out import HeldOut
from vlm_mhpo.training.progress import ProgressBar
from vlm_mhpo.types import Minibatch, Prompt, ScoredGroup, StepUpdate

Scored = list[ScoredGroup]


@dataclass(frozen=True, slots=True)
class Loop:
    """The stages of a run; each takes what the one before made. A stage is exchanged with `dataclasses.replace`.

    Attributes:
        prompts: gives the prompts of a step.
        rollout: prompts to groups.
        scoring: groups to scored groups.
        minibatches: scored groups to minibatches.
        update: minibatches and step (0-based) to what the updates did.
        held_out: judges the policy when it is due.
        records: writes what a step leaves; None but on the main rank.
        watch: times a step, keeps its evidence, saves, and ends the run when it is asked to.
        alarms: metrics of a finished step to what is wrong with the run; adds metrics of its own.
        max_steps: after which the run is finished.
        max_resample_times: tries of dynamic sampling; None = off.
        prefetch: prompts of the next step are prepared meanwhile.
        name: of the progress bar.
    """

    prompts: PromptStream
    rollout: Rollout
    scoring: Scoring
    minibatches: Callable[[Sequence[ScoredGroup]], list[Minibatch]]
    update: Callable[[Sequence[Minibatch], int], StepUpdate]
    held_out: HeldOut
    records: Recorder | None
    watch: Watch
    alarms: Callable[[dict[str, float]], list[Alarm]]
    max_steps: int
    max_resample_times: int | None
    prefetch: bool
    name: str

    def run(self, start: int) -> None:
        """Steps `start` to `max_steps`, or to where `eval.early_stop` ends the run."""
        if self.held_out.at_start(start, self.records, self.watch):
            return
        with ProgressBar(self.name, start, self.max_steps) as bar, self._prompts_ahead() as prompts_of:
            for step in range(start, self.max_steps):
                with self.watch.step(step + 1, start) as now:
                    scored, metrics = self.refilled(self.roll_out(now, prompts_of(step)), now)
                    with span("log_probs"):
                        minibatches = self.minibatches(scored)
                        self.watch.guard.stop.check()
                    now.holds(minibatches=minibatches)
                    with span("update"):
                        update = self.update(minibatches, step)
                    with span("evaluate"):
                        tested = self.held_out.if_due(step + 1)
                    metrics |= self.rollout.sampler.metrics() | update.metrics | reward_metrics(scored) | tested
                    last = self.finish(now, metrics, update, scored)
                    bar.advance(metrics)
                # Their pixels and image features go before those of the next step come.
                del scored, minibatches, now
                if last:
                    break

    def _prompts_ahead(self) -> AbstractContextManager[ForStep]:
        for_step = self.prompts.for_step
        return prefetched(for_step, stop=self.max_steps) if self.prefetch else nullcontext(for_step)

    def roll_out(self, now: Step, prompts: Sequence[Prompt], attempt: int = 0) -> Scored:
        """Prompts to groups to scored groups; `attempt` > 0 are the tries of dynamic sampling."""
        with span("sample"):
            groups = self.rollout(prompts, now.number - 1, attempt, self.scoring.begin)
        with span("verify"):
            return score_together(self.scoring, groups, self.watch.dumps, now.number)

    def refilled(self, scored: Scored, now: Step) -> tuple[Scored, dict[str, float]]:
        """The groups with flat ones replaced, if so configured, and the metrics of that."""
        metrics: dict[str, float] = {}
        if (tries := self.max_resample_times) is not None:
            roll_out = partial(self.roll_out, now)
            scored, metrics = refill(scored, self.prompts, now.number - 1, roll_out, max_resample_times=tries)
        now.holds(groups=scored)
        return scored, metrics

    def finish(self, now: Step, metrics: dict[str, float], update: StepUpdate, scored: Scored) -> bool:
        """Alarms, records and checkpoint of a step; returns whether it was the last."""
        found = self.alarms(metrics)
        self.watch.alarmed(now, found)
        last = self.held_out.ends_early(metrics, now.number)
        with span("records"):
            if self.records:
                self.records.write(now.number, metrics | self.watch.seconds(now), update, scored)
        self.watch.save(now, metrics, found=found, last=last)
        return last
