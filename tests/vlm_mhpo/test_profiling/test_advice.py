"""Each rule of advice on figures that call for it and on figures that do not; ranks taken together; the image."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vlm_mhpo.config_cases import minimal
from vlm_mhpo.commands.profiling import advice, report
from vlm_mhpo.commands.profiling.figures import PHASES, Forwards, Phase, Profile, Stage, merge
from vlm_mhpo.config import Config

GIB = 2**30


def profile_of(seconds: dict[str, float], **changes) -> Profile:
    """A one-second step of one rank on an eight-core CPU at 1 TFLOP/s, at a tenth of it; the rest of it is other."""
    seconds = {name: value for name in PHASES if (value := seconds.get(name, 0.0))}
    seconds["other"] = 1.0 - sum(seconds.values())
    stages = tuple(
        Stage(
            name=name,
            seconds=time,
            prompt_tokens=800,
            completion_tokens=200,
            computed_tokens=1000,
            needed_tokens=1000,
            flops=1e11 * time,
            prompts=8,
        )
        for name in ("sample", "log_probs", "update")
        if (time := sum(value for phase, value in seconds.items() if phase.split("/")[0] == name))
    )
    base = Profile(
        step_seconds=(1.0, 1.0),
        phases=tuple(Phase(name, value, 1.0, 10 * GIB) for name, value in seconds.items()),
        forwards=(
            Forwards("sample/prefill", 1, 8, 800),
            Forwards("sample/decode", 10, 80, 80),
            Forwards("update", 4, 8, 1000),
        ),
        stages=stages,
        timeout_share=0.0,
        background_prompts_s=0.0,
        busy_cores=1.0,
        num_threads=8,
        num_cores=8,
        num_local_ranks=1,
        num_ranks=1,
        device="CPU",
        memory_kind="resident memory",
        device_memory_bytes=None,
        dtype="bfloat16",
        matmul_flops_per_s=1e12,
    )
    return replace(base, **changes)


def forwards_with(place: Forwards) -> tuple[Forwards, ...]:
    """The forwards of `profile_of` with one place exchanged."""
    return tuple(place if each.name == place.name else each for each in profile_of({}).forwards)


def stages_with(profile: Profile, name: str, **changes) -> Profile:
    """The profile with changes to one stage."""
    return replace(profile, stages=tuple(replace(s, **changes) if s.name == name else s for s in profile.stages))


SAMPLING = profile_of({"sample/decode": 0.7, "update/backward": 0.2})
UPDATING = profile_of({"sample/decode": 0.2, "update/backward": 0.5, "update/forward": 0.2})
MICRO = replace(UPDATING, forwards=forwards_with(Forwards("update", 16, 16, 8000)))
ON_GPU = {"device_memory_bytes": 20 * GIB}
SPLIT = stages_with(
    replace(UPDATING, forwards=forwards_with(Forwards("update", 4, 32, 3000))), "update", computed_tokens=3000
)
PADDED = stages_with(
    replace(UPDATING, forwards=forwards_with(Forwards("update", 4, 8, 2000))), "update", computed_tokens=2000
)
BUSY = stages_with(replace(UPDATING, num_threads=1), "update", flops=6e11)
FULL = replace(SAMPLING, device_memory_bytes=10 * GIB)

# Rule, what it speaks on, the setting that it names with its value, and what it is silent on.
CASES = [
    # 800 tokens of prompts and 8 x 8 completions of 512: 33568.
    (
        advice.small_sampling_batches,
        (SAMPLING, {"rollout__max_batch_tokens": 16384}),
        "rollout.max_batch_tokens from 16384 towards 65536 if memory allows",
        (SAMPLING, {"rollout__max_batch_tokens": 33568}),
    ),
    (
        advice.small_sampling_batches,
        (replace(SAMPLING, **ON_GPU), {"rollout__max_batch_tokens": 33567}),
        "65536, or set it to auto",
        (replace(SAMPLING, device_memory_bytes=11 * GIB), {"rollout__max_batch_tokens": 16384}),
    ),
    (
        advice.small_sampling_batches,
        (SAMPLING, {"rollout__max_batch_tokens": 16384}),
        "8 rows at a time of 64 completions",
        (stages_with(SAMPLING, "sample", flops=5e11), {"rollout__max_batch_tokens": 16384}),
    ),
    (
        advice.small_sampling_batches,
        (replace(SAMPLING, num_ranks=2), {"rollout__max_batch_tokens": 16383}),
        "of 32 completions: raise rollout.max_batch_tokens from 16383 towards 32768",
        (SAMPLING, {}),
    ),
    # 16 forwards in 4 updates: 4 of 500 tokens each, so 2000 hold a minibatch.
    (
        advice.small_micro_batches,
        (MICRO, {"train__max_tokens_per_micro_batch": 512}),
        "train.max_tokens_per_micro_batch from 512 towards 2048",
        (UPDATING, {}),
    ),
    (
        advice.small_micro_batches,
        (MICRO, {}),
        "500 tokens each, 3.1 % of the budget",
        (stages_with(MICRO, "update", flops=5e11), {}),
    ),
    (
        advice.split_groups,
        (SPLIT, {}),
        "trained on 4.0 times instead of once; a whole group has about 125 tokens",
        (PADDED, {}),
    ),
    (
        advice.padded_rows,
        (PADDED, {"train__max_tokens_per_micro_batch": 600}),
        "lower train.max_tokens_per_micro_batch from 600 to about 256",
        (SPLIT, {}),
    ),
    (
        advice.slow_verification,
        (profile_of({"verify": 0.03}), {}),
        "raise rewards.num_workers from 1 to 2",
        (profile_of({"verify": 0.02}), {}),
    ),
    (
        advice.slow_verification,
        (profile_of({"verify": 0.03}, timeout_share=0.05), {"rewards__num_workers": 8}),
        "5.0 % of the answers run into the time limit: lower rewards.timeout_s from 1",
        (profile_of({"verify": 0.03}), {"rewards__num_workers": 8}),
    ),
    (
        advice.slow_prompts,
        (profile_of({"prompts": 0.1}), {"data__prefetch": False}),
        "data.prefetch=true",
        (profile_of({"prompts": 0.04}), {}),
    ),
    (advice.slow_prompts, (profile_of({"prompts": 0.1}), {}), "model.max_pixels", (profile_of({}), {})),
    (
        advice.needless_log_probs,
        (profile_of({"log_probs": 0.2}), {"model__dtype": "float32"}),
        "rollout.old_log_probs=sampler",
        (profile_of({"log_probs": 0.2}), {"model__dtype": "bfloat16"}),
    ),
    (
        advice.too_many_threads,
        (profile_of({}, num_threads=8, num_local_ranks=2), {}),
        "set num_threads=4",
        (profile_of({}, num_threads=4, num_local_ranks=2), {}),
    ),
    (advice.too_few_threads, (BUSY, {}), "set num_threads=8", (replace(BUSY, busy_cores=6.0), {})),
    (advice.too_few_threads, (BUSY, {}), "1.0 of 8 cores", (replace(UPDATING, num_threads=1), {})),
    (
        advice.starved,
        (replace(UPDATING, busy_cores=0.3), {}),
        "0.30 of a core",
        (profile_of({"ranks": 0.5}, busy_cores=0.3), {}),
    ),
    (
        advice.full_memory,
        (FULL, {"rollout__max_batch_tokens": 65536}),
        "lower rollout.max_batch_tokens=65536",
        (replace(FULL, **ON_GPU), {}),
    ),
    # What was free is what it took.
    (
        advice.full_memory,
        (FULL, {}),
        "set rollout.max_batch_tokens to less than the sampling/max_batch_tokens that auto took",
        (replace(FULL, **ON_GPU), {}),
    ),
    (
        advice.needless_checkpointing,
        (replace(UPDATING, device_memory_bytes=40 * GIB), {"model__gradient_checkpointing": True}),
        "model.gradient_checkpointing=false",
        (replace(UPDATING, **ON_GPU), {"model__gradient_checkpointing": True}),
    ),
    (
        advice.offloaded_optimizer,
        (profile_of({"update/optimizer": 0.4}, **ON_GPU), {"deepspeed__offload_optimizer": True}),
        "deepspeed.offload_optimizer=false.",
        (profile_of({"update/optimizer": 0.4}), {}),
    ),
    (
        advice.trained_vision_tower,
        (profile_of({"update/vision": 0.2}), {}),
        "model.freeze_vision_tower=true",
        (profile_of({"update/vision": 0.2}), {"model__freeze_vision_tower": True}),
    ),
    (
        advice.uneven_ranks,
        (profile_of({"ranks": 0.2}), {}),
        "train.num_prompts_per_step",
        (profile_of({"ranks": 0.1}), {}),
    ),
]


@pytest.mark.parametrize(("rule", "speaks", "words", "silent"), CASES)
def test_a_rule_names_the_setting_and_is_silent_where_it_would_not_help(rule, speaks, words, silent):
    profile, changes = speaks
    found = rule(profile, Config(**minimal(**changes)))
    assert words in found.text
    profile, changes = silent
    assert rule(profile, Config(**minimal(**changes))) is None


def test_every_rule_is_used_and_tried():
    assert {rule for rule, *_ in CASES} == set(advice.RULES)


def test_the_two_largest_shares_are_advised_on_first():
    profile = profile_of({"verify": 0.1, "prompts": 0.3, "ranks": 0.2})
    said = advice.advise(profile, Config(**minimal(data__prefetch=False)))
    assert ["data.prefetch" in said[0], "num_prompts_per_step" in said[1], len(said)] == [True, True, 2]


def test_without_a_bottleneck_the_longest_phase_is_named():
    (said,) = advice.advise(SAMPLING, Config(**minimal()))
    assert said == "No setting stands out: most of the step is sample / decode, 70 % (10 % of the matmul rate)."


def test_two_ranks_take_the_mean_time_and_do_the_sum_of_the_work():
    fast = profile_of({"sample/decode": 0.4, "ranks": 0.4})
    slow = profile_of({"sample/decode": 0.8})
    both = merge([fast, slow])
    assert (both.wall_s, both.num_ranks) == (1.0, 2)
    assert both.seconds("sample") == pytest.approx(0.6)
    assert both.seconds("ranks") == pytest.approx(0.2)
    assert both.stage("sample").completion_tokens == 400
    # Each rank ran at a tenth of its own rate.
    assert both.utilisation("sample") == pytest.approx(0.1)


def test_the_picture_is_drawn(tmp_path):
    report.draw_profile(UPDATING, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
