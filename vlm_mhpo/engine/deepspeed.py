"""DeepSpeed around a policy: ZeRO 0 to 3, one optimizer update at a time, and no update on a bad gradient."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm_mhpo.config import DeepSpeedConfig, OptimizerConfig
from vlm_mhpo.engine.optimizer import build_optimizer
from vlm_mhpo.engine.settings import adds_ranks, deepspeed_settings
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.runtime import ranks


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one optimizer update did.

    Attributes:
        applied: False when a gradient was not finite and the weights were left as they were.
        grad_norm: global L2 norm before clipping; NaN when not applied.
    """

    applied: bool
    grad_norm: float


class Engine:
    """A policy under DeepSpeed. Gradients of several `backward` calls add up until `update`."""

    def __init__(
        self, policy: nn.Module, *, optimizer: OptimizerConfig, deepspeed: DeepSpeedConfig, dtype: str
    ) -> None:
        import deepspeed as ds

        self.zero_stage = deepspeed.zero_stage
        self.settings = deepspeed_settings(deepspeed, dtype=dtype, max_grad_norm=optimizer.max_grad_norm)
        self.zero_stage = self.settings["zero_optimization"]["stage"]
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        if not trained:
            raise ConfigError("every weight is frozen, so there is nothing to train: set a model.freeze_* key to false")
        self.optimizer = build_optimizer(trained, optimizer, offload=deepspeed.offload_optimizer)
        self._max_grad_norm = optimizer.max_grad_norm
        # A checkpoint brings those of the run that wrote it, which a continuation may have changed.
        self._constants = {name: self.optimizer.defaults[name] for name in ("betas", "eps", "weight_decay")}
        self._bad_gradient = False
        self._grad_norm = math.nan
        self.optimizer.register_step_pre_hook(self._before_step)
        # transformers loads in evaluation mode, in which gradient checkpointing is off.
        policy.train()
        self.deepspeed, *_ = ds.initialize(model=policy, optimizer=self.optimizer, config=self.settings)
        if self.zero_stage == 0:
            # In bfloat16 DeepSpeed has made a step on zero gradients, which would count in Adam's bias correction: the
            # first real update would be a quarter too small.
            self.optimizer.state.clear()

    @property
    def policy(self) -> nn.Module:
        """The wrapped module."""
        return self.deepspeed.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the policy through DeepSpeed's hooks."""
        return self.deepspeed(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`; losses of micro-batches and ranks add up exactly (no averaging)."""
        # A factor is no detail in bfloat16: one of 3 rounds other bits in every operation of the backward.
        factor = 1 if adds_ranks(self.zero_stage) else ranks.world_size()
        self.deepspeed.backward(loss * factor, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> UpdateResult:
        """One AdamW step at `learning_rate` with the gradients since the last one, clipped by global norm."""
        for group in self.optimizer.param_groups:
            group.update(self._constants, lr=learning_rate)
        if self.zero_stage:
            self.deepspeed.optimizer.clip_grad = self._max_grad_norm
        self._bad_gradient = False
        self.deepspeed.step()
        norm = self._grad_norm if self.zero_stage == 0 else float(self.deepspeed.get_global_grad_norm())
        # Stages 1 to 3 look at the gradient themselves and then never reach the optimizer, nor the hook on it.
        applied = not self._bad_gradient and self.deepspeed.was_step_applied()
        return UpdateResult(applied, norm if applied else math.nan)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Before AdamW moves anything: if any rank has a NaN or inf gradient, take all gradients away.

        AdamW skips weights without a gradient, so weights and moments stay bit for bit what they were.
        """
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = torch.zeros((), device=ranks.device())
        for parameter in held:
            # A sum is finite only if all its terms are, short of an overflow that no clipped gradient reaches.
            bad = torch.maximum(bad, (~torch.isfinite(parameter.grad.sum())).float().to(bad.device))
        if bool(ranks.reduce(bad, dist.ReduceOp.MAX)):
            self._bad_gradient = True
            for parameter in held:
                parameter.grad = None
        elif self.zero_stage == 0:
            # Stage 0 holds whole, already summed gradients and keeps no norm of its own.
            self._grad_norm = float(nn.utils.clip_grad_norm_(held, self._max_grad_norm))

    @contextlib.contextmanager
    def whole_weights(self, only: Sequence[nn.Parameter] = ()) -> Iterator[None]:
        """Inside, every rank sees unpartitioned weights (ZeRO-3), all or `only` these; free otherwise.

        No module may run while only some are whole.
        """
        if self.zero_stage < 3:
            yield
            return
        if only:
            from deepspeed.runtime.zero import GatheredParameters

            with GatheredParameters(list(only)):
                yield
            return
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        # Not GatheredParameters alone: DeepSpeed's hooks would release and gather again around every module that runs
        # inside, and ranks whose completions end at different times run different numbers of them.
        problem: BaseException | None = None
        with unwrap_model_for_generation(self.deepspeed):
            try:
                yield
            # Whatever it is goes on, but not through DeepSpeed's context, which would not put its hooks back.
            except BaseException as error:
                problem = error
        if problem is not None:
            raise problem
