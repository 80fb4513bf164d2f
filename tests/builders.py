"""Builders of what tests start from: tiny models, rows with images, prompts, completions, and a plain reference.

`plain_log_probs` is the independent reference of packing and sampling: the stock transformers model on one
[prompt, completion] sequence with its own masks and positions, softmax over the vocabulary that the tokenizer names.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep import Row
from data_prep.schema import make_row
from vlm_mhpo.models.loading import Codec, load_policy
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.types import Completion, Group, Media, Prompt, ScoredGroup

# Images as patches with a grid; then as tiles of one size.
QWEN_VL_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GRID_FAMILIES = (*QWEN_VL_FAMILIES, "glm4v")
VISION_FAMILIES = (*GRID_FAMILIES, "internvl")
# Images of one size, whatever they are; layers that slide.
VIEW_FAMILIES = ("gemma3", "gemma4")
# With a file of tests of their own.
SMOL_FAMILIES = ("smolvlm", "idefics3")
FAMILIES = (*VISION_FAMILIES, "qwen2")
# Written out here, so that a name that the program forgets is not forgotten by its tests too.
PLACEHOLDER_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
GLM_PLACEHOLDERS = (
    *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
)
PLACEHOLDERS = {
    "glm4v": GLM_PLACEHOLDERS,
    "glm46v": GLM_PLACEHOLDERS,
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "gemma3": ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    # One that no family here knows (`tests/own_models.py`).
    "mistral3": (*PLACEHOLDER_TOKENS, "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    "gemma4": ("<|image>", "<image|>", "<|image|>", "<|audio|>", "<|audio>", "<audio|>", "<|video|>"),
    **dict.fromkeys(SMOL_FAMILIES, ("<fake_token_around_image>", "<global-img>", "<image>", "<video>")),
}
# What stands for an image in a template.
IMAGE_TEXTS = {
    "glm4v": "".join(GLM_PLACEHOLDERS[:3]),
    "glm46v": "".join(GLM_PLACEHOLDERS[:3]),
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<start_of_image>",
    "gemma4": "<|image|>",
    **dict.fromkeys(SMOL_FAMILIES, "<image>"),
}


@dataclass(frozen=True)
class Tiny:
    """A tiny policy with its codec and the folder that it was loaded from."""

    family: str
    folder: Path
    policy: Policy
    codec: Codec

    @property
    def has_vision(self) -> bool:
        return self.policy.family.has_vision

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Tokens that must never be sampled."""
        return PLACEHOLDERS.get(self.family, PLACEHOLDER_TOKENS)

    @property
    def image_text(self) -> str:
        """What its template puts for an image."""
        return IMAGE_TEXTS.get(self.family, "<|vision_start|><|image_pad|><|vision_end|>")

    @property
    def image_token(self) -> str:
        """The placeholder that is repeated."""
        known = "<IMG_CONTEXT>", "<image>", "<|image|>", "<|image_pad|>"
        return next(token for token in known if token in self.image_text)

    def part_of(self, name: str) -> str:
        """tower, projector or language, by the words in a weight's name."""
        if not sees(name):
            return "language"
        projectors = {"merger", "deepstack_merger_list", "multi_modal_projector", "connector"}
        return "projector" if projectors & set(name.split(".")) else "tower"

    @property
    def token_side(self) -> int:
        """Pixels on a side of one image token."""
        return 32 if self.family.startswith("qwen3") else 28

    def builder(self, **options) -> PromptBuilder:
        """A prompt builder for this model."""
        return PromptBuilder(self.codec, self.policy.family, **options)

    def copy(self) -> Tiny:
        """The same with weights of its own."""
        return Tiny(self.family, self.folder, copy.deepcopy(self.policy), self.codec)


def sees(name: str) -> bool:
    """Whether a weight or layer of this name belongs to a tower or projector."""
    return bool({"visual", "vision_tower", "vision_model", "multi_modal_projector", "connector"} & set(name.split(".")))


def build_and_load(folder: Path, family: str, **options) -> Tiny:
    """Build a tiny model and load it the way a real one is loaded."""
    policy, codec = load_policy(str(build_tiny(folder, family, hidden_size=64)), **options)
    return Tiny(family, folder, policy, codec)


