"""The RL loop: prompts, rollout, rewards, advantages, MHPO updates, records, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from tqdm import tqdm

from rewards import Scorer, Verifier
from vlm_mhpo import distributed
from vlm_mhpo.config import Config, check_world_size
from vlm_mhpo.continuation import resume, save_if_due
from vlm_mhpo.data import PromptStream
from vlm_mhpo.diagnostics import on_policy_multiplier
from vlm_mhpo.dynamic_sampling import refill
from vlm_mhpo.engine import learning_rate_at
from vlm_mhpo.evaluation.during_training import benchmark_metrics, stops_early
from vlm_mhpo.evaluation.evaluate import evaluate, summarise, write_evaluation
from vlm_mhpo.evaluation.standalone import evaluation_params
from vlm_mhpo.minibatches import build_batches
from vlm_mhpo.models.loading import Tools
from vlm_mhpo.models.reference import Reference
from vlm_mhpo.objectives import Objective, build_objective
from vlm_mhpo.prefetch import prefetched
from vlm_mhpo.recorder import Recorder
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.scoring import early_verdicts, reward_metrics, score_groups, start_scorer, start_verifier
from vlm_mhpo.setup import Setup, build_setup, record_setup
from vlm_mhpo.types import Prompt, ScoredGroup
from vlm_mhpo.update import UpdateSettings, update_on


def train(config: Config) -> dict[str, Any]:
    """Run or continue the RL training of `config`; returns the last evaluation record, or {} without held-out rows.

    Raises:
        VlmMhpoError: anything a user can mend, in one sentence.
    """
    distributed.start(config.num_threads)
    check_world_size(config, distributed.world_size())
    with (
        # First, because a reward that does not exist should not wait for the model, and workers load meanwhile.
        start_scorer(config.rewards, max_completion_length=config.rollout.max_completion_length) as scorer,
        start_verifier(config.rewards) as verifier,
    ):
        objective = build_objective(config.objective, config.rollout.max_completion_length)
        setup = build_setup(config)
        start = resume(setup)
        record_setup(setup)
        reference = Reference.load(config) if config.objective.beta else None
        with recording(setup, start) as recorder:
            if start == 0 and config.eval.before:
                record = run_evaluation(setup, verifier, name="before", step=0)
                metrics = evaluation_metrics(record) | benchmark_metrics(setup, verifier, 0)
                if recorder and metrics:
                    recorder.write_metrics(0, metrics)
            if not (start and stops_early(setup, {}, start)):
                loop(setup, objective, reference, scorer, verifier, recorder, start)
    if config.logging.report and distributed.is_main():
        from vlm_mhpo.report import write_report

        write_report(setup.run_dir)
    distributed.barrier()
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
) -> None:
    """Steps `start` to `max_steps`, or to where `eval.early_stop` ends the run."""
    config = setup.config
    stream = PromptStream(
        setup.train_rows,
        setup.builder,
        seed=config.seed,
        num_prompts=config.train.num_prompts_per_step,
        num_minibatches=config.train.num_minibatches,
    )
    params = sampling_params(config)
    settings = update_settings(config, setup.tools, objective)
    stop, for_step = config.train.max_steps, stream.for_step
    ahead = prefetched(for_step, stop=stop) if config.data.prefetch else nullcontext(for_step)
    with ProgressBar(config, start) as bar, ahead as prompts_of:
        for step in range(start, stop):
            watch = Stopwatch()
            roll_out = partial(sample_and_score, setup, scorer, params, watch, step)
            with watch("prompts"):
                prompts = prompts_of(step)
            scored, metrics = roll_out(prompts), {}
            if config.rollout.dynamic_sampling:
                scored, metrics = refill(
                    scored, stream, step, roll_out, max_resample_times=config.rollout.max_resample_times
                )
            with watch("log_probs"):
                batches, mismatch = build_batches(setup, reference, scored, settings)
            with watch("update"):
                rate = learning_rate_at(step, config.train, stop)
                update = update_on(setup.engine, objective, batches, settings, learning_rate=rate, step=step + 1)
            with watch("evaluate"):
                record = evaluate_if_due(setup, verifier, step + 1)
                tested = benchmark_metrics(setup, verifier, step + 1)
            metrics |= mismatch | update.metrics | reward_metrics(scored) | evaluation_metrics(record) | tested
            if last := stops_early(setup, metrics, step + 1):
                run_evaluation(setup, verifier, name="after", step=step + 1)
            if recorder:
                recorder.write(step + 1, metrics | watch.metrics(), update, scored)
            # After the records: a run that dies in between continues from the checkpoint before and writes them again.
            save_if_due(setup, step + 1, last)
            bar.advance(metrics)
            if last:
                break
            # Their pixels and image features go before those of the next step come.
            del prompts, scored, batches


def sample_and_score(
    setup: Setup,
    scorer: Scorer,
    params: SamplingParams,
    watch: Stopwatch,
    step: int,
    prompts: Sequence[Prompt],
    attempt: int = 0,
) -> list[ScoredGroup]:
    """Roll the policy out on prompts and verify what comes back; `attempt` > 0 are the tries of dynamic sampling."""
    template = setup.config.data.template
    purpose = ("rollout", step) if attempt == 0 else ("resample", step, attempt)
    with early_verdicts(scorer, template) as early:
        with watch("sample"):
            groups = setup.sampler.sample(prompts, params, (setup.config.seed, *purpose), early.begin)
        with watch("verify"):
            return score_groups(scorer, groups, template, early)


def sampling_params(config: Config) -> SamplingParams:
    """How rollouts are drawn."""
    rollout = config.rollout
    return SamplingParams(
        rollout.num_generations, rollout.max_completion_length, rollout.temperature, rollout.top_p, rollout.top_k
    )


def evaluate_if_due(setup: Setup, verifier: Verifier, step: int) -> dict[str, Any]:
    """The evaluation after `step`, {} when none is due; the one after the last step is kept as eval/after.json."""
    config = setup.config
    if step == config.train.max_steps:
        return run_evaluation(setup, verifier, name="after", step=step)
    if config.eval.every and step % config.eval.every == 0:
        return run_evaluation(setup, verifier, name=f"step_{step}", step=step, keep=False)
    return {}


def update_settings(config: Config, tools: Tools, objective: Objective) -> UpdateSettings:
    """The part of the configuration that an update reads."""
    return UpdateSettings(
        beta=config.objective.beta,
        temperature=config.rollout.temperature,
        max_tokens=config.train.max_tokens_per_micro_batch,
        chunk_size=config.train.logits_chunk_size,
        num_minibatches=config.train.num_minibatches,
        num_iterations=config.train.num_iterations,
        recompute=config.rollout.old_log_probs == "trainer",
        pad_id=tools.pad_id,
        on_nonfinite=config.train.on_nonfinite,
        on_policy=on_policy_multiplier(objective),
    )


def run_evaluation(setup: Setup, verifier: Verifier, *, name: str, step: int, keep: bool = True) -> dict[str, Any]:
    """Evaluate the policy on the held-out rows; with `keep`, write eval/NAME.json and .md. {} without such rows."""
    if not setup.eval_rows:
        return {}
    config = setup.config
    params = evaluation_params(config)
    items = evaluate(
        setup.eval_rows,
        setup.builder,
        setup.sampler,
        verifier,
        params,
        template=config.data.template,
        seed=config.seed,
        image_dir=setup.run_dir if keep else None,
        gallery=config.eval.gallery,
    )
    record = summarise(items, name=name, step=step, params=params)
    if keep and distributed.is_main():
        write_evaluation(setup.run_dir / "eval", record)
    return record


def evaluation_metrics(record: dict[str, Any]) -> dict[str, float]:
    """The row of metrics.jsonl of an evaluation."""
    if not record:
        return {}
    metrics = {"eval/accuracy": record["accuracy"], "eval/mean_length": record["mean_length"]}
    return metrics | {f"eval/{source}/accuracy": part["accuracy"] for source, part in record["by_source"].items()}


@contextmanager
def recording(setup: Setup, start: int) -> Iterator[Recorder | None]:
    """A recorder on the main rank, None elsewhere."""
    if not distributed.is_main():
        with nullcontext():
            yield None
        return
    recorder = Recorder(setup.run_dir, setup.config.logging, start_step=start)
    try:
        yield recorder
    finally:
        recorder.close()


class ProgressBar:
    """Steps done and time left, with reward, accuracy and the last held-out accuracy; silent but on the main rank."""

    def __init__(self, config: Config, start: int) -> None:
        self._note: dict[str, str] = {}
        self._bar = tqdm(
            total=config.train.max_steps,
            initial=start,
            desc=config.objective.name,
            unit="step",
            disable=not distributed.is_main(),
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, metrics: dict[str, float]) -> None:
        """One step more."""
        self._note["reward"] = f"{metrics['reward']:.3f}"
        for label, name in (("accuracy", "rewards/accuracy/mean"), ("held-out", "eval/accuracy")):
            if name in metrics:
                self._note[label] = f"{100 * metrics[name]:.1f} %"
        self._bar.set_postfix(self._note, refresh=False)
        self._bar.update()


class Stopwatch:
    """Seconds spent in the named parts of a step."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        begun = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - begun

    def metrics(self) -> dict[str, float]:
        """`step_time` and `time/NAME`, seconds."""
        parts = {f"time/{name}": seconds for name, seconds in self._parts.items()}
        return {"step_time": time.perf_counter() - self._started, **parts}
