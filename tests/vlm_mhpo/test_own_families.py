"""Image-text models that no family here knows: trained by their own inputs, exactly, or refused in one sentence."""

from dataclasses import replace

import pytest
import torch

from data_prep import open_image
from tests.builders import gradients, mixed_rows, prompts_of, random_completions, relative_gap
from tests.model_folders import listing
from tests.own_models import build_own, load_own
from vlm_mhpo.errors import ModelError
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.training.own_check import check_own_path

# Tiles; recurrent layers; a prompt that looks both ways, by token types; gated cross-attention.
NAMES = ("llava_next", "lfm2_vl", "paligemma", "mllama")
# Text looks at itself both ways there, or otherwise where some row of a batch has an image.
NEED_IMAGES = ("paligemma", "mllama")
GREEDY = SamplingParams(num_samples=1, max_tokens=6, temperature=0.0)


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory):
    return load_own(build_own(tmp_path_factory.mktemp(request.param), request.param), request.param)


def rows_of(model):
    return mixed_rows(model)[: 2 if model.family in NEED_IMAGES else 3]


def stock_inputs(model, prompt):
    """What transformers' processor makes of a row by itself, called here and not by the builder."""
    images = [open_image(image) for image in prompt.row.images]
    if not images:
        return {"input_ids": prompt.input_ids_S[None], "attention_mask": torch.ones(1, prompt.num_tokens).long()}
    made = model.codec.processor(text=[prompt.text], images=[images], return_tensors="pt", add_special_tokens=False)
    return {name: value for name, value in made.items() if name != "labels"}


def test_greedy_completions_are_those_of_generate(model):
    prompts = prompts_of(model, rows_of(model))
    groups = HfSampler(model.policy, model.codec, max_batch_tokens=10_000).sample(prompts, GREEDY, (1,))
    banned = model.policy.banned_V.nonzero()[:, 0].tolist()
    for prompt, group in zip(prompts, groups, strict=True):
        inputs = stock_inputs(model, prompt)
        found = model.policy.model.generate(
            **inputs,
            max_new_tokens=GREEDY.max_tokens,
            do_sample=False,
            eos_token_id=list(model.codec.end_ids),
            suppress_tokens=banned,
        )[0, prompt.num_tokens :].tolist()
        (drawn,) = group.completions
        assert list(drawn.token_ids) == found[: len(drawn.token_ids)]
        assert torch.equal(inputs["input_ids"][0], prompt.input_ids_S)


def stock_log_probs(model, prompt, ids):
    """[T] with gradient: the stock model on prompt and completion, token types of a completion as its authors say."""
    inputs = stock_inputs(model, prompt)
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "token_type_ids" in inputs:
        # PaliGemma: 1 is the suffix, which looks back only.
        inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.ones(1, len(ids)).long()], dim=1)
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(ids), -1, -1)], dim=1)
    logits = model.policy.model(**inputs, use_cache=False).logits[0, length - 1 : -1]
    logits = logits.masked_fill(model.policy.banned_V, -torch.inf) / 0.7
    return logits.log_softmax(dim=-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def test_sampled_and_trained_log_probs_and_gradients_are_the_stock_models(model):
    prompts = prompts_of(model, rows_of(model))
    params = SamplingParams(num_samples=3, max_tokens=9, temperature=0.7)
    ends = tuple(index for index in range(60, 160) if not model.policy.banned_V[index])
    sampler = HfSampler(model.policy, replace(model.codec, end_ids=ends), max_batch_tokens=10_000)
    groups = sampler.sample(prompts, params, (5, "own"))
    sampler.max_batch_tokens = 1
    one_by_one = sampler.sample(prompts, params, (5, "own"))
    ids, alone = ([[c.token_ids for c in group.completions] for group in some] for some in (groups, one_by_one))
    assert ids == alone
    assert len({len(each) for group in ids for each in group}) > 1
    found = {}
    for batch in micro_batches(model.policy, prompts, ids, max_tokens=10_000, pad_id=model.codec.pad_id):
        values_N, _ = model.policy(batch.rows, temperature=0.7, chunk_size=8)
        (values_N * torch.cos(batch.rows.completion_N + 2.0 * batch.rows.time_N)).sum().backward()
        found |= dict(zip(batch.rows.completion_N.tolist(), [values_N.detach()] * len(values_N), strict=True))
    trained = gradients(model)
    flat = 0
    for prompt, group in zip(prompts, groups, strict=True):
        for each in group.completions:
            expected = stock_log_probs(model, prompt, each.token_ids)
            (expected * torch.cos(flat + 2.0 * torch.arange(len(expected)))).sum().backward()
            torch.testing.assert_close(each.log_probs, expected.detach(), atol=2e-5, rtol=0)
            torch.testing.assert_close(found[flat], expected.detach(), atol=2e-5, rtol=0)
            flat += 1
    expected = gradients(model)
    # A bias of keys adds the same to all scores of a query: its gradient is 0, and what is found is rounding.
    for one in (trained, expected):
        for name in [name for name in one if name.endswith("k_proj.bias")]:
            assert float(one.pop(name).norm()) < 1e-4
    gap, name = relative_gap(trained, expected)
    assert gap <= 2e-5, name


def test_the_check_passes_where_rows_are_right_and_says_which_are_not(model):
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=10_000)
    prompts = prompts_of(model, mixed_rows(model))
    assert check_own_path(model.policy, sampler, prompts[:2]) < 1e-4
    if model.family in NEED_IMAGES:
        with pytest.raises(ModelError, match=f"a {model.family} model cannot be trained here: on a prompt without an"):
            check_own_path(model.policy, sampler, prompts[2:])


