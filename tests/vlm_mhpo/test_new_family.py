"""A family that the product has never heard of enters by one door: media of another layout, a tower of another name.

The made-up model has Qwen2-VL's weights, so that stock Qwen2-VL on separate rows is its reference; but its images come
as one padded list of patches per image, with a height and a count and without a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from tests.builders import (
    Tiny,
    build_and_load,
    gradients,
    mixed_rows,
    plain_log_probs,
    problem_row,
    prompts_of,
    random_completions,
    relative_gap,
    tensors_of,
)
from vlm_mhpo.faults.dump import read_dump, unscored, write_dump
from vlm_mhpo.models.families import FAMILIES
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.families.frozen_tower import encode_images, encoder_output
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.types import Media, Prompt

NAME = "bags_vl"
LENGTHS = ((5, 1, 9, 5), (3,), (2, 7, 4))
PER_TOKEN = 4


# ---- the model, as its authors would publish it ----------------------------------------------------------------


def grid_of_bags(heights: Tensor, counts: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(heights), heights, counts // heights], dim=1)


def patches_in(bags: Tensor, counts: Tensor) -> Tensor:
    return torch.cat([bag[:count] for bag, count in zip(bags, counts.tolist(), strict=True)])


class BagConfig(transformers.Qwen2VLConfig):
    model_type = NAME


class BagBody(Qwen2VLModel):
    """Its tower is called `eyes`, and it takes bags."""

    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self._modules["eyes"] = self._modules.pop("visual")

    @property
    def visual(self):
        return self._modules["eyes"]

    def forward(self, bags=None, heights=None, counts=None, **rest):
        if bags is not None:
            rest |= {"pixel_values": patches_in(bags, counts), "image_grid_thw": grid_of_bags(heights, counts)}
        return super().forward(**rest)


class BagModel(transformers.Qwen2VLForConditionalGeneration):
    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = BagBody(config)


class BagProcessor(transformers.Qwen2VLProcessor):
    """NaN in the padding, so that whoever reads it is found out."""

    def __call__(self, *args, **kwargs):
        inputs = super().__call__(*args, **kwargs)
        grid, pixels = inputs.pop("image_grid_thw"), inputs.pop("pixel_values")
        counts = grid.prod(dim=1)
        parts = pixels.split(counts.tolist())
        bags = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=torch.nan)
        return transformers.BatchFeature(dict(inputs) | {"bags": bags, "heights": grid[:, 1], "counts": counts})


# ---- the family, as a file of models/families would hold it -----------------------------------------------------


def bag_positions(model, prompt: Prompt) -> Tensor:
    if prompt.media is None or "counts" not in prompt.media.tensors:
        return torch.arange(prompt.num_tokens).expand(3, -1)
    grid = grid_of_bags(prompt.media.tensors["heights"], prompt.media.tensors["counts"])
    found, _ = model.model.get_rope_index(
        prompt.input_ids_S[None], mm_token_type_ids=prompt.token_types_S[None], image_grid_thw=grid
    )
    return found[:, 0]


class BagVision:
    """What packing, sampling and training ask of `base.Vision`."""

    def cut(self, processor, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        columns = {name: inputs[name].split(list(num_images)) for name in ("bags", "heights", "counts")}
        return [Media({name: parts[i].clone() for name, parts in columns.items()}) for i in range(len(num_images))]

    def num_tokens(self, processor, media: Media) -> int:
        return int(media.tensors["counts"].sum()) // PER_TOKEN

    def join(self, parts: Sequence[Media]) -> Media:
        names = {name for part in parts for name in part.tensors}
        joined = {n: [part.tensors[n] for part in parts if n in part.tensors] for n in names - {"bags"}}
        made = {name: torch.cat(some) for name, some in joined.items()}
        if "bags" in names:
            bags = [bag for part in parts if "bags" in part.tensors for bag in part.tensors["bags"]]
            made["bags"] = torch.nn.utils.rnn.pad_sequence(bags, batch_first=True, padding_value=torch.nan)
        return Media(made)

    def is_empty(self, media: Media) -> bool:
        return "looks" in media.tensors and not len(media.tensors["looks"])

    def with_features(self, model, parts, learning) -> list[Media]:
        shown = [part for part in parts if part is not None] or [self.blank(model, None)[1]]
        joined = self.join(shown).tensors
        pixels, grid = patches_in(joined["bags"], joined["counts"]), grid_of_bags(joined["heights"], joined["counts"])
        looks = encode_images(self.tower(model), learning, pixels, grid_thw=grid)
        pieces = iter(looks.split([self.num_tokens(None, part) for part in shown]))
        kept = [{} if part is None else {name: part.tensors[name] for name in ("heights", "counts")} for part in parts]
        return [Media(each | {"looks": next(pieces) if each else looks[:0]}) for each in kept]

    def blank(self, model, media: Media | None) -> tuple[Tensor, Media]:
        """Two tokens wide, where Qwen's own is one."""
        ids = torch.full((2,), model.config.image_token_id)
        if media is not None and "looks" in media.tensors:
            return ids, Media({"looks": media.tensors["looks"].new_zeros(2, *media.tensors["looks"].shape[1:])})
        patches = torch.zeros(1, 2 * PER_TOKEN, model.model.eyes.patch_embed.proj.weight[0].numel())
        return ids, Media({"bags": patches, "heights": torch.tensor([2]), "counts": torch.tensor([2 * PER_TOKEN])})

    def arguments(self, model, media: Media, learning) -> dict:
        if self.is_empty(media):
            return {}
        looks = media.tensors.get("looks")
        return dict(media.tensors) if looks is None else encoder_output(looks, learning, PER_TOKEN)

    def tower(self, model):
        return model.model.eyes

    def projectors(self, model):
        return [model.model.eyes.merger]

    def adapt(self, model) -> None:
        pass


