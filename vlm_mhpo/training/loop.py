"""The RL loop: prompts, rollout, rewards, advantages, MHPO updates, records, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from rewards import Scorer, Verifier
from vlm_mhpo.config import Config, check_world_size
from vlm_mhpo.engine.optimizer import learning_rate_at
from vlm_mhpo.engine.reference import Reference
from vlm_mhpo.faults.agreement import check_same_rows, check_same_setting
from vlm_mhpo.faults.dump import unscored, whole_step
from vlm_mhpo.faults.guard import Guard
from vlm_mhpo.faults.stopping import Interrupted, StopRequest
from vlm_mhpo.faults.watchdog import Watchdog
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.objectives import Objective, build_objective
from vlm_mhpo.objectives.multipliers import on_policy_multiplier
from vlm_mhpo.prompts.prefetch import prefetched
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.records.recorder import Recorder
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.refill import refill
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.early import early_verdicts
from vlm_mhpo.scoring.metrics import reward_metrics
from vlm_mhpo.scoring.scorer import score_groups, start_scorer, start_verifier
from vlm_mhpo.training.assembly import Setup, build_setup, record_setup
from vlm_mhpo.training.guarded import dump_bad_update, dumping, examine, leave_before, score_together, stop_if_asked
from vlm_mhpo.training.held_out import ends_early, evaluate_at_start, evaluate_if_due, stops_early
from vlm_mhpo.training.minibatches import make_minibatches
from vlm_mhpo.training.progress import ProgressBar
from vlm_mhpo.training.saving import only_writer, resume, save_if_due
from vlm_mhpo.training.update import UpdateSettings, update_on
from vlm_mhpo.types import Minibatch, Prompt, ScoredGroup


def train(config: Config) -> dict[str, Any]:
    """Run or continue the RL training of `config`; returns the last evaluation record, or {} without held-out rows.

    Raises:
        VlmMhpoError: anything a user can mend, in one sentence; Stopped: a signal asked for it.
    """
    ranks.start(config.num_threads)
    check_world_size(config, ranks.world_size())
    check_same_setting(config)
    with (
        StopRequest() as stop,
        Watchdog(config.faults, stop) as watchdog,
        # Early, because a reward that does not exist should not wait for the model, and workers load meanwhile.
        start_scorer(config.rewards, max_completion_length=config.rollout.max_completion_length) as scorer,
        start_verifier(config.rewards) as verifier,
        only_writer(config),
    ):
        guard = Guard(stop, watchdog)
        objective = build_objective(config.objective, config.rollout.max_completion_length)
        setup = build_setup(config)
        check_same_rows(setup.train_rows)
        setup.sampler.on_token = guard.on_token
        start = resume(setup)
        record_setup(setup)
        reference = Reference.load(config) if config.objective.beta else None
        with recording(setup, start) as recorder:
            guard.remember(setup.run_dir / "metrics.jsonl", start)
            evaluate_at_start(setup, guard, verifier, recorder, start)
            if not (start and stops_early(setup, {}, start)):
                loop(setup, objective, reference, scorer, verifier, recorder, start, guard)
        if config.logging.report and ranks.is_main():
            from vlm_mhpo.pages import write_report

            write_report(setup.run_dir)
    after = setup.run_dir / "eval" / "after.json"
    return json.loads(after.read_text()) if after.is_file() else {}


def loop(
    setup: Setup,
    objective: Objective,
    reference: Reference | None,
    scorer: Scorer,
    verifier: Verifier,
    recorder: Recorder | None,
    start: int,
    guard: Guard,
) -> None:
    """Steps `start` to `max_steps`, or to where `eval.early_stop` ends the run."""
    config = setup.config
    stream = PromptStream(
        setup.train_rows,
        setup.builder.build,
        seed=config.seed,
        num_prompts=config.train.num_prompts_per_step,
        num_minibatches=config.train.num_minibatches,
    )
    settings = update_settings(config, setup.codec, objective)
    stop, for_step = config.train.max_steps, stream.for_step
    ahead = prefetched(for_step, stop=stop) if config.data.prefetch else nullcontext(for_step)
    with ProgressBar(config, start) as bar, ahead as prompts_of:
        for step in range(start, stop):
            watch = Stopwatch(guard, step + 1)
            try:
                scored, metrics = roll_out(setup, guard, scorer, stream, prompts_of, watch, step)
                batches, mismatch = prepare(setup, guard, reference, scored, settings, watch, step)
            except Interrupted:
                leave_before(setup, guard, step, start)
            with watch("update"), dumping(setup, step + 1, partial(whole_step, batches)):
                rate, on_bad = learning_rate_at(step, config.train, stop), dump_bad_update(setup, step + 1)
                update = update_on(
                    setup.engine, objective, batches, settings, learning_rate=rate, step=step + 1, on_bad=on_bad
                )
            with watch("evaluate"):
                tested = evaluate_if_due(setup, guard, verifier, step + 1)
            metrics |= mismatch | update.metrics | reward_metrics(scored) | tested
            found = examine(setup, guard, metrics, batches, step + 1)
            last = ends_early(setup, guard, verifier, metrics, step + 1)
            if recorder:
                recorder.write(step + 1, metrics | watch.metrics(), update, scored)
            asked = guard.stop.agreed()
            guard.watchdog.enter("checkpoint", step + 1)
            # After the records: a run that dies in between continues from the checkpoint before and writes them again.
            save_if_due(setup, step + 1, metrics, asked=asked or last or any(finding.stops for finding in found))
            bar.advance(metrics)
            stop_if_asked(setup, guard, found, asked, step + 1)
            if last:
                break
            # Their pixels and image features go before those of the next step come.
            del scored, batches


def roll_out(
    setup: Setup,
    guard: Guard,
    scorer: Scorer,
    stream: PromptStream,
    prompts_of: Callable[[int], list[Prompt]],
    watch: Stopwatch,
    step: int,
) -> tuple[list[ScoredGroup], dict[str, float]]:
    """This rank's scored groups of `step` (0-based), refilled if so configured, and the metrics of the refilling."""
    rollout = setup.config.rollout
    sample = partial(sample_and_score, setup, guard, scorer, watch, step)
    with watch("prompts"):
        prompts = prompts_of(step)
    scored = sample(prompts)
    if not rollout.dynamic_sampling:
        return scored, {}
    return refill(scored, stream, step, sample, max_resample_times=rollout.max_resample_times)