def picture(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG of coloured blocks that depends on `seed`."""
    blocks = np.random.default_rng(seed).integers(0, 256, size=(-(-height // 7), -(-width // 7), 3), dtype=np.uint8)
    pixels = blocks.repeat(7, axis=0).repeat(7, axis=1)[:height, :width]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def problem_row(id: str, problem: str, images: Sequence[bytes | Path] = (), **fields) -> Row:
    """A usable row with gold 7."""
    return make_row(id=id, problem=problem, answer="7", images=images, source="made", **fields)


def mixed_rows(model: Tiny) -> list[Row]:
    """Rows of different lengths: two images, one, none; a text family gets texts of the same kind."""
    side = model.token_side
    if not model.has_vision:
        return [
            problem_row("long", "What is the value of bar A? What is the total of all bars?"),
            problem_row("middle", "What is red plus blue?"),
            problem_row("short", "1 + 2"),
        ]
    return [
        problem_row(
            "two",
            "Compare <image> with <image> and add.",
            [picture(2 * side, 3 * side, seed=1), picture(4 * side, side, seed=2)],
        ),
        problem_row("one", "<image>What is red plus blue?", [picture(2 * side, 2 * side, seed=3)]),
        problem_row("none", "What is 3 + 4 ?"),
    ]


def prompts_of(model: Tiny, rows: Sequence[Row] | None = None) -> list[Prompt]:
    """The prompts of rows, by default of `mixed_rows`."""
    build = model.builder()
    return [build(row) for row in (mixed_rows(model) if rows is None else rows)]


def pixels_of(prompt: Prompt) -> Tensor:
    """[patches, patch_dim] of a Qwen-VL prompt with images."""
    return prompt.media.tensors["pixel_values"]


def grid_of(prompt: Prompt) -> Tensor:
    """[images, 3] patches in time, height and width of a Qwen-VL prompt with images."""
    return prompt.media.tensors["image_grid_thw"]


def features_of(prompt: Prompt) -> Tensor:
    """[I, K, D] of a Qwen-VL prompt that a frozen tower has seen."""
    return prompt.media.tensors["image_features_IKD"]


def tensors_of(prompt: Prompt) -> dict[str, Tensor]:
    """Everything that a prompt holds in numbers."""
    media = prompt.media.tensors if prompt.media else {}
    return {"input_ids_S": prompt.input_ids_S, "token_types_S": prompt.token_types_S, **media}


def with_media(prompt: Prompt, **tensors: Tensor) -> Prompt:
    """The prompt with other tensors of these names."""
    return replace(prompt, media=Media({**prompt.media.tensors, **tensors}))


def allowed_ids(model: Tiny) -> list[int]:
    """Ids that may be sampled: known to the tokenizer and no vision placeholder, found by name and not by our table."""
    vocabulary = model.codec.tokenizer.get_vocab()
    return sorted(index for token, index in vocabulary.items() if token not in model.placeholders)


def random_completions(model: Tiny, lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    """Random allowed ids, one completion a length."""
    random = np.random.default_rng(seed)
    ids = np.array(allowed_ids(model))
    return [tuple(int(index) for index in random.choice(ids, size=length)) for length in lengths]


def stock_media(model: Tiny, prompt: Prompt) -> dict[str, Tensor]:
    """The images of a prompt as the stock model takes them, the prompt alone in its batch."""
    if not prompt.row.images:
        return {}
    if model.family in SMOL_FAMILIES:
        return {"pixel_values": pixels_of(prompt)[None]}
    if "<start_of_image>" in prompt.text:
        # Gemma: without them its image tokens would not see ahead.
        return {"pixel_values": pixels_of(prompt), "token_type_ids": prompt.token_types_S[None]}
    if "image_sizes" in prompt.media.tensors:
        return dict(prompt.media.tensors)
    if "image_position_ids" in prompt.media.tensors:
        return {**prompt.media.tensors, "mm_token_type_ids": prompt.token_types_S[None]}
    if "image_grid_thw" not in prompt.media.tensors:
        return {"pixel_values": pixels_of(prompt)}
    grid = {"image_grid_thw": grid_of(prompt), "mm_token_type_ids": prompt.token_types_S[None]}
    return {"pixel_values": pixels_of(prompt), **grid}


def plain_logits(model: Tiny, prompt: Prompt, ids: Sequence[int]) -> Tensor:
    """[T, V] raw logits that the stock model gives for each of `ids` after the prompt, with gradient.

    In float64 if the weights are, and in float32 otherwise.
    """
    stock = model.policy.model
    inputs: dict[str, Tensor] = {"input_ids": torch.cat([prompt.input_ids_S, torch.tensor(ids)])[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs |= stock_media(model, prompt)
    for name in {"mm_token_type_ids", "token_type_ids"} & inputs.keys():
        inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(ids)))
    logits = stock(**inputs, use_cache=False).logits[0]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits[prompt.num_tokens - 1 : prompt.num_tokens - 1 + len(ids)]


def plain_log_probs(model: Tiny, prompt: Prompt, ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """[T] log-probs of one completion under the stock model, over the allowed vocabulary, with gradient."""
    allowed = allowed_ids(model)
    logits = plain_logits(model, prompt, ids)[:, allowed] / temperature
    targets = torch.tensor([allowed.index(index) for index in ids])
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def gradients(model: Tiny) -> dict[str, Tensor]:
    """Take the gradients of all weights, by name; zeros where there is none."""
    found = {}
    for name, weight in model.policy.named_parameters():
        found[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad
        weight.grad = None
    return found


def relative_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest |found - expected| / |expected| over the weights, in L2 norm, and the weight's name.

    A weight whose gradient is below a millionth of the largest one is compared on that scale: its digits are noise.
    """
    assert found.keys() == expected.keys()
    floor = 1e-6 * max(float(value.norm()) for value in expected.values())
    # Without rotary positions a key bias adds the same to all scores of a query: its gradient is 0, and found is noise.
    gaps = {
        name: float((found[name] - value).norm()) / max(float(value.norm()), floor)
        for name, value in expected.items()
        if not re.search(r"vision_(tower|model)\..*k_proj\.bias$", name)
    }
    worst = max(gaps, key=gaps.__getitem__)
    return gaps[worst], worst


def completion(ids: Sequence[int], log_probs: Sequence[float] | None = None, *, truncated: bool = False) -> Completion:
    """A completion of given tokens."""
    return Completion(tuple(ids), torch.tensor(log_probs or [0.0] * len(ids)), text="", truncated=truncated)


def scored(prompt: Prompt, completions: Sequence[Completion], rewards: Sequence[float] | None = None) -> ScoredGroup:
    """A scored group with made-up verdicts."""
    rewards = tuple(rewards or [float(index % 2) for index in range(len(completions))])
    return ScoredGroup(
        group=Group(prompt, tuple(completions)),
        rewards=rewards,
        rewards_by_name={"accuracy": rewards},
        verdicts=tuple("correct" if reward else "wrong" for reward in rewards),
        extracted=tuple("7" if reward else None for reward in rewards),
    )
