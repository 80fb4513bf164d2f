"""Which checkpoint was the best by a metric; every checkpoint's own state holds its score, so a kill loses none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vlm_mhpo.checkpoint.files import Disk, write_json
from vlm_mhpo.checkpoint.names import STATE, folder_of, steps_in
from vlm_mhpo.errors import CheckpointError

BEST = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """What makes a checkpoint the best.

    Attributes:
        metric: its name in metrics.jsonl.
        highest: whether more is better.
    """

    metric: str
    highest: bool = True


def best_step(root: Path, best: Best) -> tuple[int, float] | None:
    """Step and value of the best checkpoint, the earliest of equal ones; None when none has the metric."""
    scores = []
    for step in steps_in(root):
        try:
            value = json.loads((folder_of(root, step) / STATE).read_text())["scores"][best.metric]
        except (OSError, ValueError, KeyError, TypeError):
            # Damaged, or saved when the metric was not measured: no candidate.
            continue
        if isinstance(value, int | float) and value == value:
            scores.append((value if best.highest else -value, -step))
    if not scores:
        return None
    score, step = max(scores)
    return -step, score if best.highest else -score


def write_best(disk: Disk, root: Path, best: Best) -> int | None:
    """Name the best checkpoint in `best.json`; returns its step."""
    found = best_step(root, best)
    if found is None:
        return None
    step, value = found
    staged = root / f".staging_{BEST}"
    content = {"metric": best.metric, "value": value, "step": step, "folder": folder_of(root, step).name}
    write_json(disk, staged, content)
    disk.rename(staged, root / BEST)
    disk.fsync(root)
    return step


def read_best(root: Path) -> int:
    """The step that `best.json` names.

    Raises:
        CheckpointError: no such file, or an unreadable one.
    """
    try:
        return int(json.loads((root / BEST).read_text())["step"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{root} names no best checkpoint: the run needs checkpoint.keep_best, for example eval/accuracy"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{root / BEST}: unreadable ({error})") from error
