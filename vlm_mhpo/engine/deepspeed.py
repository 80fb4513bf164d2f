"""DeepSpeed around a policy: ZeRO 0 to 3, one optimizer update at a time, and no update on a bad gradient."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlm_mhpo.config import DeepSpeedConfig, OptimizerConfig
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.runtime import ranks

# What a user's DeepSpeed JSON may not decide: these follow from our own configuration.
OWN_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "managed_gradient_accumulation",
)


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
        # DeepSpeed averages over ranks; our losses carry global denominators and must be summed.
        self.deepspeed.backward(loss * ranks.world_size(), scale_wrt_gas=False)

    def update(self, learning_rate: float) -> UpdateResult:
        """One AdamW step at `learning_rate` with the gradients since the last one, clipped by global norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
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
    def whole_weights(self) -> Iterator[None]:
        """Inside, every rank sees unpartitioned weights (ZeRO-3); free otherwise."""
        if self.zero_stage < 3:
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


def build_optimizer(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig, *, offload: bool
) -> torch.optim.Optimizer:
    """AdamW; DeepSpeed's CPU version (compiled at first use) when its state lives in host memory."""
    arguments = dict(
        # Every update sets its own; DeepSpeed may step once before the first.
        lr=0.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    if offload and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameters, adamw_mode=True, **arguments)
    return torch.optim.AdamW(parameters, fused=True, **arguments)


def deepspeed_settings(config: DeepSpeedConfig, *, dtype: str, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's own configuration: the user's JSON if there is one, with what must follow from ours."""
    settings = read_user_settings(config.config) if config.config else {}
    zero = settings.setdefault("zero_optimization", {})
    zero.setdefault("stage", config.zero_stage)
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload_param:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if zero["stage"] in (1, 3):
        # With caller-owned accumulation DeepSpeed overlaps communication only in stage 2.
        zero["overlap_comm"] = False
    if dtype == "bfloat16" and adds_in_float32(zero["stage"]):
        # By default every micro-batch would round the sum of the gradients to bfloat16.
        settings["data_types"] = {"grad_accum_dtype": "fp32"} | settings.get("data_types", {})
    settings |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # We decide when a batch is complete: the number of micro-batches follows from the token budget.
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm if zero["stage"] else 0.0,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    return settings


def adds_in_float32(stage: int) -> bool:
    """Whether DeepSpeed can add the gradients of bfloat16 micro-batches in float32 without another optimizer."""
    return stage >= 2


def read_user_settings(path: str) -> dict[str, Any]:
    """A user's DeepSpeed JSON; ConfigError when it is unreadable or decides what is ours to decide."""
    try:
        settings = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed.config={path}: not a readable JSON file ({error})") from error
    clashes = [key for key in OWN_KEYS if settings.get(key, "auto") != "auto" and key not in ("bf16",)]
    if clashes:
        raise ConfigError(
            f"deepspeed.config={path} sets {', '.join(clashes)}: remove them, they follow from this configuration"
        )
    return {key: value for key, value in settings.items() if key not in OWN_KEYS}


def learning_rate_at(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """The learning rate of training step `step` (0-based): linear warm-up, then constant, linear or cosine to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda p: 1.0 - p,
        "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
    }
    return config.learning_rate * shapes[config.lr_scheduler_type](min(1.0, progress))
