"""The nouns of a profile: phases, forwards, stages, and the profile of a rank or of all ranks.

All figures are per step. A phase name is "GROUP" or "GROUP/PART".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# In the order of a step, with the words of the table. "sample/choose" is all of sampling outside the forwards (head,
# choice of tokens, text), "update/loss" all of an update outside the others, "log_probs" old and reference log-probs
# with the advantages.
PHASES = {
    "prompts": "prompts",
    "sample/vision": "vision tower",
    "sample/prefill": "prefill",
    "sample/decode": "decode",
    "sample/choose": "logits, choice",
    "verify": "verify",
    "log_probs": "log-probs",
    "update/vision": "vision tower",
    "update/forward": "forward",
    "update/backward": "backward",
    "update/optimizer": "optimizer",
    "update/diagnostics": "diagnostics",
    "update/loss": "packing, loss",
    "ranks": "waiting for ranks",
    "records": "records",
    "other": "other, idle",
    "profiler": "the profiler",
}
GROUPS = {"sample": "sample", "update": "train"}


@dataclass(frozen=True, slots=True)
class Phase:
    """A kind of work of a step.

    Attributes:
        seconds: wall time, all other phases inside it left out.
        calls: times it was entered.
        peak_bytes: most memory in use during it.
    """

    name: str
    seconds: float
    calls: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Forwards:
    """Forwards of the language model in one place: "sample/prefill", "sample/decode", "log_probs" or "update".

    Attributes:
        calls: how many.
        rows: rows of all of them.
        tokens: rows times width of each, padding included.
    """

    name: str
    calls: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """What one of "sample", "log_probs" and "update" got done, over all ranks.

    Attributes:
        seconds: wall time, mean over ranks.
        prompt_tokens, completion_tokens: real tokens; a prompt counts once for its group (in each pass).
        computed_tokens: tokens in forwards, with padding, repeated prompts and finished rows.
        needed_tokens: those of them that the mathematics asks for.
        flops: model FLOPs, see `flops`.
        prompts: prompts, in each pass.
    """

    name: str
    seconds: float
    prompt_tokens: float
    completion_tokens: float
    computed_tokens: float
    needed_tokens: float
    flops: float
    prompts: float

    @property
    def waste(self) -> float:
        """Share of computed tokens that nobody asked for, 0 to 1."""
        return max(0.0, 1.0 - self.needed_tokens / self.computed_tokens) if self.computed_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a step's time and memory went.

    Attributes:
        step_seconds: wall time of each measured step.
        phases: they add up to the mean step.
        forwards, stages: see there.
        timeout_share: of the sampled completions, those whose verification ran into its time limit.
        background_prompts_s: seconds that other threads spent on prompts.
        busy_cores: CPU time of the process over wall time.
        num_threads, num_cores: torch's threads of a process; CPU cores of the machine.
        num_local_ranks, num_ranks: processes on this machine, and in all.
        device: what it ran on.
        memory_kind: what `Phase.peak_bytes` counts.
        device_memory_bytes: of a GPU, else None.
        dtype: of the model's weights.
        matmul_flops_per_s: measured on this device in that type, while all ranks measured.
    """

    step_seconds: tuple[float, ...]
    phases: tuple[Phase, ...]
    forwards: tuple[Forwards, ...]
    stages: tuple[Stage, ...]
    timeout_share: float
    background_prompts_s: float
    busy_cores: float
    num_threads: int
    num_cores: int
    num_local_ranks: int
    num_ranks: int
    device: str
    memory_kind: str
    device_memory_bytes: int | None
    dtype: str
    matmul_flops_per_s: float

    @property
    def wall_s(self) -> float:
        """Seconds of a step."""
        return sum(self.step_seconds) / len(self.step_seconds)

    def seconds(self, name: str) -> float:
        """Seconds of a phase, or of all phases of a group."""
        return sum(phase.seconds for phase in self.phases if name in (phase.name, phase.name.split("/")[0]))

    def share(self, name: str) -> float:
        """`seconds` over the step."""
        return self.seconds(name) / self.wall_s

    def peak_bytes(self, name: str = "") -> int:
        """Most memory of a phase or group, by default of all."""
        peaks = [p.peak_bytes for p in self.phases if not name or name in (p.name, p.name.split("/")[0])]
        return max(peaks, default=0)

    def forwards_of(self, name: str) -> Forwards:
        """The forwards of one place; zeros when there were none."""
        return next((each for each in self.forwards if each.name == name), Forwards(name))

    def stage(self, name: str) -> Stage | None:
        """One stage, None when it did not run."""
        return next((each for each in self.stages if each.name == name), None)

    def utilisation(self, name: str) -> float:
        """Model FLOPs of a stage over what the matmul rate would have done in its time; 0 when it did not run."""
        stage = self.stage(name)
        return stage.flops / (stage.seconds * self.matmul_flops_per_s * self.num_ranks) if stage else 0.0


def merge(profiles: Sequence[Profile]) -> Profile:
    """The profile of all ranks: means of times and rates, sums of tokens and FLOPs, largest memory."""
    first, count = profiles[0], len(profiles)
    by_phase = [{phase.name: phase for phase in each.phases} for each in profiles]
    by_place = [{each.name: each for each in profile.forwards} for profile in profiles]
    by_stage = [{stage.name: stage for stage in each.stages} for each in profiles]
    phase_names = [name for name in PHASES if any(name in phases for phases in by_phase)]
    stage_names = dict.fromkeys(name for stages in by_stage for name in stages)
    place_names = dict.fromkeys(name for places in by_place for name in places)
    return replace(
        first,
        step_seconds=tuple(sum(times) / count for times in zip(*(each.step_seconds for each in profiles), strict=True)),
        phases=tuple(_merge_phase([held[name] for held in by_phase if name in held], count) for name in phase_names),
        forwards=tuple(_merge_forwards([held[name] for held in by_place if name in held]) for name in place_names),
        stages=tuple(_merge_stage([held[name] for held in by_stage if name in held], count) for name in stage_names),
        timeout_share=sum(each.timeout_share for each in profiles) / count,
        background_prompts_s=sum(each.background_prompts_s for each in profiles) / count,
        busy_cores=sum(each.busy_cores for each in profiles) / count,
        matmul_flops_per_s=sum(each.matmul_flops_per_s for each in profiles) / count,
        num_ranks=count,
    )


def _merge_phase(phases: Sequence[Phase], num_ranks: int) -> Phase:
    """One phase over ranks; a rank without it spent no time in it."""
    seconds, calls = (sum(values) / num_ranks for values in zip(*((p.seconds, p.calls) for p in phases), strict=True))
    return Phase(phases[0].name, seconds, calls, max(phase.peak_bytes for phase in phases))


def _merge_forwards(places: Sequence[Forwards]) -> Forwards:
    """The forwards of one place over ranks, added up."""
    return Forwards(
        places[0].name, sum(p.calls for p in places), sum(p.rows for p in places), sum(p.tokens for p in places)
    )


def _merge_stage(stages: Sequence[Stage], num_ranks: int) -> Stage:
    """One stage over ranks."""
    sums = {
        name: sum(getattr(stage, name) for stage in stages)
        for name in ("prompt_tokens", "completion_tokens", "computed_tokens", "needed_tokens", "flops", "prompts")
    }
    return Stage(name=stages[0].name, seconds=sum(stage.seconds for stage in stages) / num_ranks, **sums)
