"""The one way to open a policy: a model folder, hub name, run, checkpoint or tiny model, for what it is needed for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm_mhpo.checkpoint.policy_folder import find_policy
from vlm_mhpo.config import DeepSpeedConfig, ModelConfig
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.models.loading import Codec, load_policy
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.models.tiny import resolve_model
from vlm_mhpo.runtime import ranks

Purpose = Literal["train", "reference", "judge", "repeat"]


@dataclass(frozen=True, slots=True)
class OpenPolicy:
    """A loaded policy.

    Attributes:
        path: the folder or hub name that was loaded.
        policy: the module.
        codec: its processor, tokenizer and token ids.
    """

    path: str
    policy: Policy
    codec: Codec


def open_policy(
    model: ModelConfig, folder: Path, purpose: Purpose, *, deepspeed: DeepSpeedConfig | None = None
) -> OpenPolicy:
    """Load the policy that `model.path` means.

    Args:
        model: which, and how it is held in memory.
        folder: where `tiny:FAMILY` is built.
        purpose: "train" leaves the weights on the CPU for the engine; "reference" freezes them for the engine; "judge"
            (sampling, log-probs) and "repeat" (a plain backward) hold a whole copy on this rank's device, and find the
            newest policy of a run or checkpoint.
        deepspeed: of the run; under ZeRO-3 each rank then holds only its share from the start ("train", "reference").

    Raises:
        ModelError: nothing loadable there; CheckpointError: a run without a whole checkpoint.
    """
    whole = purpose in ("judge", "repeat")
    path = resolve_model(model.path, folder)
    path = find_policy(path) if whole else path
    settings = deepspeed_settings(deepspeed, dtype=model.dtype, max_grad_norm=1.0) if deepspeed and not whole else None
    recomputes = model.gradient_checkpointing and purpose in ("train", "repeat")
    values = model.model_dump() | {"path": path, "gradient_checkpointing": recomputes}
    if purpose == "judge":
        # Nothing learns, and adapters that have not learnt add nothing.
        values["lora"] = None
    policy, codec = load_policy(**values, zero3_settings=settings, merges_adapter=not whole and not model.lora)
    if whole:
        policy.to(ranks.device())
    if purpose == "reference":
        policy.requires_grad_(False)
    policy.train(purpose == "repeat")
    return OpenPolicy(path, policy, codec)
