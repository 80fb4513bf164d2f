"""What both ends of a weight push share: sums of tensors, and gloo groups. Imports torch alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch


def sum_of(name: str, weight: torch.Tensor) -> str:
    """16 hex digits that stand for a tensor on the CPU: name, dtype, shape and every byte."""
    head = f"{name} {weight.dtype} {tuple(weight.shape)}"
    found = hashlib.sha256(head.encode())
    found.update(bytes_of(weight).numpy())
    return found.hexdigest()[:16]


def total_of(sums: Mapping[str, str]) -> str:
    """One sum that stands for all those of a push, whatever their order."""
    return hashlib.sha256("\n".join(f"{name} {each}" for name, each in sorted(sums.items())).encode()).hexdigest()[:16]


def bytes_of(weight: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, [n] uint8, of the same memory."""
    return weight.detach().reshape(-1).view(torch.uint8)


def gloo_group(host: str, port: int, rank: int, world_size: int, timeout_s: float, prefix: str) -> Any:
    """A gloo group beside torch.distributed's default one; rank 0 holds the store and must come first."""
    import torch.distributed as dist

    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(host, port, world_size, rank == 0, timeout, wait_for_workers=False)
    return dist.ProcessGroupGloo(dist.PrefixStore(prefix, store), rank, world_size, timeout)


def broadcast(group: Any, weight: torch.Tensor) -> None:
    """Broadcast a contiguous CPU tensor from rank 0, waiting; as bytes, since gloo does not know every dtype."""
    import torch.distributed as dist

    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    group.broadcast([bytes_of(weight)], options).wait()
