"""Vision towers in few calls: windows and images of one length together, and an image that repeats once."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from tests.builders import QWEN_VL_FAMILIES, build_and_load, picture, problem_row, prompts_of
from tests.vlm_mhpo.attention_cases import Calls
from vlm_mhpo.models.families.frozen_tower import distinct

FEATURES = "image_features_IKD"
# Two images alike in size, one that is not, and all larger than a window in both directions.
SIZES = ((10, 9), (10, 9), (7, 5))


@pytest.mark.parametrize("family", QWEN_VL_FAMILIES)
def test_a_tower_gives_what_it_gives_with_a_call_for_each_window(tiny, family):
    model = tiny(family).policy.model
    tower, vision = model.model.visual, model.config.vision_config
    grid = torch.tensor([[1, 2 * height, 2 * width] for height, width in SIZES])
    patch_dim = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(grid.prod(dim=1).sum()), patch_dim, generator=torch.Generator().manual_seed(0))
    ours, found = tower.config._attn_implementation, {}
    for name in ("sdpa", ours):
        tower.config._attn_implementation = name
        tower.zero_grad()
        try:
            with Calls() as calls:
                output = tower(pixels, grid_thw=grid, return_dict=True).pooler_output
                (output * torch.arange(output.shape[1])).sum().backward()
        finally:
            tower.config._attn_implementation = ours
        gradients = {key: weight.grad.clone() for key, weight in tower.named_parameters() if weight.grad is not None}
        tower.zero_grad()
        found[name] = output.detach(), gradients, calls.of_attention
    (theirs, their_gradients, their_calls), (mine, my_gradients, my_calls) = found["sdpa"], found[ours]
    assert torch.equal(mine, theirs)
    assert my_gradients.keys() == their_gradients.keys()
    for key, gradient in their_gradients.items():
        assert (my_gradients[key] - gradient).norm() <= 1e-6 * gradient.norm(), key
    # Three images in two sizes, and at most four shapes of windows a size.
    assert my_calls <= len(tower.blocks) * 8
    assert my_calls < their_calls


def grey(width: int, height: int) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (90, 90, 90)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("family", QWEN_VL_FAMILIES)
def test_an_image_that_repeats_passes_through_a_frozen_tower_once(tmp_path, family):
    model = build_and_load(tmp_path / family, family, freeze_vision_tower=True, freeze_projector=True)
    side = model.token_side
    one, other = (picture(3 * side, 2 * side, seed=seed) for seed in (9, 10))
    rows = [
        problem_row("a", "<image>What is red?", [one]),
        problem_row("b", "Look: <image> and <image> and again <image>", [one, other, one]),
        problem_row("c", "What is 3 + 4 ?"),
        problem_row("d", "<image>What is blue?", [other]),
        # As many patches of one colour, and not the same image: their positions differ.
        problem_row("e", "<image>What is red?", [grey(3 * side, 2 * side)]),
        problem_row("f", "<image>What is red?", [grey(2 * side, 3 * side)]),
    ]
    prompts, seen = prompts_of(model, rows), []
    tower = model.policy.model.model.visual
    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["grid_thw"]), with_kwargs=True
    )
    together = model.policy.with_image_features(prompts)
    handle.remove()
    assert [len(grid) for grid in seen] == [4]
    alone = [model.policy.with_image_features([prompt])[0] for prompt in prompts]
    for mine, its in zip(together, alone, strict=True):
        assert torch.allclose(mine.media.tensors[FEATURES], its.media.tensors[FEATURES], rtol=1e-5, atol=1e-6)
    assert [len(prompt.media.tensors[FEATURES]) for prompt in together] == [6, 18, 0, 6, 6, 6]


def test_images_are_the_same_when_shape_and_all_values_are():
    ones, twos = torch.ones(4, 3), torch.full((4, 3), 2.0)
    nearly = torch.where(torch.arange(12).view(4, 3) == 11, 1.0 + 1e-7, ones)
    images = [ones, twos, ones.clone(), ones, nearly, twos]
    # The same patches in other rows are another image.
    layouts = [(1, 3, 4), (1, 3, 4), (1, 3, 4), (1, 4, 3), (1, 3, 4), (1, 3, 4)]
    assert distinct(images, layouts) == ([0, 1, 3, 4], [0, 1, 0, 2, 3, 1])
