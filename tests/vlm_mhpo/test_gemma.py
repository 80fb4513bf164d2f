"""Gemma 3 and 4: rows and caches that share a prompt, with windows and images that see ahead, against the stock model.

The tiny models' windows are shorter than prompts, and their last layer sees everything.
"""

from dataclasses import replace

import pytest
import torch

from tests.builders import (
    build_and_load,
    gradients,
    mixed_rows,
    plain_log_probs,
    prompts_of,
    random_completions,
    relative_gap,
    stock_media,
)
from tests.model_folders import change_json, copy_of, listing
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.micro_batches import micro_batches

# Longer than the window, so that completions lose sight of their prompt.
LENGTHS = ((5, 1, 19, 3), (14,), (2, 17, 4))


@pytest.fixture(scope="module", params=["gemma3", "gemma4", "gemma4 ahead"])
def gemma(request, tmp_path_factory):
    """Gemma 4 in two kinds: with shared keys and a cap; and the same with image tokens that see ahead."""
    family = request.param.split()[0]
    model = build_and_load(tmp_path_factory.mktemp("gemma"), family)
    if request.param == family:
        return model
    ahead = {"use_bidirectional_attention": "vision"}
    change_json(model.folder, "config.json", lambda values: values["text_config"].update(ahead))
    return replace(model, policy=load_policy(str(model.folder))[0])


def trained(model, prompts, groups, *, max_tokens=10_000):
    """(flat completion, time) -> log-prob, after a backward in which every token counts differently."""
    found = {}
    for batch in micro_batches(model.policy, prompts, groups, max_tokens=max_tokens, pad_id=model.codec.pad_id):
        values_N, _ = model.policy(batch.rows, temperature=0.7, chunk_size=8)
        (values_N * torch.cos(batch.rows.completion_N + 2.0 * batch.rows.time_N)).sum().backward()
        keys = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
        found |= dict(zip(keys, values_N.tolist(), strict=True))
    return found


def expected_of(model, prompts, groups):
    """The same by the stock model on separate rows with its own masks."""
    expected, flat = {}, 0
    for prompt, group in zip(prompts, groups, strict=True):
        for ids in group:
            values_T = plain_log_probs(model, prompt, ids, temperature=0.7)
            (values_T * torch.cos(flat + 2.0 * torch.arange(len(ids)))).sum().backward()
            expected |= {(flat, time): value for time, value in enumerate(values_T.tolist())}
            flat += 1
    return expected


def case(model):
    groups = [random_completions(model, lengths, seed=7 + index) for index, lengths in enumerate(LENGTHS)]
    return prompts_of(model), groups


def test_shared_rows_and_their_gradients_are_the_stock_models(gemma):
    prompts, groups = case(gemma)
    assert gemma.policy.family.shares_prompt
    window = gemma.policy.model.config.text_config.sliding_window
    assert all(prompt.num_tokens > window for prompt in prompts[:2])
    found, found_gradients = trained(gemma, prompts, groups), gradients(gemma)
    expected, expected_gradients = expected_of(gemma, prompts, groups), gradients(gemma)
    assert found == pytest.approx(expected, abs=2e-5)
    for one in (found_gradients, expected_gradients):
        # Keys of a tower without rotary positions: the gradient of their bias is 0, and what is found is rounding.
        for name in [name for name in one if name.endswith("k_proj.bias")]:
            assert float(one.pop(name).norm()) < 1e-4
    gap, name = relative_gap(found_gradients, expected_gradients)
    assert gap <= 5e-5, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_sampler_draws_from_the_stock_model(gemma, side):
    prompts = prompts_of(gemma)
    codec = replace(gemma.codec, end_ids=tuple(range(60, 100)))
    params = SamplingParams(num_samples=4, max_tokens=20, temperature=0.7)
    sampler = HfSampler(gemma.policy, codec, max_batch_tokens=200, padding_side=side)
    groups = sampler.sample(prompts, params, (5, "gemma"))
    lengths = {len(each.token_ids) for group in groups for each in group.completions}
    assert len(lengths) > 3
    with torch.no_grad():
        for prompt, group in zip(prompts, groups, strict=True):
            for each in group.completions:
                expected = plain_log_probs(gemma, prompt, each.token_ids, temperature=0.7)
                torch.testing.assert_close(each.log_probs, expected, atol=2e-5, rtol=0)


