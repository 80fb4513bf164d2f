"""Features of a frozen vision tower, computed once, give what the pixels gave: samples, log-probs and gradients."""

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from tests.builders import (
    VISION_FAMILIES,
    Tiny,
    build_and_load,
    features_of,
    gradients,
    grid_of,
    picture,
    plain_log_probs,
    problem_row,
    prompts_of,
    random_completions,
    relative_gap,
    with_media,
)
from tests.vlm_mhpo.update_cases import PlainEngine, batch_of, settings_of
from vlm_mhpo.config import MhpoConfig
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.forwards import log_probs_of
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.training.token_statistics import Totals
from vlm_mhpo.training.update import accumulate
from vlm_mhpo.types import Minibatch, ScoredGroup

# How many there are, and weights of each.
PROJECTORS = {"qwen2_vl": (1, 6), "qwen2_5_vl": (1, 5), "qwen3_vl": (2, 6), "glm4v": (1, 6), "internvl": (1, 6)}
LENGTHS = ((5, 1, 9), (3,), (2, 7), (4, 4))
MHPO = build_objective(MhpoConfig(), 8)
CASES = [(family, frozen) for family in VISION_FAMILIES for frozen in (False, True)]
NAMES = [f"{family}, projector {'frozen' if frozen else 'learns'}" for family, frozen in CASES]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """`frozen(family, projector)`: a tiny model whose tower does not learn, nor its projector if so asked."""
    built = {}

    def get(family: str, projector: bool) -> Tiny:
        if (family, projector) not in built:
            folder = tmp_path_factory.mktemp("frozen") / family
            built[family, projector] = build_and_load(
                folder, family, freeze_vision_tower=True, freeze_projector=projector
            )
        return built[family, projector]

    return get


def wide_prompts(model: Tiny):
    """The mixed prompts and one whose image is larger than a window of Qwen2.5-VL's tower in both directions."""
    side = model.token_side
    wide = problem_row("wide", "<image>What is red?", [picture(10 * side, 9 * side, seed=4)])
    return prompts_of(model, None) + prompts_of(model, [wide])


def forget(model: Tiny) -> Tiny:
    """The same model as one that does not know that its tower is frozen: everything goes through the pixels."""
    plain = model.copy()
    plain.policy.vision_frozen = plain.policy.trains_projectors = False
    return plain


def weighted(model: Tiny, prompts, groups, *, max_tokens: int = 100_000) -> dict[tuple[int, int], float]:
    """Log-probs by (completion, time); leaves the gradient of a sum behind that weighs every token differently."""
    values = {}
    for batch in micro_batches(model.policy, prompts, groups, max_tokens=max_tokens, pad_id=model.codec.pad_id):
        log_probs_N, _ = model.policy(batch.rows, temperature=0.7, chunk_size=4096)
        keys = list(zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True))
        (log_probs_N * torch.tensor([1 + 0.37 * flat - 0.21 * time for flat, time in keys])).sum().backward()
        values |= dict(zip(keys, log_probs_N.tolist(), strict=True))
    return values


def random_groups(model: Tiny):
    return [random_completions(model, group, seed=7 + index) for index, group in enumerate(LENGTHS)]


# ---- log-probs and gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [100_000, 60])
@pytest.mark.parametrize("family,projector", CASES, ids=NAMES)
def test_features_give_the_log_probs_and_gradients_of_pixels(frozen, family, projector, max_tokens):
    model = frozen(family, projector)
    prompts, groups = wide_prompts(model), random_groups(model)
    expected = weighted(model, prompts, groups, max_tokens=max_tokens)
    expected_gradients = gradients(model)
    cached = model.policy.with_image_features(prompts)
    found = weighted(model, cached, groups, max_tokens=max_tokens)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    found_gradients = gradients(model)
    gap, name = relative_gap(found_gradients, expected_gradients)
    assert gap <= 1e-5, name
    # What learns is what the configuration says, and it does learn.
    moved = {name for name, value in found_gradients.items() if bool(value.any())}
    parts = {model.part_of(name) for name in moved}
    assert parts == {"language"} if projector else {"language", "projector"}


@pytest.mark.parametrize("family,projector", CASES, ids=NAMES)
def test_features_give_the_log_probs_of_the_stock_model(frozen, family, projector):
    model = frozen(family, projector)
    prompts, groups = wide_prompts(model), random_groups(model)
    found = weighted(model, model.policy.with_image_features(prompts), groups)
    gradients(model)
    flat = 0
    for prompt, group in zip(prompts, groups, strict=True):
        for ids in group:
            with torch.no_grad():
                expected = plain_log_probs(model, prompt, ids, 0.7).tolist()
            assert [found[flat, time] for time in range(len(ids))] == pytest.approx(expected, abs=1e-5)
            flat += 1


