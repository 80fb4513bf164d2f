"""Sizes and costs in the words that every family shares: layers, matrices, and what passes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
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


@dataclass(frozen=True, slots=True)
class TextLayers:
    """Sizes of the text layers of a transformers configuration, where they are not all alike.

    Attributes:
        num_recurrent: layers (gated delta nets) whose memory is of constant size.
        keys: entries that a token leaves in all caches of keys; those of values are as many.
        queries: entries of its queries, all layers that attend together.
        query_width: those of the widest layer.
        state: entries of the matrix that a recurrent layer remembers, all heads together.
        channels, kernel: of its convolution.
        inner: width of the perceptron that a token passes, routed and shared experts together; 0 = not known.
    """

    num_recurrent: int
    keys: int
    queries: int
    query_width: int
    state: int
    channels: int
    kernel: int
    inner: int

    @classmethod
    def of(cls, text: Any) -> TextLayers:
        """Those of a text configuration."""
        shapes = head_shapes(text)
        kinds = getattr(text, "layer_types", None) or ()
        num_recurrent = sum(kind == "linear_attention" for kind in kinds)

        def size(name: str) -> int:
            # Recurrent layers of other kinds name theirs otherwise, and are counted as if they kept nothing.
            return getattr(text, f"linear_{name}", 0) if num_recurrent else 0

        values, keys = size("num_value_heads") * size("value_head_dim"), size("num_key_heads") * size("key_head_dim")
        routed = experts_per_token(text) if getattr(text, "moe_intermediate_size", None) else 0
        shared = getattr(text, "shared_expert_intermediate_size", None) or 0
        inner = getattr(text, "intermediate_size", None) or 0
        if routed:
            # Gemma 4 has its dense perceptron beside the experts.
            dense = inner if hasattr(text, "top_k_experts") else 0
            inner = routed * text.moe_intermediate_size + shared + dense
        return cls(
            num_recurrent=num_recurrent,
            keys=sum(heads * width for heads, width in shapes),
            queries=text.num_attention_heads * sum(width for _, width in shapes),
            query_width=text.num_attention_heads * max(width for _, width in shapes),
            state=values * size("key_head_dim"),
            channels=2 * keys + values,
            kernel=size("conv_kernel_dim"),
            inner=inner,
        )

    def state_bytes(self, width: int) -> int:
        """Bytes that a prompt or a completion leaves in the caches of all recurrent layers, at any length.

        Args:
            width: bytes of a weight; the matrix is float32, the inputs of the convolution are as they come.
        """
        return self.num_recurrent * (4 * self.state + width * self.channels * self.kernel)


def text_parts(body: nn.Module, text: Any) -> list[Part]:
    """The matrices of the text layers with configuration `text`, and what stands for those that no module holds.

    A token passes `num_experts_per_tok` of a layer's routed experts. In a gated delta net it reads the state twice, for
    what is there under its key and under its query, and writes once; each is a product with state entries.
    """
    layers = TextLayers.of(text)
    found = [
        matrices("text layers", [body], "tokens"),
        Part("text attention", 2 * layers.queries, "pairs", 2.0),
    ]
    if layers.num_recurrent:
        per_layer = 3 * layers.state + layers.channels * layers.kernel
        found.append(Part("recurrent states", layers.num_recurrent * per_layer, "tokens", 2.0))
    # transformers holds the experts of a layer in one tensor [experts, out, in], and the router as a plain matrix.
    routed = [weight for weight in body.parameters() if len(shape_of(weight)) == 3 and shape_of(weight)[1] > 1]
    experts = getattr(text, "num_experts", None) if routed else None
    if experts and experts_per_token(text):
        trained = any(weight.requires_grad for weight in routed)
        routers = len(routed) // 2 * experts * text.hidden_size
        weights = sum(shape_of(weight).numel() for weight in routed) * experts_per_token(text) // experts
        found.append(Part("routed experts", weights + routers, "tokens", 2.0 if trained else 1.0))
    return found


def experts_per_token(text: Any) -> int:
    """Routed experts that a token passes in a layer; 0 without."""
    return getattr(text, "num_experts_per_tok", None) or getattr(text, "top_k_experts", None) or 0


def shape_of(weight: nn.Parameter) -> torch.Size:
    """The whole shape, which under ZeRO-3 the tensor itself does not have."""
    return torch.Size(getattr(weight, "ds_shape", weight.shape))


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
    """(key-value heads that a layer adds to the cache, width of a head) of each text layer that attends.

    Gemma 4 has heads of two widths, and layers that read the keys of others and add none.
    """
    own = getattr(text, "per_layer_config", None)
    layers = [own[index] for index in range(text.num_hidden_layers)] if own else [text] * text.num_hidden_layers
    modes = getattr(text, "kv_sharing_modes", None) or [None] * len(layers)
    kinds = getattr(text, "layer_types", None) or [None] * len(layers)
    return [
        (
            0 if mode == "reuse" else getattr(layer, "num_key_value_heads", None) or text.num_attention_heads,
            getattr(layer, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        )
        for layer, mode, kind in zip(layers, modes, kinds, strict=True)
        if kind != "linear_attention"
    ]
