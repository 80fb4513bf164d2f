"""Program of one rank of two: what runs do in folders that are the other rank's, too, and in such that are not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.system.batches import load_tiny
from vlm_mhpo import checkpoint
from vlm_mhpo.config import Config, load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import VlmMhpoError
from vlm_mhpo.faults.agreement import check_same_folder, check_same_weights
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.saving import Checkpoints

Attempt = Callable[[], Any]


def main(folder: Path, config: Path) -> None:
    """Try everything in turn; `NAME.rankN.json` holds what came back, or the error."""
    ranks.start(1)
    if ranks.is_main():
        build_tiny(folder / "model", "qwen2", hidden_size=64)
    ranks.barrier()
    settings = load_config(config, ["deepspeed.zero_stage=2"])
    model = load_tiny(folder / "model")
    engine = Engine(model.policy, optimizer=settings.train, deepspeed=settings.deepspeed, dtype="float32")
    for name, attempt in attempts(folder, settings, engine, model.codec).items():
        try:
            result = {"value": attempt()}
        except VlmMhpoError as error:
            result = {"error": type(error).__name__, "code": error.exit_code, "message": str(error)}
        (folder / f"{name}.rank{ranks.rank()}.json").write_text(json.dumps(result))
        ranks.barrier()


def attempts(folder: Path, settings: Config, engine: Engine, codec: Any) -> dict[str, Attempt]:
    """In this order: the checkpoint that is saved in the shared folder is copied to where others look for one."""
    shared, own = folder / "shared", folder / f"disk{ranks.rank()}"

    def run_in(run_dir: Path) -> Checkpoints:
        return Checkpoints(engine, codec, run_dir, settings.checkpoint, {"job": "test"}, max_steps=8)

    def save(run_dir: Path) -> str:
        return checkpoint.save(engine, run_dir / "checkpoints", 2, {"job": "test"}, keep=2, extra=lambda *_: None).name

    def copied_for(rank: int) -> Checkpoints:
        place = folder / f"fresh{rank}" / f"disk{ranks.rank()}"
        place.mkdir(parents=True)
        if ranks.rank() == rank:
            shutil.copytree(shared / "checkpoints", place / "checkpoints")
        ranks.barrier()
        return run_in(place)

    def bend_and_check() -> None:
        weight = next(engine.policy.parameters())
        if ranks.rank() == 1:
            # One bit of one weight.
            weight.data.view(-1)[:1].view(torch.int32).add_(1)
        check_same_weights("some/model", engine.policy)

    return {
        "same_folder": lambda: check_same_folder("output_dir", shared, "checkpoints"),
        "own_folder": lambda: check_same_folder("output_dir", folder / f"apart{ranks.rank()}", "checkpoints"),
        "save_apart": lambda: save(own),
        "save": lambda: save(shared),
        "same_folder_later": lambda: check_same_folder("output_dir", shared, "checkpoints"),
        "resume": lambda: run_in(shared).resume(),
        "only_the_other_rank_has_it": lambda: copied_for(1).resume(),
        "only_the_first_rank_has_it": lambda: copied_for(0).resume(),
        "nobody_has_it": lambda: run_in(folder / "nothing" / f"disk{ranks.rank()}").resume(),
        "same_weights": lambda: check_same_weights("some/model", engine.policy),
        "other_weights": bend_and_check,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
