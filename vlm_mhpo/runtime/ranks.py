"""Ranks: start-up, agreement, and metrics that are global."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from vlm_mhpo.errors import VlmMhpoError
from vlm_mhpo.runtime.clock import span

# What a launcher, or `start` in its place, tells a rank.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def name_accelerator() -> None:
    """Without a GPU DeepSpeed would search for accelerators and warn that it found none."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start(num_threads: int) -> None:
    """Join the process group that torchrun or deepspeed described; alone, make a group of one.

    Args:
        num_threads: CPU threads of this process; 0 = cores divided by the ranks on this host.
    """
    name_accelerator()
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // local_world))
    if dist.is_initialized():
        return
    alone = "RANK" not in os.environ
    if alone:
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    import deepspeed

    _quiet_deepspeed()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "gloo":
        # DeepSpeed would compile a shared-memory reduction at first use: a minute, and a compiler that a laptop may
        # lack. gloo's own reduction is as fast for what fits a CPU.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if alone:
        # Without a port: another run that starts at the same moment may take the one that was just free.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # A rank may spend long in a rollout or an evaluation that others have finished.
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(minutes=60))
    atexit.register(leave)
    # The first rank keeps the addresses of all: one that found its configuration wrong at once, and ended, would leave
    # the others with a broken connection in place of the sentence.
    barrier()


def leave() -> None:
    """Close the connections while the interpreter is whole: torn down later, their threads can abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code: int) -> NoReturn:
    """End a rank that failed, with this exit code.

    Among several ranks without the interpreter's teardown: a connection that another rank has already closed makes
    it abort now and then, and the launcher would see a crash instead of the code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if world_size() > 1:
        os._exit(code)
    sys.exit(code)


def _quiet_deepspeed() -> None:
    """DeepSpeed's information lines would drown the one log line a step."""
    import logging

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def rank() -> int:
    """This process among all, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the rank that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        with span("ranks"):
            dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """Every rank's small picklable `value`, in rank order, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with span("ranks"):
        dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """The largest of the ranks' integers, on all ranks."""
    return int(reduce(torch.tensor(value, device=device()), dist.ReduceOp.MAX))


def reduce(value: Tensor, operation: dist.ReduceOp) -> Tensor:
    """All-reduce of a tensor; the tensor itself without a group."""
    if world_size() > 1:
        with span("ranks"):
            dist.all_reduce(value, op=operation)
    return value


def raise_together(error: VlmMhpoError | None) -> None:
    """Raise on every rank if any rank has an error, so that no rank waits for one that stopped.

    Raises:
        VlmMhpoError: this rank's own error, or one that names the rank that failed.
    """
    failures = gather_objects(None if error is None else (type(error), str(error)))
    if error is not None:
        raise error
    for index, failure in enumerate(failures):
        if failure is not None:
            kind, message = failure
            raise kind(f"rank {index}: {message}")
