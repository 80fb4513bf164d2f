"""In the third forward of a training engine: NaN log-probs, a NaN in the gradient of them all, or of one weight."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from vlm_mhpo.engine.deepspeed import Engine


def arm(where: str) -> None:
    """Spoil every engine that this process makes from now on, at "loss", "gradient" or "weight"."""
    original = Engine.__init__

    def with_fault(self: Engine, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        spoil(self, where)

    mock.patch.object(Engine, "__init__", with_fault).start()


def spoil(engine: Engine, where: str) -> None:
    """With two minibatches a step the third forward with gradients is the first of the second step."""
    count = 0

    def hook(module: Any, args: Any, output: Any) -> Any:
        nonlocal count
        count += torch.is_grad_enabled()
        if count != 3 or not torch.is_grad_enabled():
            return output
        log_probs_N, entropy_N = output
        if where == "loss":
            return log_probs_N * torch.nan, entropy_N
        spoil_gradient(log_probs_N if where == "gradient" else engine.policy.model.model.language_model.norm.weight)
        return output

    engine.policy.register_forward_hook(hook)


def spoil_gradient(tensor: torch.Tensor) -> None:
    """The next gradient of this tensor is NaN."""

    def once(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient * torch.nan

    handle = tensor.register_hook(once)
