"""Program of one rank of a check: a run of the trainer that may stop on the way, or single updates on fixed groups."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_mhpo.commands.proofs.updates import run_update
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import VlmMhpoError
from vlm_mhpo.runtime import ranks

STOPPED = 75


def main(request: Path) -> None:
    """Do what the JSON file asks for.

    {"config": file, "stop_after": step, "mark": file} trains; with `stop_after` the ranks end like a kill after the
    metrics row of that step and before its checkpoint, and leave `mark`. {"updates": [...]}: see `proofs.updates`.
    """
    asked = json.loads(request.read_text())
    try:
        if "updates" in asked:
            ranks.start(1)
            for job in asked["updates"]:
                run_update(job)
        else:
            train(asked)
    except VlmMhpoError as error:
        print(f"error: {error}", flush=True)
        ranks.end(error.exit_code)


def train(asked: dict[str, Any]) -> None:
    """Train, to the end or to the step that is asked for."""
    from vlm_mhpo.training.run import open_training

    with open_training(load_config(asked["config"])) as (loop, start):
        if last := asked.get("stop_after"):
            saving = Dying(loop.watch.saving, last, Path(asked["mark"]))
            loop = replace(loop, watch=replace(loop.watch, saving=saving))
        loop.run(start)


@dataclass(frozen=True, slots=True)
class Dying:
    """The checkpoints of a run, but after step `last`: the end, with nothing closed and nothing flushed."""

    saving: Any
    last: int
    mark: Path

    def is_due(self, step: int) -> bool:
        """See `Checkpoints.is_due`."""
        return self.saving.is_due(step)

    def if_due(self, step: int, *args: Any, **options: Any) -> None:
        """See `Checkpoints.if_due`."""
        if step < self.last:
            self.saving.if_due(step, *args, **options)
            return
        # No rank is ended by the launcher before its own row is written.
        ranks.barrier()
        if ranks.is_main():
            self.mark.write_text(str(step))
        ranks.barrier()
        os._exit(STOPPED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
