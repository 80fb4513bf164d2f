"""A completion is the same whoever shares the batch with it and whose slot it takes over; no slot waits for long."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.builders import QWEN_VL_FAMILIES, Tiny, allowed_ids, problem_row, prompts_of
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf import budget, decoding
from vlm_mhpo.rollout.hf.sampler import HfSampler

SEED = (5, "rollout", 0)
PARAMS = SamplingParams(num_samples=4, max_tokens=24)
# Room for all completions of the tests at once.
PLENTY = 10**6


def ending(model: Tiny, share: int) -> Tiny:
    """The same model with one in `share` of its tokens as end tokens, so that completions have every length."""
    ends = tuple(sorted({*model.codec.end_ids, *allowed_ids(model)[::share]}))
    return replace(model, codec=replace(model.codec, end_ids=ends))


def some_prompts(model: Tiny):
    """Nine prompts of many lengths, two of them with images if the model sees."""
    rows = [problem_row(f"extra-{index}", "What is 4 plus " + "1 plus " * index + "2 ?") for index in range(6)]
    return prompts_of(model) + prompts_of(model, rows)


@contextmanager
def forwards(model: Tiny):
    """(rows, tokens of a row) of every forward of the language model's first layer inside."""
    seen: list[tuple[int, int]] = []
    text = model.policy.model.model.language_model if model.has_vision else model.policy.model.model
    hook = text.layers[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    try:
        yield seen
    finally:
        hook.remove()


def completions_of(groups):
    return [completion for group in groups for completion in group.completions]


def assert_same_completions(found, expected):
    """Token for token; log-probs but for the rounding of products of other shapes."""
    assert [group.prompt.id for group in found] == [group.prompt.id for group in expected]
    for mine, its in zip(completions_of(found), completions_of(expected), strict=True):
        assert (mine.token_ids, mine.text, mine.truncated) == (its.token_ids, its.text, its.truncated)
        torch.testing.assert_close(mine.log_probs, its.log_probs, rtol=0, atol=5e-6)


def sample(model: Tiny, prompts, most: int, params=PARAMS, on_groups=None, side="left"):
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=most, padding_side=side)
    return sampler.sample(prompts, params, SEED, on_groups)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", (*QWEN_VL_FAMILIES, "qwen2"))
def test_completions_are_the_same_whatever_the_budget_and_whoever_ends_first(tiny, family, side):
    model = ending(tiny(family), share=12)
    prompts = some_prompts(model)
    expected = sample(model, prompts, PLENTY)
    lengths = {len(completion.token_ids) for completion in completions_of(expected)}
    assert len(lengths) > 8 and max(lengths) == PARAMS.max_tokens
    for most in (1, 150, 400, 700):
        assert_same_completions(sample(model, prompts, most, side=side), expected)


def test_greedy_completions_of_an_evaluation_are_the_same_too(tiny):
    model = tiny("qwen2_5_vl")
    greedy = SamplingParams(num_samples=1, max_tokens=24, temperature=0.0)
    # Tokens that they draw themselves, at one place or another, but none that begins one.
    long = completions_of(sample(model, some_prompts(model), PLENTY, greedy))
    ends = {each.token_ids[5 + index] for index, each in enumerate(long)} - {each.token_ids[0] for each in long}
    model = replace(model, codec=replace(model.codec, end_ids=tuple(ends)))
    expected = sample(model, some_prompts(model), PLENTY, greedy)
    assert len({len(completion.token_ids) for completion in completions_of(expected)}) > 2
    assert_same_completions(sample(model, some_prompts(model), 150, greedy), expected)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2"])
def test_a_slot_never_waits_while_a_completion_does(tiny, family):
    """Graham's bound for workers that take the next job when they are done: sum / workers + longest."""
    model = ending(tiny(family), share=16)
    prompts = some_prompts(model)
    width = max(prompt.num_tokens for prompt in prompts)
    slots = 5
    # Each slot may be another prompt's.
    most = slots * (width + PARAMS.max_tokens)
    with forwards(model) as seen:
        groups = sample(model, prompts, most)
    # The first token of a completion comes with its prompt.
    fed = [len(completion.token_ids) - 1 for completion in completions_of(groups)]
    decoded = [rows for rows, width in seen if width == 1]
    assert sum(fed) / max(decoded) <= len(decoded) <= sum(fed) / slots + max(fed)
    # Fixed batches of as many completions wait for the longest of each.
    assert len(decoded) < 0.75 * sum(max(fed[start : start + slots]) for start in range(0, len(fed), slots))
    # Every prompt is run once.
    assert sum(rows for rows, width in seen if width > 1) == len(prompts)


@pytest.mark.parametrize("most", [1, 200, 333, 1000, PLENTY])
def test_the_cache_never_holds_more_than_the_budget_but_one_completion(tiny, monkeypatch, most):
    """Counted on what enters and leaves the cache: prompts times the longest, and the budget of every row."""
    model = ending(tiny("qwen2_5_vl"), share=8)
    held = []

    class Counted(decoding.SharedPrefixCache):
        def inputs(self, time_B):
            prompts, _, width, _ = self._prefix[0][0].shape
            held.append((prompts * width + len(time_B) * PARAMS.max_tokens, len(time_B)))
            return super().inputs(time_B)

    monkeypatch.setattr(decoding, "SharedPrefixCache", Counted)
    sample(model, some_prompts(model), most)
    assert all(tokens <= most or rows == 1 for tokens, rows in held)
    # And what fits is used.
    assert max(tokens for tokens, _ in held) > min(most, 36 * PARAMS.max_tokens) / 2