# ---- the proof -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Tiny:
    return build_and_load(tmp_path_factory.mktemp("stock"), "qwen2_vl")


@pytest.fixture(scope="module")
def folder(stock, tmp_path_factory):
    """The made-up model as a folder, registered with transformers and with the product by one row."""
    transformers.AutoConfig.register(NAME, BagConfig)
    transformers.AutoModelForImageTextToText.register(BagConfig, BagModel)
    transformers.AutoProcessor.register(BagConfig, BagProcessor)
    folder = tmp_path_factory.mktemp("bags")
    config = stock.policy.model.config.to_dict() | {"model_type": NAME}
    model = BagModel(BagConfig.from_dict(config))
    weights = stock.policy.model.state_dict()
    model.load_state_dict({name.replace(".visual.", ".eyes."): weight for name, weight in weights.items()})
    model.generation_config = stock.policy.model.generation_config
    model.save_pretrained(folder)
    parts = {name: getattr(stock.codec.processor, name) for name in ("image_processor", "tokenizer", "video_processor")}
    BagProcessor(**parts, chat_template=stock.codec.processor.chat_template).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, NAME, Family(NAME, bag_positions, BagVision(), leaf_modules=("Qwen2MLP",)))
        yield folder


CASES = {
    "learns": {},
    "frozen": {"freeze_vision_tower": True},
    "all frozen": {"freeze_vision_tower": True, "freeze_projector": True},
}


@pytest.fixture(scope="module", params=CASES)
def bags(request, folder) -> Tiny:
    policy, codec = load_policy(str(folder), **CASES[request.param])
    assert isinstance(policy.model, BagModel) and policy.vision_frozen is (request.param != "learns")
    return Tiny(NAME, folder, policy, codec)