@pytest.mark.parametrize("projector", [False, True])
def test_three_deepstack_streams_keep_their_order(frozen, tmp_path, projector):
    """As the real Qwen3-VL models have them; the tiny one has a single stream."""
    small = frozen("qwen3_vl", projector)
    config = copy.deepcopy(small.policy.model.config)
    config.vision_config.depth, config.vision_config.deepstack_visual_indexes = 4, [0, 1, 2]
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(tmp_path)
    small.codec.processor.save_pretrained(tmp_path)
    policy, codec = load_policy(str(tmp_path), freeze_vision_tower=True, freeze_projector=projector)
    model = Tiny("qwen3_vl", tmp_path, policy, codec)
    prompts, groups = wide_prompts(model), random_groups(model)
    expected = weighted(model, prompts, groups)
    expected_gradients = gradients(model)
    cached = policy.with_image_features(prompts)
    assert {features_of(prompt).shape[1] for prompt in cached} == {4}
    assert weighted(model, cached, groups) == pytest.approx(expected, abs=1e-6)
    gap, name = relative_gap(gradients(model), expected_gradients)
    assert gap <= 1e-5, name
    swapped = [with_media(p, image_features_IKD=features_of(p)[:, [0, 2, 1, 3]]) for p in cached]
    assert weighted(model, swapped, groups) != pytest.approx(expected, abs=1e-5)
    gradients(model)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_pictures_and_their_order_matter(frozen, family):
    """The comparisons above could fail: other features, or the same in another order, give other log-probs."""
    model = frozen(family, False)
    prompts, groups = wide_prompts(model), random_groups(model)
    right = model.policy.with_image_features(prompts)
    expected = weighted(model, right, groups)
    for change in (lambda x: x.flip(0), lambda x: x.roll(1, dims=2), lambda x: x * 0):
        wrong = [with_media(prompt, image_features_IKD=change(features_of(prompt))) for prompt in right]
        found = weighted(model, wrong, groups)
        gradients(model)
        assert max(abs(found[key] - expected[key]) for key in expected) > 1e-4


def test_the_windows_of_qwen2_5_do_change_the_order_of_the_wide_picture(frozen):
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

    model = frozen("qwen2_5_vl", False)
    tower, grid = model.policy.model.model.visual, grid_of(wide_prompts(model)[-1])
    order, _ = get_vision_window_index(
        grid, spatial_merge_size=2, window_size=tower.window_size, patch_size=tower.patch_size
    )
    assert order.tolist() != sorted(order.tolist())


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_without_a_picture_the_projector_still_has_its_part_and_the_tower_none(frozen, family):
    model = frozen(family, False)
    prompts = prompts_of(model, [problem_row("a", "What is 3 + 4 ?"), problem_row("b", "red plus blue times 9")])
    groups = [random_completions(model, lengths, seed=1) for lengths in ((4, 2), (3, 6))]
    expected = weighted(model, prompts, groups)
    gradients(model)
    cached = model.policy.with_image_features(prompts)
    assert {len(features_of(prompt)) for prompt in cached} == {0}
    with counted(model) as runs:
        found = weighted(model, cached, groups)
    assert found == pytest.approx(expected, abs=1e-6)
    # Other ranks wait for these gradients, so they must exist; and they must be zero.
    projector = [w.grad for n, w in model.policy.named_parameters() if model.part_of(n) == "projector"]
    number, weights = PROJECTORS[family]
    assert len(projector) == number * weights
    assert all(gradient is not None and not bool(gradient.any()) for gradient in projector)
    gradients(model)
    assert runs == {"tower": 0, "projector": number}


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_with_a_frozen_projector_an_update_runs_no_vision_module(frozen, family):
    model = frozen(family, True)
    cached = model.policy.with_image_features(wide_prompts(model))
    with counted(model) as runs:
        weighted(model, cached, random_groups(model), max_tokens=60)
    gradients(model)
    assert runs == {"tower": 0, "projector": 0}


@contextmanager
def counted(model: Tiny) -> Iterator[dict[str, int]]:
    """Counts the runs of the tower's first block and of the projectors."""
    runs = {"tower": 0, "projector": 0}
    body = model.policy.model.model
    if model.family == "internvl":
        first_block, projectors = body.vision_tower.encoder.layer[0], [body.multi_modal_projector]
    else:
        first_block = body.visual.blocks[0]
        projectors = [body.visual.merger, *getattr(body.visual, "deepstack_merger_list", [])]

    def counting(kind: str):
        def hook(*_):
            runs[kind] += 1

        return hook

    hooks = [first_block.register_forward_hook(counting("tower"))]
    hooks += [module.register_forward_hook(counting("projector")) for module in projectors]
    yield runs
    for hook in hooks:
        hook.remove()


# ---- who reads them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family,projector", CASES, ids=NAMES)
def test_sampling_from_features_is_sampling_from_pixels(frozen, family, projector):
    model = frozen(family, projector)
    params = SamplingParams(num_samples=4, max_tokens=10, temperature=0.9)
    found, expected = (sample(each, wide_prompts(each), params) for each in (model, forget(model)))
    for mine, other in zip(found, expected, strict=True):
        assert mine.prompt.id == other.prompt.id
        assert "pixel_values" not in mine.prompt.media.tensors and features_of(mine.prompt) is not None
        assert other.prompt.media is None or "image_features_IKD" not in other.prompt.media.tensors
        for one, another in zip(mine.completions, other.completions, strict=True):
            assert one.token_ids == another.token_ids
            assert one.log_probs == pytest.approx(another.log_probs, abs=1e-6)


