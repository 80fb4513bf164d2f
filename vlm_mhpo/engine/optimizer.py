"""AdamW and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vlm_mhpo.config import OptimizerConfig
from vlm_mhpo.errors import ConfigError


def build_optimizer(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig, *, offload: bool
) -> torch.optim.Optimizer:
    """AdamW; DeepSpeed's CPU version (compiled at first use) when its state lives in host memory.

    Raises:
        ConfigError: 8-bit moments without bitsandbytes, or in host memory.
    """
    arguments = dict(
        # Every update sets its own; DeepSpeed may step once before the first.
        lr=0.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    if offload and torch.cuda.is_available() and config.optimizer == "adamw":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameters, adamw_mode=True, **arguments)
    if config.optimizer == "adamw_8bit":
        return _eight_bits(parameters, arguments, offload=offload)
    return torch.optim.AdamW(parameters, fused=True, **arguments)


def _eight_bits(
    parameters: Sequence[nn.Parameter], arguments: dict[str, Any], *, offload: bool
) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes, whose moments have 8 bits and a scale for each 256 of them."""
    if offload:
        raise ConfigError("train.optimizer=adamw_8bit stays on the device: set deepspeed.offload_optimizer=false")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "train.optimizer=adamw_8bit needs bitsandbytes: pip install 'vlm-mhpo[quantization]'"
        ) from error
    return AdamW8bit(parameters, **arguments)


def learning_rate_at(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """The learning rate of training step `step` (0-based): linear warm-up, then constant, or down to 0 or a share."""
    warmup_steps = config.warmup_steps or math.ceil(config.warmup_ratio * max_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    least = config.min_lr_ratio
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda p: 1.0 - p,
        "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
        "cosine_with_min_lr": lambda p: least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * p)),
    }
    return config.learning_rate * shapes[config.lr_scheduler_type](min(1.0, progress))
