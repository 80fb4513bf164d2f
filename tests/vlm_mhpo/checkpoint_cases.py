"""A small engine whose checkpoints the tests save: real files of a few bytes, written as DeepSpeed writes its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from vlm_mhpo import checkpoint

DATA_FILES = ("state.json", "engine/mp_rank_00_model_states.pt", "engine/zero_pp_rank_0.pt", "policy/config.json")


class FakeCheckpointEngine:
    """DeepSpeed's writer; `checkpoint.save` must put its own in the place of both methods."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("a folder was made around the file layer")

    def save(self, state_dict: Any, path: str) -> None:
        raise AssertionError("a shard was written around the file layer")


class FakeDeepSpeed:
    """Writes shards through its checkpoint engine; the content says which step it is of."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.checkpoint_engine = FakeCheckpointEngine()

    def _copy_recovery_script(self, folder: str) -> None:
        (Path(folder) / "zero_to_fp32.py").write_text("print('a program')")

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool, exclude_frozen_parameters: bool) -> None:
        assert not save_latest and not exclude_frozen_parameters
        shards = Path(folder) / tag
        self.checkpoint_engine.makedirs(folder, exist_ok=True)
        self.checkpoint_engine.makedirs(str(shards), exist_ok=True)
        weights = {"module": torch.full((4,), float(self.step))}
        self.checkpoint_engine.save(weights, str(shards / "mp_rank_00_model_states.pt"))
        self.checkpoint_engine.save({"optimizer": torch.arange(4.0) * self.step}, str(shards / "zero_pp_rank_0.pt"))
        self._copy_recovery_script(folder)


def write_policy(folder: Path, disk: checkpoint.Disk) -> None:
    """A model folder, as a library writes it."""

    def fill(target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")

    disk.write_folder(folder / "policy", fill)


def save(root: Path, step: int, *, keep: int = 2, extra=write_policy, best=None, disk=checkpoint.DISK, **state) -> Path:
    """Save a fake engine at a step."""
    engine = SimpleNamespace(deepspeed=FakeDeepSpeed(step), policy=SimpleNamespace(has_adapters=False))
    return checkpoint.save(engine, root, step, {"seed": 3, **state}, keep=keep, extra=extra, best=best, disk=disk)


def saved_step(folder: Path) -> float:
    """The step that the shards of a fake engine tell."""
    return float(checkpoint.safe_load(str(folder / "engine" / "mp_rank_00_model_states.pt"))["module"][0])