def sample(model: Tiny, prompts, params: SamplingParams):
    return HfSampler(model.policy, model.codec, max_batch_tokens=100_000).sample(prompts, params, (5, "rollout", 0))


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_tower_runs_once_a_rollout_batch(frozen, family):
    model = frozen(family, False)
    settings = settings_of(max_tokens=80)
    with counted(model) as runs:
        groups = sample(model, wide_prompts(model), SamplingParams(num_samples=2, max_tokens=5))
        scored = [as_scored(group) for group in groups]
        old = log_probs_of(model.policy, model.policy, scored, settings)
        batch = Minibatch(scored, (1.0, -1.0) * len(scored), old)
        for _ in range(2):
            accumulate(PlainEngine(model.policy), MHPO, batch, settings_of(beta=0.0, max_tokens=80), Totals())
    gradients(model)
    assert runs["tower"] == 1


def as_scored(group) -> ScoredGroup:
    values = tuple(float(index % 2) for index in range(len(group.completions)))
    return ScoredGroup(group, values, {}, ("wrong",) * len(values), (None,) * len(values))


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_an_update_from_features_is_that_from_pixels(frozen, family):
    """The whole loss: MHPO with a KL term, over minibatch sums and metrics."""
    model = frozen(family, False)
    batch = batch_of(model)
    prompts = model.policy.with_image_features([scored.group.prompt for scored in batch.groups])
    groups = [
        replace(scored, group=replace(scored.group, prompt=prompt))
        for scored, prompt in zip(batch.groups, prompts, strict=True)
    ]
    results = []
    for each in (batch, replace(batch, groups=groups)):
        totals = Totals()
        assert accumulate(PlainEngine(model.policy), MHPO, each, settings_of(max_tokens=60), totals) == []
        results.append((gradients(model), totals))
    (expected, expected_totals), (found, totals) = results
    gap, name = relative_gap(found, expected)
    assert gap <= 1e-5, name
    assert totals.metrics.keys() == expected_totals.metrics.keys()
    for name, value in expected_totals.metrics.items():
        assert float(totals.metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("projector", [False, True])
def test_a_reference_policy_reads_the_features_with_its_own_projector(frozen, projector):
    model = frozen("qwen3_vl", projector)
    reference = model.copy()
    reference.policy.requires_grad_(False)
    if not projector:
        with torch.no_grad():
            for weight in reference.policy.model.model.visual.merger.parameters():
                weight.mul_(1.5)
    prompts, groups = wide_prompts(model), random_groups(model)
    cached = model.policy.with_image_features(prompts)
    found, expected = (values_of(reference, each, groups) for each in (cached, prompts))
    assert found == pytest.approx(expected, abs=1e-6)
    other = values_of(model, prompts, groups)
    assert (max(abs(a - b) for a, b in zip(found, other, strict=True)) > 1e-4) is not projector


def values_of(model: Tiny, prompts, groups) -> list[float]:
    (batch,) = micro_batches(model.policy, prompts, groups, max_tokens=100_000, pad_id=model.codec.pad_id)
    with torch.no_grad():
        return model.policy(batch.rows, temperature=0.7, chunk_size=4096)[0].tolist()


# ---- life ------------------------------------------------------------------------------------------------------


def test_features_go_with_the_groups_that_hold_them(frozen):
    model = frozen("qwen2_5_vl", False)
    groups = sample(model, wide_prompts(model), SamplingParams(num_samples=2, max_tokens=3))
    held = [weakref.ref(features_of(group.prompt)) for group in groups]
    assert all(each() is not None for each in held)
    del groups
    gc.collect()
    assert all(each() is None for each in held)


def test_features_are_not_computed_twice(frozen):
    model = frozen("qwen2_vl", False)
    once = model.policy.with_image_features(wide_prompts(model))
    with counted(model) as runs:
        twice = model.policy.with_image_features(once)
    assert runs == {"tower": 0, "projector": 0}
    assert all(features_of(a) is features_of(b) for a, b in zip(once, twice, strict=True))


def test_a_tower_that_learns_reads_pixels(tiny, tmp_path):
    for model in (tiny("qwen2_5_vl"), build_and_load(tmp_path / "p", "qwen2_5_vl", freeze_projector=True)):
        prompts = prompts_of(model)
        assert all(a is b for a, b in zip(model.policy.with_image_features(prompts), prompts, strict=True))
        weighted(model, model.policy.with_image_features(prompts), random_groups(model)[:3])
        found = gradients(model)
        assert any(bool(value.any()) for name, value in found.items() if ".visual.blocks." in name)


def test_a_text_model_has_nothing_to_keep(tiny):
    model = tiny("qwen2")
    prompts = prompts_of(model)
    assert model.policy.with_image_features(prompts) == prompts
    assert not model.policy.vision_frozen
