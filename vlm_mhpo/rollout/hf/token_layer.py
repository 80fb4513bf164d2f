"""A text layer on one new token of each row, in half the calls of transformers' own forward and with the same results.

A layer that is norm, attention with rotary embedding, norm and gated MLP (`Family.plain_layers`) is computed here from
its own modules and weights; every other layer runs its own forward. What is saved: queries, keys and values are one
product, and gate and up another, where their weights lie side by side; they are turned together; a norm is one call.

    h [B, q heads + k heads + v heads, D]   one product of the normed token
      |<--- turned by its position --->|
      | queries           | keys       | values |
                            into the buffers of own tokens (`shared_prefix`), over which the queries attend

Shape suffixes: B rows, C channels of the model, N heads of a kind, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.hf.shared_prefix import SharedPrefixCache


@dataclass(frozen=True, slots=True)
class TokenLayer:
    """A layer with what is worth finding out once for all tokens.

    Attributes:
        layer: the module.
        project: [B, 1, C] to queries, keys and values, [B, 1, all heads x D].
        gate_up: [B, 1, C] to gate and up, one behind the other; None = the MLP runs as a module.
        head_weight_ND: weights of the norms of queries and keys, if there are any.
    """

    layer: nn.Module
    project: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], Tensor] | None
    head_weight_ND: Tensor | None

    @classmethod
    def of(cls, layer: nn.Module) -> TokenLayer:
        """Of a plain layer, whose weights must stay where they are."""
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)

        def one_by_one(hidden_B1C: Tensor) -> Tensor:
            return torch.cat([project(hidden_B1C) for project in projections], dim=-1)

        head_weight_ND = None
        if hasattr(attention, "q_norm"):
            norms = [(attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj)]
            head_weight_ND = torch.cat(
                [norm.weight.expand(project.out_features // attention.head_dim, -1) for norm, project in norms]
            )
        gate_up = side_by_side((mlp.gate_proj, mlp.up_proj)) if hasattr(mlp, "gate_proj") else None
        return cls(layer, side_by_side(projections) or one_by_one, gate_up, head_weight_ND)

    def forward(
        self, hidden_B1C: Tensor, *, rotary_tables: tuple[Tensor, Tensor], shared_prefix: SharedPrefixCache
    ) -> Tensor:
        """[B, 1, C]: what the layer's own forward would return; `rotary_tables` as `tables_of` makes them."""
        attention = self.layer.self_attn
        heads_BND = self.project(normed(self.layer.input_layernorm, hidden_B1C))
        heads_BND = heads_BND.view(len(hidden_B1C), -1, attention.head_dim)
        mixed_B1C = self._attend(heads_BND, rotary_tables, shared_prefix)
        hidden_B1C = hidden_B1C + attention.o_proj(mixed_B1C)
        return hidden_B1C + self._mlp(normed(self.layer.post_attention_layernorm, hidden_B1C))

    def _attend(self, heads_BND: Tensor, tables: tuple[Tensor, Tensor], cache: SharedPrefixCache) -> Tensor:
        attention, (num_rows, num_heads, width) = self.layer.self_attn, heads_BND.shape
        num_keys = attention.k_proj.out_features // width
        num_queries = num_heads - 2 * num_keys
        both_BND = heads_BND[:, :-num_keys]
        if self.head_weight_ND is not None:
            epsilon = attention.q_norm.variance_epsilon
            both_BND = self.head_weight_ND * rms_norm(both_BND, (width,), eps=epsilon)
        both_BND = turned(both_BND, *tables)
        keys_BH1D, values_BH1D = both_BND[:, num_queries:, None], heads_BND[:, -num_keys:, None]
        queries_BHQD = both_BND[:, :num_queries].view(num_rows, num_keys, -1, width)
        mixed_BHQD = cache.add_and_attend(attention.layer_idx, queries_BHQD, keys_BH1D, values_BH1D, attention.scaling)
        return mixed_BHQD.reshape(num_rows, 1, -1)

    def _mlp(self, hidden_B1C: Tensor) -> Tensor:
        mlp = self.layer.mlp
        if self.gate_up is None:
            return mlp(hidden_B1C)
        gate, up = self.gate_up(hidden_B1C).chunk(2, dim=-1)
        return mlp.down_proj(mlp.act_fn(gate) * up)


