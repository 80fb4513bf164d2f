"""The frozen initial policy that a KL term (beta > 0) compares with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vlm_mhpo.config import Config
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import resolve_model
from vlm_mhpo.runtime import ranks


@dataclass(frozen=True, slots=True)
class Reference:
    """A policy that never changes; `forward` as `Policy.forward`."""

    forward: Callable[..., tuple[Tensor, Tensor]]

    @staticmethod
    def load(config: Config) -> Reference:
        """The policy that the run started from; partitioned as the trained one is under ZeRO-3."""
        settings = deepspeed_settings(config.deepspeed, dtype=config.model.dtype, max_grad_norm=1.0)
        path = resolve_model(config.model.path, Path(config.output_dir))
        values = config.model.model_dump() | {"path": path, "gradient_checkpointing": False}
        policy, _ = load_policy(**values, zero3_settings=settings)
        policy.requires_grad_(False).eval()
        if settings["zero_optimization"]["stage"] < 3:
            return Reference(policy.to(ranks.device()))
        import deepspeed

        engine, *_ = deepspeed.initialize(model=policy, config={**settings, "gradient_clipping": 0.0})
        return Reference(engine)
