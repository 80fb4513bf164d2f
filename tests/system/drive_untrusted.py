"""Program that continues runs whose folder was tampered with, or which another process writes, from a list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.system.drive_commands import run
from vlm_mhpo import checkpoint, cli
from vlm_mhpo.checkpoint.files import files_of, listing_of
from vlm_mhpo.runtime import ranks


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def plant(shard: Path, canary: Path) -> None:
    """Add a program to an otherwise whole shard, with a manifest that agrees."""
    state, folder = checkpoint.safe_load(str(shard)), shard.parents[1]
    torch.save(state | {"planted": Program(canary)}, shard)
    files = [file for file in files_of(folder) if file.name != "manifest.json"]
    (folder / "manifest.json").write_text(json.dumps({"files": listing_of(files, folder)}))


def continue_run(request: dict[str, Any]) -> dict[str, Any]:
    """One command line; `unchecked` leaves its shards to those who load them, `user` is another user's process."""
    with ExitStack() as stack:
        if request.get("unchecked"):
            stack.enter_context(mock.patch.object(checkpoint, "refuse_programs"))
        if request.get("user"):
            stack.enter_context(mock.patch.object(os, "geteuid", lambda: request["user"]))
        return run(request["arguments"])


def beside_another(request: dict[str, Any]) -> dict[str, Any]:
    """Train in a process of its own; outcomes of a second run during it, and after it was killed with its last step."""
    arguments, root = request["arguments"], Path(request["run_dir"]) / "checkpoints"
    holder = subprocess.Popen(
        [sys.executable, "-m", "vlm_mhpo.cli", *arguments, "train.max_steps=100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not checkpoint.steps_in(root):
            assert holder.poll() is None, "the first run ended before its first checkpoint"
            time.sleep(0.05)
        during = run([*arguments, "train.max_steps=1"])
        running = holder.poll() is None
    finally:
        # Its workers are not killed: none of them may keep the lock.
        holder.kill()
        holder.wait()
    step, _ = checkpoint.newest_valid(root)
    after = run([*arguments, f"train.max_steps={step + 1}"])
    return {"during": during, "running": running, "step": step, "after": after}


def on_ranks(arguments: Sequence[str], shard: Path, canary: Path) -> None:
    """Train on all ranks, plant a program in one rank's shard, and continue; ends with that command's code."""
    assert run([*arguments, "train.max_steps=1"])["code"] == 0
    if ranks.is_main():
        plant(shard, canary)
    ranks.barrier()
    with mock.patch.object(sys, "argv", ["vlm-mhpo", *arguments, "train.max_steps=2"]):
        cli.main()


def main(requests: Path, out: Path) -> None:
    """Run everything that the file asks for, one after the other."""
    done = [
        (beside_another if "run_dir" in request else continue_run)(request)
        for request in json.loads(requests.read_text())
    ]
    out.write_text(json.dumps(done))


if __name__ == "__main__":
    if sys.argv[1] == "ranks":
        on_ranks(sys.argv[4:], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
