"""Which setting to change: one small rule a bottleneck, on the measured figures alone.

A rule looks at a profile and its configuration and gives an advice or None. An advice carries the share of the step
that it is about, and the largest come first. Thresholds stand beside the rules; a rule whose cure changes what is
learnt, and not only how fast, says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm_mhpo.commands.profiling.figures import GROUPS, PHASES, Profile
from vlm_mhpo.config import Config

# Above this share of its memory a GPU has no room for larger batches.
ROOM = 0.7
NEARLY_FULL = 0.92
# A stage above this share of the matmul rate gains little from larger batches.
WELL_USED = 0.4


@dataclass(frozen=True, slots=True)
class Advice:
    """A sentence on a setting, and the share of the step that it is about."""

    share: float
    text: str


Rule = Callable[[Profile, Config], Advice | None]


def advise(profile: Profile, config: Config, *, most: int = 2) -> list[str]:
    """One or two sentences: the advice on the largest shares of the step, or what takes longest if no rule speaks."""
    found = [advice for rule in RULES if (advice := rule(profile, config))]
    found.sort(key=lambda advice: -advice.share)
    return [advice.text for advice in found[:most]] or [_nothing_to_change(profile)]


def _nothing_to_change(profile: Profile) -> str:
    """What to say when every setting fits."""
    longest = max(profile.phases, key=lambda phase: phase.seconds)
    group = longest.name.split("/")[0]
    words = f"{GROUPS[group]} / {PHASES[longest.name]}" if group in GROUPS else PHASES[longest.name]
    rate = f" ({percent(profile.utilisation(group))} of the matmul rate)" if profile.stage(group) else ""
    return f"No setting stands out: most of the step is {words}, {percent(longest.seconds / profile.wall_s)}{rate}."


def small_sampling_batches(profile: Profile, config: Config) -> Advice | None:
    """Sampling dominates, and completions of a step wait for the slots of others."""
    stage, now = profile.stage("sample"), config.rollout.max_batch_tokens
    if profile.share("sample") < 0.4 or stage is None or now == "auto" or not _has_room(profile, "sample"):
        return None
    rollout = config.rollout
    budgets = stage.prompts * rollout.num_generations * rollout.max_completion_length
    whole = (stage.prompt_tokens + budgets) / profile.num_ranks
    if profile.utilisation("sample") > WELL_USED or whole <= now:
        return None
    decode = profile.forwards_of("sample/decode")
    rows = decode.rows / decode.calls if decode.calls else 0.0
    completions = stage.prompts * rollout.num_generations / profile.num_ranks
    return Advice(
        profile.share("sample"),
        f"Sampling is {percent(profile.share('sample'))} of the step and decodes {rows:.0f} rows at a time of "
        f"{completions:.0f} completions: raise rollout.max_batch_tokens from {now} towards {_round_up(whole)}"
        f"{_caution(profile)}, or set it to auto.",
    )


def small_micro_batches(profile: Profile, config: Config) -> Advice | None:
    """Updates dominate, run at a small part of the matmul rate, and cut a minibatch into several forwards."""
    forwards = profile.forwards_of("update")
    calls = forwards.calls / profile.num_ranks / config.updates_per_step
    if profile.share("update") < 0.3 or calls <= 1.5 or not _has_room(profile, "update"):
        return None
    tokens, budget = forwards.tokens / forwards.calls, config.train.max_tokens_per_micro_batch
    if profile.utilisation("update") > WELL_USED:
        return None
    filled = f" of {tokens:.0f} tokens each, {percent(tokens / budget)} of the budget" if tokens < 0.6 * budget else ""
    return Advice(
        profile.share("update"),
        f"An update is {calls:.0f} forwards{filled}, at {percent(profile.utilisation('update'))} of the matmul rate: "
        f"raise train.max_tokens_per_micro_batch from {budget} towards {_round_up(tokens * calls)}{_caution(profile)}.",
    )


def split_groups(profile: Profile, config: Config) -> Advice | None:
    """Groups do not fit a micro-batch, so their prompts are computed more than once."""
    stage, rows = profile.stage("update"), profile.forwards_of("update").rows
    if stage is None or rows < 1.2 * stage.prompts or not _has_room(profile, "update"):
        return None
    whole = (stage.prompt_tokens + stage.completion_tokens) / stage.prompts
    return Advice(
        profile.share("update") * stage.waste,
        f"Groups are split: each prompt is trained on {rows / stage.prompts:.1f} times instead of once; a whole group "
        f"has about {whole:.0f} tokens, train.max_tokens_per_micro_batch is {config.train.max_tokens_per_micro_batch}: "
        f"raise it{_caution(profile)}.",
    )


def padded_rows(profile: Profile, config: Config) -> Advice | None:
    """Rows of different lengths share a micro-batch."""
    stage, rows = profile.stage("update"), profile.forwards_of("update").rows
    if stage is None or stage.waste < 0.2 or rows >= 1.2 * stage.prompts:
        return None
    calls = profile.forwards_of("update").calls
    if rows < 2 * calls:
        return None
    now = config.train.max_tokens_per_micro_batch
    largest = profile.forwards_of("update").tokens / calls
    return Advice(
        profile.share("update") * stage.waste,
        f"{percent(stage.waste)} of the trained tokens are padding, because rows of different lengths share a "
        f"micro-batch: lower train.max_tokens_per_micro_batch from {now} to about {_round_up(min(now, largest) / 2)}.",
    )


def slow_verification(profile: Profile, config: Config) -> Advice | None:
    """The step waits for verification, because of answers that hang or for want of workers."""
    share, workers = profile.share("verify"), config.rewards.num_workers
    cores = profile.num_cores // profile.num_local_ranks
    if share <= 0.02:
        return None
    if profile.timeout_share > 0:
        cure = (
            f"{percent(profile.timeout_share)} of the answers run into the time limit: lower rewards.timeout_s from "
            f"{config.rewards.timeout_s:g}"
        )
    elif workers < cores:
        cure = f"raise rewards.num_workers from {workers} to {min(cores, 2 * workers)}"
    else:
        return None
    return Advice(share, f"The step waits {percent(share)} of its time for verification: {cure}.")


def slow_prompts(profile: Profile, config: Config) -> Advice | None:
    """The step waits for prompts."""
    share = profile.share("prompts")
    if share <= 0.05:
        return None
    cure = "lower model.max_pixels (smaller images, which changes what the model sees)"
    if not config.data.prefetch:
        cure = "set data.prefetch=true"
    return Advice(share, f"The step waits {percent(share)} of its time for prompts to be loaded and processed: {cure}.")


def needless_log_probs(profile: Profile, config: Config) -> Advice | None:
    """The trainer computes log-probs again that the sampler has, in a type in which both agree."""
    share = profile.share("log_probs")
    if share <= 0.05 or config.rollout.old_log_probs != "trainer" or config.model.dtype != "float32":
        return None
    return Advice(
        share,
        f"Old log-probs take {percent(share)} of the step; in float32 the sampler's own are as good: set "
        "rollout.old_log_probs=sampler.",
    )


def too_many_threads(profile: Profile, config: Config) -> Advice | None:
    """More threads than cores: each waits for one that is not running."""
    threads = profile.num_threads * profile.num_local_ranks
    if threads <= profile.num_cores:
        return None
    return Advice(
        1.0,
        f"{profile.num_local_ranks} rank(s) of {profile.num_threads} threads share {profile.num_cores} cores and wait "
        f"for each other: set num_threads={max(1, profile.num_cores // profile.num_local_ranks)}.",
    )


def too_few_threads(profile: Profile, config: Config) -> Advice | None:
    """Large products on a CPU of which cores are idle."""
    each = profile.num_cores // profile.num_local_ranks
    if profile.device_memory_bytes is not None or profile.num_threads * 2 > each or profile.busy_cores > 0.6 * each:
        return None
    # Small products gain nothing from a second thread; they lose.
    busy = max(profile.utilisation("sample"), profile.utilisation("update"))
    if busy < WELL_USED:
        return None
    return Advice(
        profile.share("sample") + profile.share("update"),
        f"{profile.busy_cores:.1f} of {each} cores are busy and the products are large "
        f"({percent(busy)} of what {profile.num_threads} thread(s) can do): set num_threads={each}.",
    )


def starved(profile: Profile, config: Config) -> Advice | None:
    """On a CPU: the process neither computed nor waited for workers or ranks; another program had the cores."""
    waited = sum(profile.share(name) for name in ("prompts", "verify", "ranks"))
    if profile.device_memory_bytes is not None or profile.busy_cores + waited > 0.7:
        return None
    return Advice(
        1.0,
        f"This process had {profile.busy_cores:.2f} of a core: other programs keep the machine busy, so measure again "
        "when they do not, before changing a setting.",
    )


def full_memory(profile: Profile, config: Config) -> Advice | None:
    """The GPU is nearly full."""
    total = profile.device_memory_bytes
    if total is None or profile.peak_bytes() < NEARLY_FULL * total:
        return None
    if profile.peak_bytes("sample") >= profile.peak_bytes("update"):
        group, most = "sample", config.rollout.max_batch_tokens
        cure = f"lower rollout.max_batch_tokens={most}"
        if most == "auto":
            cure = "set rollout.max_batch_tokens to less than the sampling/max_batch_tokens that auto took"
    else:
        group, cure = "update", f"lower train.max_tokens_per_micro_batch={config.train.max_tokens_per_micro_batch}"
    full = percent(profile.peak_bytes() / total)
    return Advice(profile.share(group), f"GPU memory is {full} full at its peak: {cure}.")


def needless_checkpointing(profile: Profile, config: Config) -> Advice | None:
    """Activations are computed twice though memory is free."""
    total = profile.device_memory_bytes
    if not config.model.gradient_checkpointing or total is None or profile.peak_bytes("update") > 0.4 * total:
        return None
    return Advice(
        profile.share("update/backward") / 3,
        f"Updates use {percent(profile.peak_bytes('update') / total)} of the GPU's memory: set "
        "model.gradient_checkpointing=false, which saves about a third of backward.",
    )


def offloaded_optimizer(profile: Profile, config: Config) -> Advice | None:
    """The optimizer runs on the host."""
    share = profile.share("update/optimizer")
    if share < 0.15 or not config.deepspeed.offload_optimizer or not _has_room(profile, "update"):
        return None
    return Advice(
        share,
        f"The optimizer takes {percent(share)} of the step on the host: set deepspeed.offload_optimizer=false"
        f"{_caution(profile)}.",
    )


def trained_vision_tower(profile: Profile, config: Config) -> Advice | None:
    """Images take a large part of training."""
    share = profile.share("update/vision")
    if share < 0.15 or config.model.freeze_vision_tower:
        return None
    return Advice(
        # Its backward costs about twice its forward.
        3 * share,
        f"The vision tower's forward alone is {percent(share)} of the step: model.freeze_vision_tower=true saves its "
        "training (and changes what is learnt).",
    )


def uneven_ranks(profile: Profile, config: Config) -> Advice | None:
    """Ranks wait for the one with the longest completions."""
    share = profile.share("ranks")
    if share <= 0.1:
        return None
    return Advice(
        share,
        f"Ranks wait {percent(share)} of the step for the slowest: more prompts per rank even lengths out (raise "
        "train.num_prompts_per_step), or lower rollout.max_completion_length (both change what is learnt).",
    )


RULES: tuple[Rule, ...] = (
    small_sampling_batches,
    small_micro_batches,
    split_groups,
    padded_rows,
    slow_verification,
    slow_prompts,
    needless_log_probs,
    too_many_threads,
    too_few_threads,
    starved,
    full_memory,
    needless_checkpointing,
    offloaded_optimizer,
    trained_vision_tower,
    uneven_ranks,
)


def _has_room(profile: Profile, group: str) -> bool:
    """Whether larger batches may fit; on a CPU nobody can tell."""
    total = profile.device_memory_bytes
    return total is None or profile.peak_bytes(group) < ROOM * total


def _caution(profile: Profile) -> str:
    """What to add where room in memory is not known."""
    return " if memory allows" if profile.device_memory_bytes is None else ""


def percent(share: float) -> str:
    """A share as text, with a digit where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _round_up(tokens: float) -> int:
    """The next power of two: a round number to write into a configuration."""
    return 1 << max(0, int(tokens) - 1).bit_length()
