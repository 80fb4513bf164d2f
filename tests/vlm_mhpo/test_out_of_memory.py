"""A device that runs out of memory: sampling goes on in halves, everything else says what to set."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.builders import Tiny, problem_row, prompts_of
from vlm_mhpo.errors import OutOfMemoryError
from vlm_mhpo.faults.memory import enough_memory, smaller_forward
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.halving import halving
from vlm_mhpo.rollout.hf.sampler import HfSampler

SENTENCE = "CUDA out of memory. Tried to allocate 2.00 GiB"
PARAMS = SamplingParams(num_samples=3, max_tokens=9)


@contextmanager
def room_for(model: Tiny, rows: int):
    """Inside, the text layers have memory for so many rows at a time; a list of the rows of each forward."""
    seen: list[int] = []

    def refuse(module, args, kwargs) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.append(hidden.shape[0])
        if hidden.shape[0] > rows:
            raise torch.OutOfMemoryError(SENTENCE)

    layer = model.policy.model.model
    layer = getattr(layer, "language_model", layer).layers[0]
    handle = layer.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2"])
def test_a_rollout_that_does_not_fit_goes_on_in_halves_and_draws_the_same_tokens(tiny, family, capsys):
    model = tiny(family)
    prompts = prompts_of(model, [problem_row(f"row {n}", f"What is {n} + 4 ?") for n in range(5)])
    plain = HfSampler(model.policy, model.codec, max_batch_tokens=100_000).sample(prompts, PARAMS, (1, "rollout", 0))
    sampler, told = HfSampler(model.policy, model.codec, max_batch_tokens=100_000), []
    with room_for(model, 6) as seen:
        halved = sampler.sample(prompts, PARAMS, (1, "rollout", 0), on_groups=told.extend)
    # It was tried with too many, and then with no more than fit.
    assert max(seen) > 6 and seen[-1] <= 6
    assert [[c.token_ids for c in group.completions] for group in halved] == [
        [c.token_ids for c in group.completions] for group in plain
    ]
    for one, other in zip(halved, plain, strict=True):
        for first, second in zip(one.completions, other.completions, strict=True):
            torch.testing.assert_close(first.log_probs, second.log_probs, rtol=0, atol=1e-5)
    assert sorted(group.prompt.id for group in told) == sorted(prompt.id for prompt in prompts)
    # The next rollout begins with what fits.
    with room_for(model, 6) as seen:
        sampler.sample(prompts, PARAMS, (1, "rollout", 1))
    assert max(seen) <= 6
    assert f"rollout.max_batch_tokens={sampler.max_batch_tokens} spares" in "".join(capsys.readouterr())


def test_when_not_even_the_least_fits_the_sentence_names_phase_and_key(tiny):
    model = tiny("qwen2")
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=100_000)
    with (
        room_for(model, 0),
        pytest.raises(
            OutOfMemoryError, match=r"^sampling ran out of memory: set deepspeed\.zero_stage=3, or a lower rollout\."
        ) as caught,
    ):
        sampler.sample(prompts_of(model), PARAMS, (1,))
    assert caught.value.exit_code == 6 and SENTENCE in str(caught.value)


def test_halving_keeps_what_was_done_and_passes_other_errors_on():
    asked: list[tuple[list[int], int]] = []

    def run(places, budget):
        asked.append((list(places), budget))
        for place in places:
            if place == 2 and budget > 10:
                raise torch.OutOfMemoryError(SENTENCE)
            yield {place: -place}

    results = list(halving(range(4), run, 1000, lambda places: 10 * len(places)))
    assert results == [({0: 0}, 1000), ({1: -1}, 1000), ({2: -2}, 10), ({3: -3}, 10)]
    assert asked == [([0, 1, 2, 3], 1000), ([2, 3], 10)]

    def broken(places, budget):
        raise RuntimeError("shapes do not fit")
        yield

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(halving(range(2), broken, 10, len))


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("train", 16384, 12000, 4, False), "train.max_tokens_per_micro_batch=6000 (now 16384)"),
        (("sft", 1000, 4000, 2, False), "sft.max_tokens_per_micro_batch=500 (now 1000)"),
        (("train", 16384, 9000, 1, False), "model.gradient_checkpointing=true"),
        (("train", 16384, 9000, 1, True), "deepspeed.zero_stage=3 with deepspeed.offload_optimizer=true"),
    ],
)
def test_the_value_to_set_is_one_that_helps(arguments, key):
    assert smaller_forward(*arguments).startswith(key)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(SENTENCE), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_every_allocator_is_understood_and_other_errors_are_left_alone(error):
    with (
        pytest.raises(OutOfMemoryError, match=r"^the update ran out of memory: set KEY=1, "),
        enough_memory("the update", lambda: "KEY=1"),
    ):
        raise error
    with pytest.raises(RuntimeError, match=r"^other$"), enough_memory("the update", lambda: "KEY=1"):
        raise RuntimeError("other")
