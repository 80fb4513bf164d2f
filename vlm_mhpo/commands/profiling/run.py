"""Take a profile: a few steps of the real training under marks, without checkpoints, evaluation and report."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from vlm_mhpo.commands.profiling.figures import PHASES, Forwards, Phase, Profile, Stage
from vlm_mhpo.commands.profiling.flops import model_flops
from vlm_mhpo.commands.profiling.marks import Tally, counted, hooked
from vlm_mhpo.commands.profiling.rate import matmul_rate
from vlm_mhpo.config import Config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.models.loading import DTYPES
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import Clock, device_clock
from vlm_mhpo.training.run import open_training

# First steps compile, allocate and start worker processes.
WARMUP_STEPS = 1


def profile_run(config: Config, *, num_steps: int, out: Path) -> None:
    """Take a profile; the main rank prints it and writes profile.json and profile.png into `out`."""
    profiles = _take_profile(config, num_steps=num_steps, out=out)
    if ranks.is_main():
        # Only where it draws: matplotlib is slow to load.
        from vlm_mhpo.commands.profiling.report import write_profile

        write_profile(profiles, config, out)


def _take_profile(config: Config, *, num_steps: int, out: Path) -> list[Profile]:
    """Train for a few steps and say where they went.

    Args:
        config: of the run that is asked about; its run folder is not touched.
        num_steps: steps that are measured, after one that is not.
        out: folder for a scratch run folder, which is removed at the end.

    Returns:
        The profile of each rank, on all ranks.

    Raises:
        ConfigError: `out` cannot be written to.
        VlmMhpoError: what training raises.
    """
    ranks.start(config.num_threads)
    device = ranks.device()
    with _scratch_folder(out) as run_dir:
        steps = Steps(config, num_steps, device)
        few = short(config, run_dir, WARMUP_STEPS + num_steps)
        with open_training(few, steps.clock) as (loop, start), steps.hooked(loop.update.engine.policy):
            counted(loop, steps.tally, steps.end).run(start)
    ranks.barrier()
    rate = matmul_rate(device, DTYPES[config.model.dtype])
    return ranks.gather_objects(replace(steps.profile, matmul_flops_per_s=rate))


@contextmanager
def _scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder in `out`, the same on all ranks, gone afterwards."""
    folder, error = "", None
    if ranks.is_main():
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix=".run_", dir=out)
        except OSError as problem:
            error = ConfigError(f"--out {out}: cannot be written to ({problem}): choose another folder")
    ranks.raise_together(error)
    folder = ranks.gather_objects(folder)[0]
    try:
        yield Path(folder)
    finally:
        if ranks.is_main():
            shutil.rmtree(folder, ignore_errors=True)


def short(config: Config, run_dir: Path, num_steps: int) -> Config:
    """The same training for a few steps in another folder, with nothing before or after them."""
    return config.model_copy(
        update={
            "output_dir": str(run_dir),
            "train": config.train.model_copy(update={"max_steps": num_steps}),
            "data": config.data.model_copy(update={"eval": None}),
            "logging": config.logging.model_copy(update={"report": False, "wandb": False}),
        }
    )


class Steps:
    """Follows the steps of a run: forgets the first, sums up after the last.

    Attributes:
        clock, tally: what the marks write to.
        profile: this rank's, after the last step; without the matmul rate.
    """

    def __init__(self, config: Config, num_steps: int, device: torch.device) -> None:
        self.clock, self._memory_kind = device_clock(device)
        self.tally = Tally()
        self.profile: Profile | None = None
        self._config = config
        self._num_steps = num_steps
        self._device = device
        self._done = -WARMUP_STEPS
        self._ends: list[float] = []
        self._cpu_s = 0.0

    def hooked(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside, what passes through the policy is counted."""
        return hooked(policy, self.clock, self.tally)

    def end(self) -> None:
        """A step has ended."""
        self._done += 1
        if self._done == 0:
            self.tally.clear()
            self._cpu_s = time.process_time()
            self.clock.restart()
        elif self._done > 0:
            self._ends.append(self.clock.lap())
            if self._done == self._num_steps:
                self.profile = self._sum_up(time.process_time() - self._cpu_s)

    def _sum_up(self, cpu_s: float) -> Profile:
        count, clock, device = self._num_steps, self.clock, self._device
        is_gpu = device.type == "cuda"
        memory = torch.cuda.get_device_properties(device).total_memory if is_gpu else None
        forwards = tuple(
            Forwards(name, *(counter[key] / count for key in ("calls", "rows", "tokens")))
            for name, counter in self.tally.forwards.items()
        )
        return Profile(
            step_seconds=tuple(end - start for start, end in zip([0.0, *self._ends], self._ends, strict=False)),
            phases=_phases_of(clock, count),
            forwards=forwards,
            stages=_stages_of(self.tally, clock, count),
            timeout_share=self.tally.tokens["sample"]["timeouts"] / max(1, self.tally.tokens["sample"]["completions"]),
            background_prompts_s=clock.background["prompts"] / count,
            busy_cores=cpu_s / self._ends[-1],
            num_threads=torch.get_num_threads(),
            num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            num_local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            num_ranks=1,
            device=torch.cuda.get_device_name(device) if is_gpu else "CPU",
            memory_kind=self._memory_kind,
            device_memory_bytes=memory,
            dtype=self._config.model.dtype,
            matmul_flops_per_s=0.0,
        )


def _phases_of(clock: Clock, num_steps: int) -> tuple[Phase, ...]:
    """The phases that the clock has seen, and the clock itself."""
    seconds, calls, peaks = Counter(profiler=clock.overhead), Counter(), Counter()
    for span, taken in clock.seconds.items():
        name = phase_of(span)
        seconds[name] += taken
        calls[name] += clock.calls[span]
        peaks[name] = max(peaks[name], clock.peaks.get(span, 0))
    return tuple(
        Phase(name, seconds[name] / num_steps, calls[name] / num_steps, peaks[name])
        for name in PHASES
        if name in seconds
    )


def phase_of(span: str) -> str:
    """The line of the table that a span belongs to."""
    known = {"sample": "sample/choose", "update": "update/loss"}.get(span, span)
    stage = span.split("/")[0]
    return known if known in PHASES else stage if stage in PHASES else "other"


def _stages_of(tally: Tally, clock: Clock, num_steps: int) -> tuple[Stage, ...]:
    """What sampling, log-probs and updates got done in the measured steps."""
    stages = []
    for name in ("sample", "log_probs", "update"):
        counts, forwards = tally.tokens[name], [c for place, c in tally.forwards.items() if place.split("/")[0] == name]
        computed = sum(counter["tokens"] for counter in forwards)
        if not counts:
            continue
        work = tally.work[name]
        seen = counts["prompts"] - counts["unmarked"]
        on_images = model_flops(tally.parts, tally.vision_work(name), backward=name == "update")
        flops = model_flops(tally.parts, work, backward=name == "update")
        # The images of forwards without marks are taken for the average of those that were seen.
        flops += on_images * counts["prompts"] / seen if seen else 0.0
        stages.append(
            Stage(
                name=name,
                seconds=sum(s for phase, s in clock.seconds.items() if phase.split("/")[0] == name) / num_steps,
                prompt_tokens=counts["prompt_tokens"] / num_steps,
                completion_tokens=counts["completion_tokens"] / num_steps,
                # The reference model carries no marks, so what it pads is not known.
                computed_tokens=max(computed, work.tokens) / num_steps,
                needed_tokens=work.tokens / num_steps,
                flops=flops / num_steps,
                prompts=counts["prompts"] / num_steps,
            )
        )
    return tuple(stages)
