"""Program of one rank of a check: a run of the trainer that may stop on the way, or single updates on fixed groups."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from vlm_mhpo.commands.proofs.updates import run_update
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import VlmMhpoError
from vlm_mhpo.runtime import ranks

STOPPED = 75


def main(request: Path) -> None:
    """Do what the JSON file asks for.

    {"config": file, "stop_after": step, "mark": file} trains; with `stop_after` the ranks end like a kill after the
    metrics row of that step and before its checkpoint, and leave `mark`. {"updates": [...]}: see `checks.updates`.
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
    from vlm_mhpo.training import loop

    config = load_config(asked["config"])
    if not asked.get("stop_after"):
        loop.train(config)
        return
    with mock.patch.object(loop, "save_if_due", stopping(loop.save_if_due, asked)):
        loop.train(config)


def stopping(save_if_due: Callable[..., None], asked: dict[str, Any]) -> Callable[..., None]:
    """The saving of checkpoints, but after a step: the end, with nothing closed and nothing flushed."""

    def save_or_stop(setup: Any, step: int, *args: Any, **options: Any) -> None:
        if step < asked["stop_after"]:
            save_if_due(setup, step, *args, **options)
            return
        # No rank is ended by the launcher before its own row is written.
        ranks.barrier()
        if ranks.is_main():
            Path(asked["mark"]).write_text(str(step))
        ranks.barrier()
        os._exit(STOPPED)

    return save_or_stop


if __name__ == "__main__":
    main(Path(sys.argv[1]))
