"""The frozen initial policy that a KL term (beta > 0) compares with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_mhpo.config import DeepSpeedConfig
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.models.adapters import as_it_began
from vlm_mhpo.runtime import ranks


@dataclass(frozen=True, slots=True)
class Reference:
    """A policy that never changes; `forward` as `Policy.forward`."""

    forward: Callable[..., tuple[Tensor, Tensor | None]]

    @staticmethod
    def below(engine: Engine) -> Reference:
        """The policy without what its adapters have learnt: no second copy of the weights is held."""

        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            with as_it_began(engine.policy.model):
                return engine(*args, **kwargs)

        return Reference(forward)

    @staticmethod
    def hold(policy: nn.Module, deepspeed: DeepSpeedConfig, *, dtype: str) -> Reference:
        """Hold a frozen policy; partitioned as the trained one is under ZeRO-3, else whole on every rank."""
        settings = deepspeed_settings(deepspeed, dtype=dtype, max_grad_norm=1.0)
        if settings["zero_optimization"]["stage"] < 3:
            return Reference(policy.to(ranks.device()))
        import deepspeed as ds

        engine, *_ = ds.initialize(model=policy, config={**settings, "gradient_clipping": 0.0})
        return Reference(engine)