def test_a_row_without_an_image_runs_the_tower_and_gets_no_gradient_from_it(model):
    if model.family in NEED_IMAGES:
        pytest.skip("rows without an image are refused")
    tower = model.policy.family.vision.tower(model.policy.model)
    reached = []
    for row in mixed_rows(model)[1:]:
        (prompt,), (ids,) = prompts_of(model, [row]), random_completions(model, (5,))
        (batch,) = micro_batches(model.policy, [prompt], [[ids]], max_tokens=10_000, pad_id=0)
        values_N, _ = model.policy(batch.rows, temperature=1.0, chunk_size=8)
        values_N.sum().backward()
        reached.append({name: weight.grad for name, weight in tower.named_parameters() if weight.grad is not None})
        gradients(model)
    # The same weights wait for each other on two ranks, one with an image and one without.
    assert reached[0] and reached[0].keys() == reached[1].keys()
    assert any(value.any() for value in reached[0].values()) and not any(value.any() for value in reached[1].values())


def test_no_placeholder_is_ever_sampled(model):
    tokenizer = model.codec.tokenizer
    names = [token for token in tokenizer.get_vocab() if "image" in token.lower() or "img" in token.lower()]
    assert names and all(model.policy.banned_V[tokenizer.convert_tokens_to_ids(name)] for name in names)


def test_a_saved_policy_has_the_names_that_it_was_loaded_by(model, tmp_path):
    model.policy.save(tmp_path)
    assert listing(tmp_path) == listing(model.folder)


def test_pixel_limits_are_refused_by_the_name_of_the_key(model):
    with pytest.raises(ModelError, match=r"model\.min_pixels and model\.max_pixels mean nothing"):
        load_own(model.folder, model.family, max_pixels=1000)


def test_a_frozen_tower_learns_nothing(model):
    frozen = load_own(model.folder, model.family, freeze_vision_tower=True)
    tower = frozen.policy.family.vision.tower(frozen.policy.model)
    projectors = frozen.policy.family.vision.projectors(frozen.policy.model)
    assert not any(weight.requires_grad for weight in tower.parameters())
    assert projectors and all(weight.requires_grad for module in projectors for weight in module.parameters())


def test_a_wrong_path_is_caught(model, monkeypatch):
    """A model that would tell its own generation something else than its training."""
    own = type(model.policy.model).prepare_inputs_for_generation

    def shifted(self, input_ids, **options):
        inputs = own(self, input_ids, **options)
        if not options.get("is_first_iteration"):
            inputs["position_ids"] = inputs["position_ids"] + 3
        return inputs

    monkeypatch.setattr(type(model.policy.model), "prepare_inputs_for_generation", shifted)
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=10_000)
    with pytest.raises(ModelError, match=r"log-probs of the sampler are .* nats"):
        check_own_path(model.policy, sampler, prompts_of(model, mixed_rows(model)[1:2]))
