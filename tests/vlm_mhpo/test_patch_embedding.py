"""A patch embedding by matrix product is the convolution, values and gradients."""

import pytest
import torch

from tests.builders import QWEN_VL_FAMILIES, grid_of, pixels_of, prompts_of
from vlm_mhpo.models.families.patch_embedding import embed_patches_by_product

KERNEL = (2, 3, 3)


def tower_of(**options) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv3d(3, 5, KERNEL, **{"stride": KERNEL, **options})).double()


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_the_convolutions(bias):
    usual, changed = tower_of(bias=bias), tower_of(bias=bias)
    embed_patches_by_product(changed)
    patches = torch.randn(7, 3, *KERNEL, dtype=torch.float64)
    outputs = []
    for tower in (usual, changed):
        given = patches.clone().requires_grad_()
        output = tower(given).view(-1, 5)
        (output.sin() * torch.arange(35.0).view(7, 5)).sum().backward()
        outputs.append([output, given.grad, *(weight.grad for weight in tower.parameters())])
    assert len(outputs[0]) == (4 if bias else 3)
    for expected, value in zip(*outputs, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    assert changed.state_dict().keys() == usual.state_dict().keys()


@pytest.mark.parametrize("options", [{"stride": (1, 3, 3)}, {"padding": (0, 1, 1)}])
def test_a_convolution_that_overlaps_or_pads_stays_one(options):
    usual, other = tower_of(**options), tower_of(**options)
    embed_patches_by_product(other)
    images = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(other(images), usual(images), rtol=0, atol=0)


@pytest.mark.parametrize("family", QWEN_VL_FAMILIES)
def test_a_loaded_policy_runs_no_convolution(tiny, family):
    model = tiny(family)
    prompt = next(prompt for prompt in prompts_of(model) if prompt.media is not None)
    with torch.profiler.profile() as watched:
        model.policy.model.model.visual(pixels_of(prompt), grid_thw=grid_of(prompt))
    names = {event.key for event in watched.key_averages()}
    assert "aten::linear" in names
    assert not {name for name in names if "conv" in name}
