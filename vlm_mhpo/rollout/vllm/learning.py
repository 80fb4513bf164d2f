"""What a server must be given: the layers of which something learns, each under the names of the model folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_mhpo.models.adapters import adapter_layers, is_adapter, merged_weight
from vlm_mhpo.models.policy import Policy

WholeWeights = Callable[[Sequence[nn.Parameter]], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the served model.

    Attributes:
        name: inside the transformers model, without adapters.
        weights: it is made of these, the matrix first.
        layer: peft's, for a matrix with an adapter.
    """

    name: str
    weights: tuple[nn.Parameter, ...]
    layer: nn.Module | None = None

    @property
    def learns(self) -> bool:
        """Whether any of it does."""
        return any(weight.requires_grad for weight in self.weights)

    def value(self) -> Tensor:
        """The tensor on the CPU, in the policy's dtype; the weights must be whole (ZeRO-3)."""
        weight = self.weights[0]
        made = weight if self.layer is None else merged_weight(self.layer).to(weight.dtype)
        return made.detach().to("cpu").contiguous()


def learning_layers(policy: Policy) -> list[list[Part]]:
    """The parts that a server gets, layer by layer.

    A layer goes as a whole if anything in it learns: a server fuses matrices of a layer, and of fused ones it can load
    all or none. Layers that are frozen stay what the server has read from the model folder.
    """
    adapted = set(adapter_layers(policy.model))
    of_module = {name: module for name, module in policy.model.named_modules() if module in adapted}
    layers: dict[str, list[Part]] = {}
    for name, weight in policy.model.named_parameters():
        if is_adapter(name):
            continue
        module, inside, leaf = name.partition(".base_layer.")
        layer = of_module.get(module) if inside and leaf == "weight" else None
        others = tuple(one for key, one in layer.named_parameters() if is_adapter(f".{key}")) if layer else ()
        plain = f"{module}.{leaf}" if inside else name
        layers.setdefault(_layer_of(plain), []).append(Part(plain, (weight, *others), layer))
    return [parts for parts in layers.values() if any(part.learns for part in parts)]


def _layer_of(name: str) -> str:
    """The name up to the first number, or of the module for what is in no numbered layer."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[:-1] if number is None else parts[: number + 1])


@torch.no_grad()
def whole_layers(
    policy: Policy, layers: Sequence[Sequence[Part]], whole_weights: WholeWeights
) -> Iterator[dict[str, Tensor]]:
    """The tensors of each layer by their names in the model folder; on all ranks, one layer whole at a time."""
    from transformers.core_model_loading import revert_weight_conversion

    for parts in layers:
        with whole_weights([weight for part in parts for weight in part.weights]):
            tensors = {part.name: part.value() for part in parts}
        # The server has read the folder, so it knows these names, whatever transformers calls them since.
        yield dict(revert_weight_conversion(policy.model, tensors))
