"""A second device that exists in name only: what would fail on a GPU because tensors lie apart fails here, too.

Its tensors hold ordinary CPU tensors and say that they are elsewhere (torch's "meta", whose own kernels never run), so
values are real and autograd works. An operation on tensors of both places is refused as CUDA refuses it; what CUDA
allows is allowed: numbers without dimensions beside any tensor, and indices on the CPU. Not covered: DeepSpeed, NCCL,
kernels and their precision, streams, pinned memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

aten = torch.ops.aten
DEVICE = torch.device("meta")
# Moves, and what takes values from one device into memory of another.
CROSSING = (aten._to_copy.default, aten.copy_.default)
# The tensor that is indexed decides; indices may lie on the CPU.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device around the CPU tensor that holds its values."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )

    def __init__(self, values: torch.Tensor) -> None:
        self.values_here = values

    def __repr__(self) -> str:
        return f"Elsewhere({self.values_here})"

    def tolist(self) -> Any:
        """What torch refuses for subclasses."""
        return self.values_here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Inside, tensors can be made on and moved to a second device, whose name is yielded."""
    with Operations(), Makers():
        yield DEVICE


class Operations(TorchDispatchMode):
    """Sees every operation, also those that have no tensor to start from."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Makers(TorchFunctionMode):
    """Tensors from Python numbers, which torch makes without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return func(*args, **kwargs | {"device": None}).to(DEVICE)
        if func is torch.Tensor.new_tensor:
            return torch.tensor(args[1], **{"dtype": args[0].dtype} | kwargs).to(kwargs.get("device") or args[0].device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[1], list):
            index = torch.tensor(args[1], dtype=None if args[1] else torch.int64)
            return func(args[0], index.to(args[0].device), *args[2:])
        return func(*args, **kwargs)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values; its result lies where CUDA's would.

    Raises:
        RuntimeError: the tensors lie on two devices.
    """
    if func is aten._fused_sdp_choice.default:
        # The kernels that it may choose are CUDA's; 0 is the plain formula.
        return 0
    target = kwargs.get("device")
    elsewhere = result_is_elsewhere(func, args, kwargs)
    here = tree_map_only(Elsewhere, lambda tensor: tensor.values_here, (args, kwargs))
    if target is not None:
        here[1]["device"] = torch.device("cpu")
        here[1].pop("non_blocking", None)
        here[1].pop("pin_memory", None)
    result = func(*here[0], **here[1])
    if not elsewhere:
        return result
    result = tree_map(lambda each: Elsewhere(each) if isinstance(each, torch.Tensor) else each, result)
    return return_and_correct_aliasing(func, args, kwargs, result)


def result_is_elsewhere(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the result lies on the pretended device."""
    target = kwargs.get("device")
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    if target is not None:
        return torch.device(target) == DEVICE
    if func in CROSSING:
        return isinstance(tensors[0], Elsewhere)
    if func in INDEXING:
        indices = [each for each in args[1] if each is not None]
        tensors = [each for each in tensors if not any(each is index for index in indices)]
        if not isinstance(args[0], Elsewhere):
            tensors += indices
    places = {isinstance(each, Elsewhere) for each in tensors if each.dim()}
    if len(places) > 1:
        raise RuntimeError(f"expected all tensors to be on the same device: {func}")
    return any(isinstance(each, Elsewhere) for each in tensors)