def prompts_for(bags: Tiny, stock: Tiny) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of the same rows for both models."""
    rows = mixed_rows(stock)
    ours, theirs = prompts_of(bags, rows), prompts_of(stock, rows)
    for one, other in zip(ours, theirs, strict=True):
        assert one.input_ids_S.tolist() == other.input_ids_S.tolist()
        assert not set(tensors_of(one)) & {"pixel_values", "image_grid_thw"}
    return ours, theirs


def expected_of(stock: Tiny, prompts, groups) -> dict[tuple[int, int], float]:
    """Log-probs by (completion, time) of separate rows; leaves the gradient of a weighted sum behind."""
    values, flat = {}, 0
    for prompt, group in zip(prompts, groups, strict=True):
        for ids in group:
            log_probs_T = plain_log_probs(stock, prompt, ids, temperature=0.7)
            (log_probs_T * torch.cos(flat + 2.0 * torch.arange(len(ids)))).sum().backward()
            values |= {(flat, time): value for time, value in enumerate(log_probs_T.tolist())}
            flat += 1
    return values


def found_of(bags: Tiny, prompts, groups, max_tokens: int) -> dict[tuple[int, int], float]:
    """The same through the product."""
    values = {}
    for batch in micro_batches(bags.policy, prompts, groups, max_tokens=max_tokens, pad_id=bags.codec.pad_id):
        log_probs_N, _ = bags.policy(batch.rows, temperature=0.7, chunk_size=8)
        (log_probs_N * torch.cos(batch.rows.completion_N + 2.0 * batch.rows.time_N)).sum().backward()
        keys = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
        values |= dict(zip(keys, log_probs_N.tolist(), strict=True))
    return values


@pytest.mark.parametrize("max_tokens", [10_000, 56], ids=["all together", "groups cut"])
def test_packed_log_probs_and_gradients_are_those_of_separate_stock_rows(bags, stock, max_tokens):
    ours, theirs = prompts_for(bags, stock)
    groups = [random_completions(stock, group, seed=7 + index) for index, group in enumerate(LENGTHS)]
    ours = bags.policy.with_image_features(ours)
    found, expected = found_of(bags, ours, groups, max_tokens), expected_of(stock, theirs, groups)
    assert found == pytest.approx(expected, abs=1e-5)
    trained = {name for name, weight in bags.policy.named_parameters() if weight.requires_grad}
    named = {name.replace(".visual.", ".eyes."): value for name, value in gradients(stock).items()}
    both = [{name: value for name, value in some.items() if name in trained} for some in (gradients(bags), named)]
    gap, name = relative_gap(*both)
    assert gap <= 1e-5, name


def test_without_images_the_blank_one_of_two_tokens_runs_every_vision_module_and_changes_nothing(bags, stock):
    rows = [problem_row("a", "What is 3 + 4 ?"), problem_row("b", "red plus blue times 9")]
    ours, theirs = bags.policy.with_image_features(prompts_of(bags, rows)), prompts_of(stock, rows)
    groups = [random_completions(stock, group, seed=3) for group in ((4, 2), (3, 6))]
    found, expected = found_of(bags, ours, groups, 10_000), expected_of(stock, theirs, groups)
    assert found == pytest.approx(expected, abs=1e-5)
    seen = [w.grad for name, w in bags.policy.named_parameters() if ".eyes." in name and w.requires_grad]
    assert all(gradient is not None and not bool(gradient.any()) for gradient in seen)
    gradients(bags), gradients(stock)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sampled_log_probs_are_those_of_separate_stock_rows(bags, stock, side):
    ours, theirs = prompts_for(bags, stock)
    # Many end tokens, so that completions have every length and rows leave the batch.
    codec = replace(bags.codec, end_ids=tuple(range(80)))
    sampler = HfSampler(bags.policy, codec, max_batch_tokens=10_000, padding_side=side)
    groups = sampler.sample(ours, SamplingParams(num_samples=4, max_tokens=12, temperature=0.7), (5, "bags"))
    assert len({len(each.token_ids) for group in groups for each in group.completions}) > 3
    for prompt, group in zip(theirs, groups, strict=True):
        for each in group.completions:
            with torch.no_grad():
                expected = plain_log_probs(stock, prompt, each.token_ids, temperature=0.7).tolist()
            assert each.log_probs.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_dump_brings_its_media_back(bags, stock, tmp_path):
    ours, _ = prompts_for(bags, stock)
    sampler = HfSampler(bags.policy, bags.codec, max_batch_tokens=10_000)
    groups = sampler.sample(ours, SamplingParams(num_samples=2, max_tokens=3, temperature=1.0), (0,))
    write_dump(tmp_path, 1, unscored(groups), {}, "because")
    (dump,) = read_dump(tmp_path / "dumps" / "step_1")
    for found, kept in zip(dump.batch.groups, groups, strict=True):
        one, other = tensors_of(found.group.prompt), tensors_of(kept.prompt)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in other)


def test_the_leaf_modules_of_a_family_are_marked_for_zero3(bags: Tiny):
    marked = {type(module).__name__ for module in bags.policy.modules() if getattr(module, "_z3_leaf", False)}
    assert isinstance(bags.policy, Policy) and marked == {"Qwen2MLP"}