def test_greedy_completions_are_those_of_generate(gemma):
    prompts = prompts_of(gemma)
    params = SamplingParams(num_samples=1, max_tokens=16, temperature=0.0)
    groups = HfSampler(gemma.policy, gemma.codec, max_batch_tokens=10_000).sample(prompts, params, (1,))
    banned = gemma.policy.banned_V.nonzero()[:, 0].tolist()
    for prompt, group in zip(prompts, groups, strict=True):
        ids = prompt.input_ids_S[None]
        options = {"max_new_tokens": 16, "do_sample": False, "suppress_tokens": banned}
        found = gemma.policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **stock_media(gemma, prompt), **options
        )[0, prompt.num_tokens :].tolist()
        (drawn,) = group.completions
        assert list(drawn.token_ids) == found[: len(drawn.token_ids)]


def test_eager_attention_sees_the_same(gemma):
    eager, codec = load_policy(str(gemma.folder), attn_implementation="eager")
    prompts, groups = case(gemma)
    found = trained(replace(gemma, policy=eager, codec=codec), prompts, groups)
    assert found == pytest.approx(trained(gemma, prompts, groups), abs=2e-5)
    gradients(gemma)


@pytest.mark.parametrize("freeze_projector", [False, True])
def test_features_of_a_frozen_tower_stand_for_pixels(gemma, freeze_projector):
    options = dict(freeze_vision_tower=True, freeze_projector=freeze_projector)
    frozen = replace(gemma, policy=load_policy(str(gemma.folder), **options)[0])
    prompts, groups = case(gemma)
    cached = frozen.policy.with_image_features(prompts)
    assert not any("pixel_values" in prompt.media.tensors for prompt in cached)
    found, found_gradients = trained(frozen, cached, groups), gradients(frozen)
    expected, expected_gradients = trained(frozen, prompts, groups), gradients(frozen)
    assert found == pytest.approx(expected, abs=1e-5)
    gap, name = relative_gap(found_gradients, expected_gradients)
    assert gap <= 2e-5, name


def test_a_row_without_an_image_reaches_the_modules_that_others_reach(gemma):
    tower = gemma.policy.family.vision.tower(gemma.policy.model)
    reached = []
    for row in mixed_rows(gemma)[1:]:
        (prompt,), (ids,) = prompts_of(gemma, [row]), random_completions(gemma, (5,))
        (batch,) = micro_batches(gemma.policy, [prompt], [[ids]], max_tokens=10_000, pad_id=0)
        gemma.policy(batch.rows, temperature=1.0, chunk_size=8)[0].sum().backward()
        reached.append({name: weight.grad for name, weight in tower.named_parameters() if weight.grad is not None})
        gradients(gemma)
    assert reached[0] and reached[0].keys() == reached[1].keys()
    assert any(value.any() for value in reached[0].values()) and not any(value.any() for value in reached[1].values())


def test_placeholders_are_never_sampled_and_all_else_may_be(gemma):
    ids = gemma.codec.tokenizer.convert_tokens_to_ids(list(gemma.placeholders))
    assert sorted(gemma.policy.banned_V.nonzero()[:, 0].tolist()) == sorted(ids)


def test_a_saved_policy_has_the_names_that_it_was_loaded_by(gemma, tmp_path):
    gemma.policy.save(tmp_path)
    assert listing(tmp_path) == listing(gemma.folder)


def test_a_window_of_another_size_is_another_model(gemma, tmp_path):
    """Or the tests above would not see a window that is off by one."""
    folder = copy_of(gemma.folder, tmp_path / "copy")
    change_json(folder, "config.json", lambda values: values["text_config"].update(sliding_window=11))
    other = replace(gemma, policy=load_policy(str(folder))[0])
    prompts, groups = case(gemma)
    found, expected = (trained(model, prompts, groups) for model in (other, gemma))
    gradients(gemma)
    assert max(abs(found[key] - expected[key]) for key in found) > 1e-2
