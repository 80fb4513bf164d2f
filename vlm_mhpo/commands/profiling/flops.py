"""Model FLOPs of sampling and training: what the mathematics asks for, from shapes and lengths alone.

A matrix of w weights that n things pass through costs 2 w n FLOPs forward (a multiplication and an addition a weight),
as many in backward for the gradient of its weights, and as many for the gradient of its input. Where everything is
trained that is the usual 6 x weights x tokens. Attention is a matrix product too: a query that sees a key costs two
products (scores, mixture) of heads x head width a layer, so it is written as 2 x width "weights" for each pair of a
query and a key that it sees. The whole is

    FLOPs = sum over parts of 2 x weights x things x (1 + backward)
    backward = 0 where no gradient passes, 1 + (trained weights / weights) where one does

with these parts and things: the text layers and their attention (tokens; causal pairs inside the prompt, inside each
completion, and from completion to prompt), the head (predicted tokens: only sampled ones have logits), and in the
vision tower the patch embedding, the blocks, their attention (patches; pairs inside an image or a window) and the
projectors (merged patches).

Padding, prompts that are computed more than once, finished rows that are still decoded and activations that gradient
checkpointing computes again are not asked for, so they count nothing: they lower the utilisation. The vision tower
counts as often as it ran. Not covered: norms, softmax, rotary positions, sampling, the optimizer (all without matrix
products), sliding windows in text attention, and that the first trained layer of a tower under a frozen part needs no
gradient of its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from torch import nn

from vlm_mhpo.models.families.base import vision_tower
from vlm_mhpo.models.policy import Policy

Unit = Literal["tokens", "pairs", "predictions", "patches", "image_pairs", "window_pairs", "merged"]


@dataclass(frozen=True, slots=True)
class Work:
    """How many things pass through each kind of part.

    Attributes:
        tokens: text and image tokens in the language model.
        pairs: (query, key) pairs that attention of the language model needs.
        predictions: tokens whose logits are needed.
        patches: image patches.
        image_pairs, window_pairs: (query, key) pairs of patches inside an image, inside a window.
        merged: image tokens that the projector makes.
    """

    tokens: int = 0
    pairs: int = 0
    predictions: int = 0
    patches: int = 0
    image_pairs: int = 0
    window_pairs: int = 0
    merged: int = 0

    def __add__(self, other: Work) -> Work:
        """The work of both."""
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))


@dataclass(frozen=True, slots=True)
class Part:
    """Matrices that the same things pass through.

    Attributes:
        weights: entries of the matrices; for attention 2 x heads x head width, summed over layers.
        unit: what passes, a field of `Work`.
        backward: cost of backward over forward, 0 to 2.
    """

    name: str
    weights: int
    unit: Unit
    backward: float


def model_flops(parts: Sequence[Part], work: Work, *, backward: bool) -> float:
    """FLOPs of `work`, forward alone or with backward; see the top of this file for the formula."""
    return float(
        sum(2 * part.weights * getattr(work, part.unit) * (1 + (part.backward if backward else 0)) for part in parts)
    )


def sampling_work(prompt_length: int, lengths: Iterable[int]) -> Work:
    """Work of one prompt and its completions when the prompt is run once; the last sampled token is never fed back."""
    total = causal_prompt(prompt_length)
    for length in lengths:
        fed = length - 1
        total += Work(tokens=fed, pairs=fed * prompt_length + fed * (fed + 1) // 2, predictions=fed)
    return total + Work(predictions=1)


def training_work(prompt_length: int, lengths: Iterable[int]) -> Work:
    """Work of one forward over a prompt and its completions when they share the prompt."""
    total = causal_prompt(prompt_length)
    for length in lengths:
        total += Work(tokens=length, pairs=length * prompt_length + length * (length + 1) // 2, predictions=length)
    return total


def causal_prompt(length: int) -> Work:
    """Work of a prompt of which no logits are needed."""
    return Work(tokens=length, pairs=length * (length + 1) // 2)


def vision_work(grids: Iterable[Sequence[int]], vision_config: object) -> Work:
    """Work of images given as (frames, height, width) in patches."""
    merge = vision_config.spatial_merge_size
    window = getattr(vision_config, "window_size", 0) // (merge * vision_config.patch_size)
    total = Work()
    for frames, height, width in grids:
        patches = height * width
        # A window holds the patches of a block of merged tokens; blocks at the right and lower edge are smaller.
        in_window = merge**4 * sum_of_squares(height // merge, window) * sum_of_squares(width // merge, window)
        total += Work(
            patches=frames * patches,
            image_pairs=frames * patches**2,
            window_pairs=frames * in_window,
            merged=frames * patches // merge**2,
        )
    return total


def sum_of_squares(length: int, piece: int) -> int:
    """Squares of the lengths when `length` is cut into pieces of `piece`, added up; 0 without pieces."""
    if not piece:
        return 0
    return (length // piece) * piece**2 + (length % piece) ** 2


def parts_of(policy: Policy) -> tuple[Part, ...]:
    """The parts of a policy, with the gradients that its `requires_grad` asks for."""
    model, family = policy.model, policy.family
    body = getattr(model.model, "language_model", model.model)
    config = model.config.get_text_config()
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * head_width
    # Whatever is trained in the vision tower lies below the language model, so gradients pass all of it.
    text = [
        matrices("text layers", [body], "tokens"),
        Part("text attention", attention, "pairs", 2.0),
        matrices("head", [model.lm_head], "predictions"),
    ]
    tower = vision_tower(model, family)
    return (*text, *(vision_parts(tower, family.projectors, model.config.vision_config) if tower is not None else ()))


def vision_parts(tower: nn.Module, projectors: Sequence[str], config: object) -> list[Part]:
    """The parts of a vision tower."""
    projector_modules = [getattr(tower, name) for name in projectors]
    in_projectors = {id(parameter) for module in projector_modules for parameter in module.parameters()}
    trained = {id(parameter) for parameter in tower.parameters() if parameter.requires_grad}
    tower_trained = bool(trained - in_projectors)
    embedding = tower.patch_embed.proj
    whole = set(getattr(config, "fullatt_block_indexes", range(len(tower.blocks))))
    widths = [2 * block.attn.proj.in_features for block in tower.blocks]
    attention = 2.0 if tower_trained else 0.0
    return [
        # Pixels need no gradient.
        Part("patch embedding", num_weights(embedding), "patches", float(embedding.weight.requires_grad)),
        matrices("vision blocks", [tower.blocks], "patches", passes=tower_trained),
        Part("image attention", sum(w for i, w in enumerate(widths) if i in whole), "image_pairs", attention),
        Part("window attention", sum(w for i, w in enumerate(widths) if i not in whole), "window_pairs", attention),
        matrices("projector", projector_modules, "merged", passes=bool(trained)),
    ]


def matrices(name: str, modules: Sequence[nn.Module], unit: Unit, *, passes: bool = True) -> Part:
    """The linear layers of some modules as one part; `passes`: a gradient passes through them."""
    linears = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
    total = sum(map(num_weights, linears))
    trained = sum(num_weights(layer) for layer in linears if layer.weight.requires_grad)
    return Part(name, total, unit, 1.0 + trained / total if passes else 0.0)


def num_weights(layer: nn.Module) -> int:
    """Entries of the matrix of a linear layer or convolution; under ZeRO-3 the tensor itself is empty."""
    weight = layer.weight
    return getattr(weight, "ds_numel", weight.numel())
