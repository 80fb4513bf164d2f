"""The DeepSpeed settings of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vlm_mhpo.config import DeepSpeedConfig
from vlm_mhpo.errors import ConfigError

# What a user's DeepSpeed JSON may not decide: these follow from our own configuration.
OWN_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "gradient_allreduce_op",
    "bf16",
    "fp16",
    "managed_gradient_accumulation",
)
# Elements, half of DeepSpeed's default: in float32 they take the memory that the default takes in bfloat16.
FLOAT32_BUCKET = 250_000_000


def deepspeed_settings(config: DeepSpeedConfig, *, dtype: str, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's own configuration: the user's JSON if there is one, with what must follow from ours."""
    settings = _read_user_settings(config.config) if config.config else {}
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
    if dtype == "bfloat16" and config.reduce_dtype == "float32":
        # By default the ranks' gradients would be added in bfloat16.
        settings.setdefault("communication_data_type", "fp32")
        zero.setdefault("reduce_bucket_size", FLOAT32_BUCKET)
    settings |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Our losses carry global denominators. Stage 3 knows the mean alone, see `Engine.backward`.
        "gradient_allreduce_op": "sum" if adds_ranks(zero["stage"]) else "mean",
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


def adds_ranks(stage: int) -> bool:
    """Whether DeepSpeed can add the ranks' gradients; else it takes their mean."""
    return stage < 3


def _read_user_settings(path: str) -> dict[str, Any]:
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
