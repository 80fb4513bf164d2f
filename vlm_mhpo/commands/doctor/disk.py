"""Room for checkpoints where the run writes them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from vlm_mhpo.commands.doctor.check import Check, in_gib
from vlm_mhpo.commands.doctor.memory import ADAM_MOMENTS, BYTES, FLOAT32
from vlm_mhpo.commands.doctor.shapes import Shapes
from vlm_mhpo.config import Config


def _checkpoint_bytes(config: Config, shapes: Shapes, stage: int) -> int:
    """One checkpoint, all ranks: DeepSpeed's weights (or adapters) and optimizer state, and the policy in a folder."""
    width, num_held = BYTES[config.model.dtype], shapes.num_trained if config.model.lora else shapes.num_parameters
    master = FLOAT32 if stage > 0 or config.model.dtype == "bfloat16" else 0
    # ZeRO-3 keeps its weights as the master copy alone.
    shards = width * (num_held if stage < 3 else num_held - shapes.num_trained)
    return shards + (master + ADAM_MOMENTS) * shapes.num_trained + width * num_held


def examine_disk(config: Config, shapes: Shapes, *, stage: int) -> Iterator[Check]:
    """Free space against `save_total_limit` checkpoints and the one that is being written."""
    place = Path(config.output_dir).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    one, kept = _checkpoint_bytes(config, shapes, stage), config.checkpoint.save_total_limit
    needed = one * (kept + 1)
    text = f"a checkpoint has {in_gib(one)}; {kept} kept and one being written need {in_gib(needed)}, {place} has "
    text += in_gib(free)
    if needed > free:
        text += ": lower checkpoint.save_total_limit, or set output_dir to a larger disk"
    yield Check("error" if needed > free else "ok", "disk", text)
