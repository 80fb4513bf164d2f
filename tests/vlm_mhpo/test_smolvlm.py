"""SmolVLM and Idefics3: packed rows, sampling, frozen features, blank tiles and costs against the stock models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from tests.builders import (
    SMOL_FAMILIES,
    Tiny,
    allowed_ids,
    build_and_load,
    gradients,
    mixed_rows,
    picture,
    plain_log_probs,
    problem_row,
    prompts_of,
    relative_gap,
    stock_media,
    tensors_of,
)
from tests.model_folders import listing
from tests.vlm_mhpo.test_feature_cache import random_groups, weighted
from tests.vlm_mhpo.test_packing import assert_same, groups_of
from tests.vlm_mhpo.test_profiling.test_flops import counted, packed_forward
from vlm_mhpo.commands.profiling.flops import model_flops, parts_of
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import family_of
from vlm_mhpo.models.loading import counting_codec
from vlm_mhpo.models.tiny import build_tokenizer
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler


@pytest.fixture(scope="module", params=SMOL_FAMILIES)
def model(request, tmp_path_factory) -> Tiny:
    return build_and_load(tmp_path_factory.mktemp("smol") / request.param, request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["projector learns", "projector frozen"])
def frozen(request, tmp_path_factory) -> Tiny:
    folder = tmp_path_factory.mktemp("frozen") / "smolvlm"
    return build_and_load(folder, "smolvlm", freeze_vision_tower=True, freeze_projector=request.param)


# Pieces of rows and masks of whole rows; a budget for all rows, and one that cuts groups.
@pytest.mark.parametrize(("width", "max_tokens"), [(1, 100_000), (10**9, 120)])
def test_packed_rows_equal_plain_rows_in_values_and_gradients(model, monkeypatch, width, max_tokens):
    monkeypatch.setattr("vlm_mhpo.models.policy.SPLIT_WIDTH", width)
    assert_same(model, prompts_of(model), groups_of(model), max_tokens=max_tokens, temperature=0.7)


def test_rows_without_images_run_every_vision_module_and_train_none(model):
    prompts = prompts_of(model, [problem_row("a", "What is 3 + 4 ?"), problem_row("b", "red plus blue times 9")])
    groups = groups_of(model, ((4, 2), (3, 6)))
    assert_same(model, prompts, groups, max_tokens=10_000)
    weighted(model, prompts, groups, max_tokens=10_000)
    named = model.policy.named_parameters()
    seeing = [weight.grad for name, weight in named if model.part_of(name) != "language"]
    assert len(seeing) > 10 and all(each is not None and not bool(each.any()) for each in seeing)
    gradients(model)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_sampler_draws_what_generate_chooses_with_the_trainers_log_probs(model, side):
    prompts = prompts_of(model)
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=10_000, padding_side=side)
    banned = sorted(set(range(model.policy.banned_V.shape[0])) - set(allowed_ids(model)))
    assert model.policy.banned_V.nonzero().flatten().tolist() == banned
    greedy = sampler.sample(prompts, SamplingParams(num_samples=1, max_tokens=10, temperature=0.0), (0,))
    for group, prompt in zip(greedy, prompts, strict=True):
        with torch.no_grad():
            expected = model.policy.model.generate(
                input_ids=prompt.input_ids_S[None],
                attention_mask=torch.ones(1, prompt.num_tokens, dtype=torch.int64),
                **stock_media(model, prompt),
                do_sample=False,
                max_new_tokens=10,
                eos_token_id=list(model.codec.end_ids),
                suppress_tokens=banned,
            )
        assert group.completions[0].token_ids == tuple(expected[0, prompt.num_tokens :].tolist())
    # Many end tokens, so that rows leave the batch at different times.
    codec = replace(model.codec, end_ids=tuple(range(80)))
    sampler = HfSampler(model.policy, codec, max_batch_tokens=10_000, padding_side=side)
    for group in sampler.sample(prompts, SamplingParams(num_samples=3, max_tokens=12, temperature=0.7), (5, "smol")):
        for each in group.completions:
            with torch.no_grad():
                expected = plain_log_probs(model, group.prompt, each.token_ids, temperature=0.7)
            torch.testing.assert_close(each.log_probs, expected, atol=1e-4, rtol=0)


def test_features_of_a_frozen_tower_give_what_pixels_gave(frozen):
    prompts, groups = prompts_of(frozen), random_groups(frozen)[:3]
    expected = weighted(frozen, prompts, groups)
    expected_gradients = gradients(frozen)
    kept = frozen.policy.with_image_features(prompts)
    assert {frozenset(prompt.media.tensors) for prompt in kept} == {
        frozenset({"num_tiles", "image_features_IKD"}),
        frozenset({"image_features_IKD"}),
    }
    assert weighted(frozen, kept, groups) == pytest.approx(expected, abs=1e-6)
    found = gradients(frozen)
    assert relative_gap(found, expected_gradients)[0] <= 1e-5
    moved = {frozen.part_of(name) for name, value in found.items() if bool(value.any())}
    assert moved == ({"language", "projector"} if frozen.policy.trains_projectors else {"language"})
    # Without any image the projector that learns still runs, on a token that nobody sees.
    text = frozen.policy.with_image_features(prompts[2:])
    assert weighted(frozen, text, groups[2:]) == pytest.approx(weighted(frozen, prompts[2:], groups[2:]), abs=1e-6)
    gradients(frozen)


def test_flops_are_those_that_torch_counts(tmp_path):
    eager = build_and_load(tmp_path / "eager", "smolvlm", attn_implementation="eager")
    rows, work = packed_forward(eager)
    for backward in (False, True):
        ours = model_flops(parts_of(eager.policy), work, backward=backward)
        assert ours == pytest.approx(counted(eager, rows, backward=backward), rel=1e-3)


def test_saved_weights_have_the_names_they_were_read_by(model, tmp_path):
    model.policy.weights.save(model.policy.model, tmp_path / "saved")
    assert listing(tmp_path / "saved") == listing(model.folder)


def test_rows_of_a_batch_keep_their_own_tiles_and_no_padding(model):
    rows = [replace(row, id=f"{row.id}{number}") for number in range(2) for row in mixed_rows(model)]
    for row, found in zip(rows, model.builder().build(rows), strict=True):
        alone = tensors_of(prompts_of(model, [row])[0])
        assert all(torch.equal(value, alone[name]) for name, value in tensors_of(found).items())


@pytest.mark.parametrize(
    ("size", "max_pixels", "tiles"),
    [
        # As many tiles of 512 pixels as the longest side of 2048 holds, whatever the image, and its small copy.
        ((100, 100), None, 16 + 1),
        ((300, 100), None, 8 + 1),
        ((100, 100), 10 * 512**2, 9 + 1),
        ((100, 100), 9 * 512**2, 4 + 1),
        ((100, 100), 4 * 512**2, 1),
    ],
)
def test_the_pixel_limit_of_smolvlm_is_kept_in_tiles(size, max_pixels, tiles):
    tokenizer = build_tokenizer("smolvlm")
    sizes = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
    images, videos = transformers.SmolVLMImageProcessor(**sizes), transformers.SmolVLMVideoProcessor(**sizes)
    processor = transformers.SmolVLMProcessor(images, tokenizer, videos, 64, chat_template=tokenizer.chat_template)
    family = family_of("smolvlm")
    builder = PromptBuilder(counting_codec(processor, family, max_pixels=max_pixels), family)
    ids = builder(problem_row("r", "<image>?", [picture(*size)])).input_ids_S.tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 64 * tiles
    assert family.vision.pixels_per_token(processor) == 512**2 // 64
    with pytest.raises(ModelError, match="less than one tile"):
        counting_codec(processor, family, max_pixels=100)
    with pytest.raises(ModelError, match=r"leave out model.min_pixels"):
        counting_codec(processor, family, min_pixels=512**2)
