"""A rank of a check with one planted fault, named by PLANTED_FAULT."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from vlm_mhpo.commands.proofs import rank
from vlm_mhpo.training import saving, update
from vlm_mhpo.types import Minibatch


def count_this_rank_alone(batch: Minibatch) -> dict[str, int]:
    """Denominators of a rank's own share: right on one rank, wrong on two."""
    return {"num_completions": len(batch.advantages), "num_tokens": sum(map(len, batch.old_log_probs))}


def forget_moments() -> None:
    """Checkpoints load without the optimizer's state."""
    from deepspeed import DeepSpeedEngine

    load = DeepSpeedEngine.load_checkpoint

    def without(self: Any, *args: Any, **options: Any) -> Any:
        return load(self, *args, **{**options, "load_optimizer_states": False})

    DeepSpeedEngine.load_checkpoint = without


def main() -> None:
    """Plant the fault, then be a rank."""
    fault = os.environ["PLANTED_FAULT"]
    if fault == "own denominator":
        update.global_counts = count_this_rank_alone
    elif fault == "forgotten moments":
        forget_moments()
    elif fault == "started over":
        saving.Checkpoints.resume = lambda self: 0
    else:
        raise SystemExit(f"no fault is called {fault}")
    rank.main(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
