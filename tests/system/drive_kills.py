"""Program that starts training ranks by fork, kills them where or when a list says, and starts them again.

One process imports everything once; each rank is a fork of it, so a kill costs a second and not ten.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from tests.system.drive_resume import copy_run
from tests.system.ranks import free_port
from tests.system.resume_cases import BASE, SMALL
from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint import Disk, newest_valid, steps_in
from vlm_mhpo.config import load_config
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import resolve_model
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training import run, saving


class StrikingDisk(Disk):
    """The real disk, with an act at a named point of the save of one step."""

    def __init__(self, point: str, step: int, strike: Callable[[], None]) -> None:
        self._point, self._folder, self._strike = point, f"step_{step:06d}", strike

    def _at(self, point: str, path: Path) -> bool:
        return point == self._point and self._folder in str(path)

    def write(self, file: Path, fill: Callable[[BinaryIO], None]) -> None:
        shard, manifest = file.suffix == ".pt", file.name == "manifest.json"
        if (shard and self._at("before own shard", file)) or (manifest and self._at("before manifest", file)):
            self._strike()
        super().write(file, fill)
        if shard and self._at("inside own shard", file):
            os.truncate(file, file.stat().st_size // 2)
            self._strike()
        if shard and self._at("after own shard", file):
            self._strike()

    def rename(self, old: Path, new: Path) -> None:
        commits, removes = old.name.startswith(".staging_step"), new.name.startswith(".removed_step")
        if (commits and self._at("before rename", old)) or (removes and self._point == "before prune"):
            self._strike()
        super().rename(old, new)
        if commits and self._at("after rename", new):
            self._strike()

    def remove(self, file: Path) -> None:
        super().remove(file)
        if self._point == "inside prune" and ".removed_step" in str(file):
            self._strike()


def start_ranks(run_dir: Path, overrides: Sequence[str], num_ranks: int, kill: dict[str, Any] | None) -> list[int]:
    """Fork the ranks of a training run; returns their process ids, which are also their group ids."""
    port, processes = str(free_port()), []
    # Ranks learn each other's ids through a file, because the first is started before the second has one.
    ids = run_dir.with_name(f"{run_dir.name}.ids")
    ids.unlink(missing_ok=True)
    for rank in range(num_ranks):
        process = os.fork()
        if process == 0:
            os.setsid()
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
            os.environ |= {name: str(value) for name, value in world.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os._exit(run_rank(run_dir, overrides, rank, ids, kill))
        processes.append(process)
    ids.with_suffix(".new").write_text(json.dumps(processes))
    ids.with_suffix(".new").rename(ids)
    return processes


def run_rank(run_dir: Path, overrides: Sequence[str], rank: int, ids: Path, kill: dict[str, Any] | None) -> int:
    """One rank from here on; returns its exit code."""
    output = os.open(run_dir.with_name(f"{run_dir.name}.rank{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    # tqdm's own lock is a semaphore that all forks share: a rank that is killed while it draws would keep it for ever,
    # and every later run would wait. Ranks that were started as programs share nothing.
    tqdm.set_lock(threading.RLock())
    if kill and rank == kill["by"]:
        victim = kill["rank"]
        disk = StrikingDisk(kill["point"], kill["step"], lambda: os.kill(json.loads(ids.read_text())[victim], 9))
        saving.checkpoint.begin = functools.partial(checkpoint.begin, disk=disk)
    # Nothing is verified in these runs, and the workers would cost more than the training.
    run.start_verifier = lambda config: nullcontext()
    code = 1
    try:
        run.train(load_config(BASE, [*SMALL, *MODEL, *overrides, f"output_dir={run_dir}"]))
        ranks.leave()
        code = 0
    except BaseException:  # whatever it is, it must not reach the code of the process that was forked
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def wait(processes: Sequence[int], kill_after_s: float | None = None, grace_s: float = 1.0) -> list[int]:
    """Exit codes of all ranks (negative = signal). One that fails ends the others after a grace time."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + (100.0 if kill_after_s is None else kill_after_s)
    while len(codes) < len(processes):
        for process in processes:
            if process not in codes:
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    codes[process] = os.waitstatus_to_exitcode(status)
                    if codes[process]:
                        deadline = min(deadline, time.monotonic() + grace_s)
        if time.monotonic() > deadline:
            stuck = set(processes) - set(codes)
            if kill_after_s is None and len(stuck) == len(processes):
                # Nobody wanted that: each writes down where it stands, which is all that can be learnt afterwards.
                for process in stuck:
                    os.kill(process, signal.SIGUSR2)
                time.sleep(1.0)
            for process in stuck:
                os.killpg(process, signal.SIGKILL)
                codes[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.005)
    for process in processes:
        # Workers of a killed rank, in its session.
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    return [codes[process] for process in processes]


def at_named_point(request: dict[str, Any]) -> dict[str, Any]:
    """Copy a run, let it be killed while it saves, continue it."""
    run_dir = Path(request["output_dir"])
    copy_run(Path(request["source"]), request["from"], run_dir)
    killed = wait(start_ranks(run_dir, request["overrides"], 2, request["kill"]))
    left = steps_in(run_dir / "checkpoints")
    resumed = wait(start_ranks(run_dir, request["overrides"], 2, None))
    return {"killed": killed, "left": left, "resumed": resumed}


def at_random_times(request: dict[str, Any]) -> dict[str, Any]:
    """Kill and restart one run until it was killed so many times, anew whenever it ends.

    Returns:
        `newest`: the step to resume at after each kill, by run; `codes` of the runs that ended.
    """
    draw, folder, overrides = random.Random(request["seed"]), Path(request["output_dir"]), request["overrides"]
    begun = time.monotonic()
    codes = [wait(start_ranks(folder / "timing", [*overrides, "train.max_steps=3"], 2, None))]
    span = time.monotonic() - begun
    newest: list[list[int]] = [[]]
    while sum(map(len, newest)) < request["kills"]:
        run_dir = folder / f"run{len(newest)}"
        ended = wait(start_ranks(run_dir, overrides, 2, None), draw.uniform(0.1, 1.0) * span, grace_s=0.0)
        if ended == [0, 0]:
            codes.append(ended)
            newest.append([])
            continue
        found = newest_valid(run_dir / "checkpoints")
        newest[-1].append(found[0] if found else 0)
        if not found:
            # Nothing was saved yet; a run that was killed so early starts over by hand, as its message says.
            shutil.rmtree(run_dir, ignore_errors=True)
    codes.append(wait(start_ranks(folder / f"run{len(newest)}", overrides, 2, None)))
    return {"newest": newest, "codes": codes}


def main(requests: Path, answers: Path) -> None:
    """Run everything that the file asks for, one after the other."""
    warm_up(requests.with_name("model"))
    kinds = {"straight": straight, "named": at_named_point, "random": at_random_times}
    done = [kinds[request["kind"]](request) for request in json.loads(requests.read_text())]
    answers.write_text(json.dumps(done))


def warm_up(folder: Path) -> None:
    """Import and build, once for all ranks, what each would at its start; most of it is what DeepSpeed imports."""
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401

    MODEL.append(f"model.path={resolve_model('tiny:qwen2_5_vl', folder)}")
    load_policy(MODEL[0].removeprefix("model.path="))


# The override that names the model of all runs, once it is built.
MODEL: list[str] = []


def straight(request: dict[str, Any]) -> dict[str, Any]:
    """An undisturbed run."""
    return {"codes": wait(start_ranks(Path(request["output_dir"]), request["overrides"], 2, None))}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