def prepare(
    setup: Setup,
    guard: Guard,
    reference: Reference | None,
    scored: Sequence[ScoredGroup],
    settings: UpdateSettings,
    watch: Stopwatch,
    step: int,
) -> tuple[list[Minibatch], dict[str, float]]:
    """The minibatches of `step` (0-based); the last place where the step can still be given up."""
    with watch("log_probs"):
        with dumping(setup, step + 1, partial(unscored, [one.group for one in scored])):
            batches, mismatch = make_minibatches(setup, reference, scored, settings)
        guard.stop.check()
    return batches, mismatch


def sample_and_score(
    setup: Setup,
    guard: Guard,
    scorer: Scorer,
    watch: Stopwatch,
    step: int,
    prompts: Sequence[Prompt],
    attempt: int = 0,
) -> list[ScoredGroup]:
    """Roll the policy out on prompts and verify what comes back; `attempt` > 0 are the tries of dynamic sampling."""
    template, params = setup.config.data.template, sampling_params(setup.config)
    purpose = ("rollout", step) if attempt == 0 else ("resample", step, attempt)
    with early_verdicts(scorer, template) as early:
        with watch("sample"):
            seeds = (setup.config.seed, *purpose)
            groups = guard.stop.sample(partial(setup.sampler.sample, prompts, params, seeds, early.begin))
        with watch("verify"):
            return score_together(setup, partial(score_groups, scorer, groups, template, early), groups, step + 1)


def sampling_params(config: Config) -> SamplingParams:
    """How rollouts are drawn."""
    rollout = config.rollout
    return SamplingParams(
        rollout.num_generations, rollout.max_completion_length, rollout.temperature, rollout.top_p, rollout.top_k
    )


def update_settings(config: Config, codec: Codec, objective: Objective) -> UpdateSettings:
    """The part of the configuration that an update reads."""
    return UpdateSettings(
        beta=config.objective.beta,
        temperature=config.rollout.temperature,
        max_tokens=config.train.max_tokens_per_micro_batch,
        chunk_size=config.train.logits_chunk_size,
        num_minibatches=config.train.num_minibatches,
        num_iterations=config.train.num_iterations,
        recompute=config.rollout.old_log_probs == "trainer",
        pad_id=codec.pad_id,
        on_nonfinite=config.train.on_nonfinite,
        on_policy=on_policy_multiplier(objective),
    )


@contextmanager
def recording(setup: Setup, start: int) -> Iterator[Recorder | None]:
    """A recorder on the main rank, None elsewhere."""
    if not ranks.is_main():
        with nullcontext():
            yield None
        return
    recorder = Recorder(setup.run_dir, setup.config.logging, start_step=start)
    try:
        yield recorder
    finally:
        recorder.close()


class Stopwatch:
    """Seconds spent in the named parts of step `step` (1-based), each of which the watchdog is told of."""

    def __init__(self, guard: Guard, step: int) -> None:
        self._guard, self._step = guard, step
        self._started = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        self._guard.watchdog.enter(name, self._step)
        begun = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - begun

    def metrics(self) -> dict[str, float]:
        """`step_time` and `time/NAME`, seconds."""
        parts = {f"time/{name}": seconds for name, seconds in self._parts.items()}
        return {"step_time": time.perf_counter() - self._started, **parts}
