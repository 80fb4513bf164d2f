"""A run from its configuration to its last checkpoint: what it stands under, its parts, its loop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm_mhpo.checkpoint.opening import open_policy
from vlm_mhpo.checkpoint.policy_folder import save_policy
from vlm_mhpo.config import Config, LoggingConfig, check_world_size
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.reference import Reference
from vlm_mhpo.evaluation.benchmark_run import benchmark_judge
from vlm_mhpo.evaluation.chosen import BenchmarkRows, chosen_benchmarks
from vlm_mhpo.evaluation.tasks import Judge
from vlm_mhpo.faults.agreement import (
    check_same_folder,
    check_same_rows,
    check_same_setting,
    check_same_weights,
)
from vlm_mhpo.faults.guard import Guard
from vlm_mhpo.faults.memory import enough_memory
from vlm_mhpo.faults.stopping import StopRequest
from vlm_mhpo.faults.watchdog import Watchdog
from vlm_mhpo.objectives import Objective, build_objective
from vlm_mhpo.prompts.rows import usable_rows
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.records.recorder import Recorder, check_loggers
from vlm_mhpo.rollout.base import Rollout, Watched
from vlm_mhpo.rollout.build import held_out_params, rollout_params
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import Clock
from vlm_mhpo.scoring import Verifier
from vlm_mhpo.scoring.scorer import Scoring, start_scorer, start_verifier
from vlm_mhpo.training.assembly import Parts, build_parts, check_context, print_start, record_run
from vlm_mhpo.training.forwards import update_settings
from vlm_mhpo.training.guarded import Dumps, Watch
from vlm_mhpo.training.held_out import HeldOut
from vlm_mhpo.training.identity import identity_of
from vlm_mhpo.training.loop import Loop
from vlm_mhpo.training.minibatches import make_minibatches
from vlm_mhpo.training.saving import Checkpoints, only_writer
from vlm_mhpo.training.update import Updater


def train(config: Config) -> dict[str, Any]:
    """Run or continue the RL training of `config`; returns the last evaluation record, or {} without held-out rows.

    Raises:
        VlmMhpoError: anything a user can mend, in one sentence; Stopped: a signal asked for it.
    """
    with open_training(config) as (loop, start):
        loop.run(start)
    after = Path(config.output_dir) / "eval" / "after.json"
    return json.loads(after.read_text()) if after.is_file() else {}


@contextmanager
def guarded_run(config: Config) -> Iterator[Guard]:
    """What every run stands under, RL or warm start: ranks that are set up alike, polite stops, the watchdog, and a
    folder that nobody else writes to."""
    check_loggers(config.logging)
    ranks.start(config.num_threads)
    check_world_size(config, ranks.world_size())
    run_dir = Path(config.output_dir)
    check_same_setting(config.model_dump(), run_dir)
    # What no phase has named: loading, and the checkpoint.
    unnamed = enough_memory("loading or saving", lambda: "deepspeed.zero_stage=3, or use more ranks")
    with StopRequest() as stop, Watchdog(config.faults, stop) as watchdog, only_writer(run_dir), unnamed:
        check_same_folder("output_dir", run_dir, "checkpoints")
        yield Guard(stop, watchdog)


@contextmanager
def open_training(config: Config, clock: Clock | None = None) -> Iterator[tuple[Loop, int]]:
    """The loop of a run and the number of steps behind it; the report is written when the context ends well.

    Args:
        config: of the run.
        clock: that its phases are marked on, when somebody wants to read it.
    """
    clock, run_dir, budget = clock or Clock(), Path(config.output_dir), config.rollout.max_completion_length
    with guarded_run(config) as guard, clock.running():
        with ExitStack() as stack:
            # Early, because a reward that does not exist should not wait for the model, and workers load meanwhile.
            scorer = stack.enter_context(start_scorer(config.rewards, max_completion_length=budget))
            verifier = stack.enter_context(start_verifier(config.rewards))
            objective = build_objective(config.objective, budget)
            benchmarks = chosen_benchmarks(config.eval)
            parts = build_parts(config, config.train)
            check_context(config.data.max_prompt_length + budget, parts.codec)
            parts = replace(parts, sampler=Watched(parts.sampler, guard.on_token))
            held_out = _build_held_out(config, parts, verifier, benchmarks, guard)
            check_same_rows(parts.train_rows)
            check_same_rows(parts.eval_rows, "held-out rows")
            print_start(config, parts)
            watch = _build_watch(config, parts, guard, clock)
            start = watch.saving.resume()
            record_run(config, parts, watch.saving.changes)
            records = stack.enter_context(recording(run_dir, config.logging, start))
            guard.remember(run_dir / "metrics.jsonl", start)
            scoring = stack.enter_context(Scoring(scorer, config.data.template, config.train.max_steps))
            yield _build_loop(config, parts, objective, scoring, held_out, records, watch), start
        if config.logging.report and ranks.is_main():
            from vlm_mhpo.pages import write_report

            write_report(run_dir)


@contextmanager
def recording(run_dir: Path, logging: LoggingConfig, start: int) -> Iterator[Recorder | None]:
    """A recorder on the main rank, None elsewhere."""
    recorder = Recorder(run_dir, logging, start_step=start) if ranks.is_main() else None
    try:
        yield recorder
    finally:
        if recorder:
            recorder.close()


def _build_watch(config: Config, parts: Parts, guard: Guard, clock: Clock) -> Watch:
    """What the steps of RL stand under."""
    run_dir, values, engine = Path(config.output_dir), config.model_dump(), parts.engine
    identity = identity_of("rl", values, parts.train_rows, engine.zero_stage, engine.policy.model.name_or_path)
    saving = Checkpoints(engine, parts.codec, run_dir, config.checkpoint, identity, config.train.max_steps)
    weights = partial(save_policy, engine, parts.codec) if config.faults.dump_weights else None
    return Watch(guard, clock, saving, config.train.max_steps, Dumps(run_dir, values, weights))


def _build_held_out(
    config: Config, parts: Parts, verifier: Verifier, benchmarks: Sequence[BenchmarkRows], guard: Guard
) -> HeldOut:
    """The evaluations of a run; every row that they ask becomes a prompt once, so that a bad one stops it here."""
    family = parts.engine.policy.family
    params = held_out_params(config.eval, config.rollout)
    judge = Judge(parts.builder, parts.sampler, verifier, config.data.template, config.seed, together=guard.stop.sample)
    official = benchmark_judge(
        config.eval, config.data, params, parts.codec, family, parts.sampler, verifier, guard.stop.sample
    )
    for one in benchmarks:
        usable_rows(one.asked, official.builder, overlong="never", what=one.name)
    return HeldOut(
        config.eval,
        parts.eval_rows,
        judge,
        benchmarks,
        official,
        params,
        run_dir=Path(config.output_dir),
        max_steps=config.train.max_steps,
    )


def _build_loop(
    config: Config,
    parts: Parts,
    objective: Objective,
    scoring: Scoring,
    held_out: HeldOut,
    records: Recorder | None,
    watch: Watch,
) -> Loop:
    """The stages of RL, each with the sections of the configuration that it reads."""
    train, rollout, engine = config.train, config.rollout, parts.engine
    weights = {"beta": config.objective.beta, "entropy_coef": config.objective.entropy_coef}
    settings = update_settings(train, rollout, objective, **weights, pad_id=parts.codec.pad_id)
    reference = _open_reference(config, engine) if config.objective.beta else None
    return Loop(
        prompts=PromptStream(
            parts.train_rows,
            parts.builder.build,
            seed=config.seed,
            num_prompts=train.num_prompts_per_step,
            num_minibatches=train.num_minibatches,
        ),
        rollout=Rollout(parts.sampler, rollout_params(rollout), config.seed, watch.guard.stop.sample),
        scoring=scoring,
        minibatches=partial(
            make_minibatches,
            engine,
            reference,
            settings=settings,
            advantage=train.advantage,
            scale_rewards=train.scale_rewards,
            mask_truncated=train.mask_truncated_completions,
        ),
        update=Updater(
            engine,
            objective,
            settings,
            train,
            train.max_steps,
            partial(watch.dumps.bad_update, stops=train.on_nonfinite == "stop"),
        ),
        held_out=held_out,
        records=records,
        watch=watch,
        alarms=partial(
            watch.guard.examine, config.faults, config.rewards, rollout, num_prompts=train.num_prompts_per_step
        ),
        max_steps=train.max_steps,
        max_resample_times=rollout.max_resample_times if rollout.dynamic_sampling else None,
        prefetch=config.data.prefetch,
        name=config.objective.name,
    )


def _open_reference(config: Config, engine: Engine) -> Reference:
    """The policy that the run started from, frozen."""
    if engine.policy.has_adapters:
        return Reference.below(engine)
    opened = open_policy(config.model, Path(config.output_dir), "reference", deepspeed=config.deepspeed)
    if engine.zero_stage < 3:
        # The trained weights are rank 0's everywhere; these are what each rank has read.
        check_same_weights(config.model.path, opened.policy)
    return Reference.hold(opened.policy, config.deepspeed, dtype=config.model.dtype)
