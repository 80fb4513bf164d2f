"""Sizes and costs in the words that every family shares: layers, matrices, and what passes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

Unit = Literal["tokens", "pairs", "predictions", "patches", "image_pairs", "window_pairs", "merged"]


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of transformer layers; widths in elements per token (or patch).

    Attributes:
        pixels_per_token, patches_per_token: of a vision tower, what one image token sees; 0 for text.
    """

    num_layers: int
    hidden: int
    intermediate: int
    query: int
    num_heads: int
    pixels_per_token: int = 0
    patches_per_token: int = 0


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


def head_shapes(text: Any) -> list[tuple[int, int]]:
    """(key-value heads that a layer adds to the cache, width of a head) of each text layer.

    Gemma 4 has heads of two widths, and layers that read the keys of others and add none.
    """
    own = getattr(text, "per_layer_config", None)
    layers = [own[index] for index in range(text.num_hidden_layers)] if own else [text] * text.num_hidden_layers
    modes = getattr(text, "kv_sharing_modes", None) or [None] * len(layers)
    return [
        (
            0 if mode == "reuse" else layer.num_key_value_heads,
            getattr(layer, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        )
        for layer, mode in zip(layers, modes, strict=True)
    ]