def test_prompts_that_are_run_in_several_forwards_are_the_same(tiny, monkeypatch):
    model = ending(tiny("qwen2_5_vl"), share=8)
    expected = sample(model, some_prompts(model), PLENTY)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 60)
    with forwards(model) as seen:
        found = sample(model, some_prompts(model), PLENTY)
    assert_same_completions(found, expected)
    prefills = [(rows, width) for rows, width in seen if width > 1]
    assert len(prefills) > 2 and sum(rows for rows, _ in prefills) == len(expected)
    assert all(rows * width <= 60 or rows == 1 for rows, width in prefills)


def test_a_group_is_reported_once_and_as_soon_as_its_last_completion_ends(tiny):
    model = ending(tiny("qwen2"), share=8)
    heard, when = [], []
    with forwards(model) as seen:

        def hear(groups):
            heard.extend(groups)
            when.extend(len(seen) for _ in groups)

        groups = sample(model, some_prompts(model), 400, on_groups=hear)
    assert sorted(id(group) for group in heard) == sorted(id(group) for group in groups)
    assert when == sorted(when) and when[0] < len(seen) / 2
    # All at once: the groups end in the order of their longest completions.
    heard.clear()
    sample(model, some_prompts(model), PLENTY, on_groups=hear)
    longest = [max(len(completion.token_ids) for completion in group.completions) for group in heard]
    assert longest == sorted(longest) and len(set(longest)) > 3


def test_features_of_a_frozen_tower_are_made_once_for_each_prompt_also_where_prompts_come_one_by_one(tmp_path):
    from tests.builders import build_and_load

    model = ending(build_and_load(tmp_path, "qwen2_5_vl", freeze_vision_tower=True), share=8)
    tower, seen = model.policy.model.model.visual, []
    hook = tower.register_forward_hook(lambda *_: seen.append(1))
    expected = sample(model, some_prompts(model), PLENTY)
    num_at_once = len(seen)
    found = sample(model, some_prompts(model), 150)
    hook.remove()
    assert_same_completions(found, expected)
    assert num_at_once == 1
    for mine, its in zip(found, expected, strict=True):
        names = mine.prompt.media.tensors.keys()
        assert names == its.prompt.media.tensors.keys() and "image_features_IKD" in names


# ---- the budget ------------------------------------------------------------------------------------------------


def test_bytes_of_a_token_by_hand_for_published_models():
    from transformers import Qwen2Config, Qwen3Config

    # Qwen2.5-7B: 28 layers, 4 heads of 128; keys in float32, values in bfloat16.
    text = Qwen2Config(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4)
    assert budget.bytes_per_token(text, 2) == 28 * 4 * 128 * (4 + 2) == 86016
    # transformers' own cache keeps both in bfloat16: the 57 kB that are quoted.
    assert budget.bytes_per_token(text, 2, shares_prompt=False) == 57344
    assert budget.bytes_per_token(text, 4) == 28 * 4 * 128 * 8
    # Qwen3's heads are wider than hidden size over heads.
    text = Qwen3Config(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128
    )
    assert budget.bytes_per_token(text, 2) == 28 * 8 * 128 * 6


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen2"])
def test_a_token_leaves_as_many_bytes_in_the_cache_as_the_budget_takes(tiny, monkeypatch, family):
    model = tiny(family)
    caches = []

    class Kept(decoding.SharedPrefixCache):
        def __init__(self, max_tokens):
            super().__init__(max_tokens)
            caches.append(self)

    monkeypatch.setattr(decoding, "SharedPrefixCache", Kept)
    sample(model, prompts_of(model)[:1], PLENTY, SamplingParams(num_samples=1, max_tokens=8))
    (cache,) = caches
    per_token = budget.bytes_per_token(model.policy.model.config.get_text_config(), 4)
    held = sum(tensor.nbytes for layer in cache._prefix for tensor in layer)
    assert held == per_token * prompts_of(model)[0].num_tokens
    assert sum(buffer.nbytes for own in cache._own for buffer in own._buffers) == per_token * 8


def test_auto_follows_the_memory_of_the_machine_up_to_a_limit_and_the_result_does_not(tiny, monkeypatch):
    model = ending(tiny("qwen2"), share=8)
    per_token = budget.bytes_per_token(model.policy.model.config, 4)
    sizes = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 8 * 500 * per_token}
    monkeypatch.setattr(budget.os, "sysconf", sizes.__getitem__)
    found = {}
    for memory, ranks_here in ((1, 1), (1, 2), (10**6, 1)):
        sizes["SC_PHYS_PAGES"] = memory * 8 * 500 * per_token
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_here))
        sampler = HfSampler(model.policy, model.codec, max_batch_tokens=None)
        assert sampler.metrics() == {}
        found[memory, ranks_here] = sampler.sample(some_prompts(model), PARAMS, SEED)
        # An eighth of the machine, shared by its ranks; never more than the limit.
        expected = min(500 * memory // ranks_here, budget.MOST_ON_HOST)
        assert sampler.metrics() == {"sampling/max_batch_tokens": expected}
        # Once: another call finds less memory free, because of the first.
        sizes["SC_PHYS_PAGES"] = 1
        sampler.sample(some_prompts(model)[:1], PARAMS, SEED)
        assert sampler.max_batch_tokens == expected
    for groups in found.values():
        assert_same_completions(groups, found[1, 1])


def test_three_quarters_of_free_gpu_memory_are_for_the_cache():
    # 40 GB of a 7B model's 86016 bytes: 348772 tokens, in thousands of 1024.
    assert budget.tokens_that_fit(40e9, 86016) == 340 * 1024
    assert budget.tokens_that_fit(1000, 86016) == 1
