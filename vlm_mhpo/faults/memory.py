"""A device that runs out of memory: the phase, the key that lowers the need, and a value for it, in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vlm_mhpo.errors import OutOfMemoryError

# How allocators beside torch's own for the GPU say it.
PHRASES = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that no memory was left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)
    )


@contextmanager
def enough_memory(phase: str, advice: Callable[[], str]) -> Iterator[None]:
    """Inside, running out of memory is an `OutOfMemoryError` that names the phase.

    Args:
        phase: what ran.
        advice: KEY=VALUE to set, with what it stands at now.

    Raises:
        OutOfMemoryError: no memory was left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise OutOfMemoryError(
            f"{phase} ran out of memory: set {advice()}, and start the same command again to go on from the last "
            f"checkpoint ({reason[:200]})"
        ) from problem


def smaller_forward(section: str, max_tokens: int, num_tokens: int, num_completions: int, recomputes: bool) -> str:
    """What to set when a micro-batch does not fit.

    Args:
        section: "train" or "sft".
        max_tokens: its max_tokens_per_micro_batch.
        num_tokens, num_completions: padded tokens and completions of the micro-batch.
        recomputes: whether gradient checkpointing is on.
    """
    if num_completions > 1:
        half = max(1, min(max_tokens, num_tokens) // 2)
        return f"{section}.max_tokens_per_micro_batch={half} (now {max_tokens})"
    if not recomputes:
        return "model.gradient_checkpointing=true (now false; one completion alone did not fit)"
    return "deepspeed.zero_stage=3 with deepspeed.offload_optimizer=true (one completion alone did not fit)"