def normed(norm: nn.Module, hidden: Tensor) -> Tensor:
    """What a norm of transformers returns: in lower precision rounded before the weight, too."""
    shape, epsilon = norm.weight.shape, norm.variance_epsilon
    if hidden.dtype == torch.float32:
        return rms_norm(hidden, shape, norm.weight, epsilon)
    return norm.weight * rms_norm(hidden, shape, eps=epsilon)


def tables_of(cosines_B1D: Tensor, sines_B1D: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines as `turned` takes them: sin x (-second half, first half) = (-sin, sin) x rolled."""
    if cosines_B1D.dim() > 3:
        # Older releases keep the axes of positions apart until here; those of a completion are all the same.
        cosines_B1D, sines_B1D = cosines_B1D[0], sines_B1D[0]
    half = sines_B1D.shape[-1] // 2
    return cosines_B1D, torch.cat([-sines_B1D[..., :half], sines_B1D[..., half:]], dim=-1)


def turned(heads_BND: Tensor, cosines_B1D: Tensor, signed_sines_B1D: Tensor) -> Tensor:
    """Heads under rotary embedding, rounded where transformers rounds."""
    rolled = heads_BND.roll(heads_BND.shape[-1] // 2, dims=-1).mul_(signed_sines_B1D)
    return (heads_BND * cosines_B1D).add_(rolled)


def side_by_side(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """All outputs of some linear layers, one behind the other, by one product; None where that takes a copy.

    Weights that have their memory for themselves are laid side by side, for good: whoever holds a parameter goes on
    holding it. What DeepSpeed has laid out stays as it is: in its flat buffers weights are neighbours or not.
    """
    # Adapters and quantised layers are modules of another type.
    if any(type(layer) is not nn.Linear or _has_hooks(layer) for layer in layers):
        return None
    tables = [[layer.weight for layer in layers]]
    if any(layer.bias is not None for layer in layers):
        if any(layer.bias is None for layer in layers):
            return None
        tables.append([layer.bias for layer in layers])
    joined = [_joined(table) for table in tables]
    return None if any(each is None for each in joined) else lambda inputs: linear(inputs, *joined)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _joined(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """One tensor over parameters that are neighbours in memory, or can be made so."""
    if any(type(each.data) is not Tensor for each in parameters):
        # Sharded or quantised: what a place in memory holds is another matter.
        return None
    if not _are_neighbours(parameters):
        if any(hasattr(each, "ds_id") or each.untyped_storage().nbytes() > each.nbytes for each in parameters):
            return None
        places = torch.cat([each.detach() for each in parameters]).split([len(each) for each in parameters])
        for parameter, place in zip(parameters, places, strict=True):
            parameter.data = place
    first = parameters[0].detach()
    return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())


def _are_neighbours(parameters: Sequence[nn.Parameter]) -> bool:
    first = parameters[0]
    place = first.data_ptr()
    for each in parameters:
        same = each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and each.dtype == first.dtype
        if not (same and each.is_contiguous() and each.data_ptr() == place):
            return False
        place += each.nbytes
    return True


class TokenModel:
    """A model whose text layers are plain, on one new token of each row.

    Args:
        model: transformers' without its head; its weights must stay where they are for as long as this lives.
        text: the part of it that holds the layers, or all of it.
    """

    def __init__(self, model: nn.Module, text: nn.Module) -> None:
        self._model, self._text = model, text
        self._layers = [TokenLayer.of(layer) for layer in text.layers]

    @classmethod
    def of(cls, policy: Policy) -> TokenModel | None:
        """None where the model must run its own forward."""
        return cls(policy.model.model, policy.model.get_decoder()) if policy.family.plain_layers else None

    def __call__(self, ids_B1: Tensor, positions: Tensor, cache: SharedPrefixCache) -> Tensor:
        """[B, 1, C] last hidden states; `positions` as the model takes them."""
        with in_place_of(self._model, self._forward):
            return self._model(input_ids=ids_B1, position_ids=positions, shared_prefix=cache)

    def _forward(self, *, input_ids: Tensor, position_ids: Tensor, shared_prefix: SharedPrefixCache) -> Tensor:
        text = self._text
        hidden_B1C = text.embed_tokens(input_ids)
        tables = tables_of(*text.rotary_emb(hidden_B1C, position_ids))
        for layer in self._layers:
            with in_place_of(layer.layer, layer.forward):
                hidden_B1C = layer.layer(hidden_B1C, rotary_tables=tables, shared_prefix=shared_prefix)
        return normed(text.norm, hidden_B1C)


@contextmanager
def in_place_of(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, `forward` runs as that of the module; hooks stay."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
