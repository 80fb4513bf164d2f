"""Runs inside the workers of a vLLM server: two ways to receive weights that need neither NCCL nor vllm in the trainer.

`--worker-extension-cls engine_side.Extension` imports this file in every worker, which registers the back ends "files"
and "gloo" for `--weight-transfer-config`. The trainer calls vLLM's own routes: /init_weight_transfer_engine,
/start_weight_update, /update_weights, /finish_weight_update. Runs with vllm 0.32; imports nothing of the trainer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from weight_transport import broadcast, gloo_group, sum_of, total_of

# Sums of what the last update has loaded, by name.
LOADED: dict[str, str] = {}


class CheckpointFormatEngine(WeightTransferEngine):
    """What both back ends share: vLLM's layerwise reload, which undoes and redoes the packing of weights.

    Packed are the matrices of a CPU server and quantised ones. The reload begins with the first tensor, not with
    start_weight_update: from there on the old weights are gone, and whatever fails leaves a worker that dies at its
    next token. What can be checked is checked before.
    """

    begun = False

    def start_weight_update(self) -> None:
        """Nothing is touched yet."""
        self.begun = False
        LOADED.clear()

    def begin(self) -> None:
        """The old weights go."""
        if not self.begun:
            initialize_layerwise_reload(self.model)
            self.begun = True

    def finish_weight_update(self) -> None:
        """The new weights are packed."""
        if self.begun:
            finalize_layerwise_reload(self.model, self.model_config)
        self.begun = False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load tensors; that of the base class ends with a call that a torch without devices refuses."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def init_transfer_engine(self, init_info: Any) -> None:
        """Nothing to shake hands on."""

    def shutdown(self) -> None:
        """Nothing to close."""


@dataclass
class FilesInit(WeightTransferInitInfo):
    """The folder that trainer and server both see."""

    root: str


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):
    """Names of files below the root, and the sum of every tensor in them."""

    files: list[str] = field(default_factory=list)
    sums: dict[str, str] = field(default_factory=dict)


class FilesEngine(CheckpointFormatEngine):
    """Weights as safetensors in a folder that both sides see."""

    init_info_cls = FilesInit
    update_info_cls = FilesUpdate
    root: Path | None = None

    def init_transfer_engine(self, init_info: FilesInit) -> None:
        """Remember the folder."""
        self.root = Path(init_info.root).resolve()

    def receive_weights(self, update_info: FilesUpdate) -> None:
        """Check every tensor, and only then load them."""
        from safetensors import safe_open

        if self.root is None:
            raise RuntimeError("init_weight_transfer_engine was not called on this server (did it restart?)")
        paths = [(self.root / name).resolve() for name in update_info.files]
        if beyond := [path.name for path in paths if not path.is_relative_to(self.root)]:
            raise ValueError(f"{beyond[0]} lies outside the folder given at init")
        found: dict[str, str] = {}
        with ThreadPoolExecutor(4) as pool:
            for sums in pool.map(_sums_in, paths):
                found |= sums
        if found != update_info.sums:
            wrong = sorted(
                name for name in found.keys() | update_info.sums.keys() if _differs(name, found, update_info)
            )
            raise ValueError(f"the files are not what the trainer wrote: {', '.join(wrong[:3])}")
        self.begin()
        for path in paths:
            with safe_open(path, framework="pt", device=str(self.device)) as file:
                self.model.load_weights((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
        LOADED.update(found)


def _differs(name: str, found: dict[str, str], update_info: FilesUpdate) -> bool:
    return found.get(name) != update_info.sums.get(name)


def _sums_in(path: Path) -> dict[str, str]:
    """Sums of the tensors in a file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: sum_of(key, file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the group of the trainer's sender (rank 0) and all workers meets."""

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float
    prefix: str


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """The tensors that are broadcast next, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooEngine(CheckpointFormatEngine):
    """Weights through a gloo group, without a folder in common."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    group: Any = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Join the group."""
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        place = init_info.master_address, init_info.master_port
        self.group = gloo_group(*place, rank, init_info.world_size, init_info.timeout_s, init_info.prefix)

    def receive_weights(self, update_info: GlooUpdate) -> None:
        """Receive the tensors and load them, after all of them have come."""
        if self.group is None:
            raise RuntimeError("init_weight_transfer_engine was not called on this server (did it restart?)")
        described = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        weights = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, dtype, shape in described}
        for weight in weights.values():
            broadcast(self.group, weight)
        self.begin()
        self.model.load_weights((name, weight.to(self.device)) for name, weight in weights.items())
        LOADED.update({name: sum_of(name, weight) for name, weight in weights.items()})

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


WeightTransferEngineFactory.register_engine("files", FilesEngine)
WeightTransferEngineFactory.register_engine("gloo", GlooEngine)


class Extension:
    """Mixed into the worker: reached by POST /collective_rpc {"method": NAME, "args": [...]}; answers are JSON."""

    def mhpo_identity(self) -> dict[str, Any]:
        """What a trainer must know before it trusts this worker."""
        config = self.vllm_config
        multimodal = self.model_config.multimodal_config
        return {
            "class": type(self.model_runner.get_model()).__name__,
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
            "logprobs_mode": self.model_config.logprobs_mode,
            "generation_config": self.model_config.generation_config,
            "max_model_len": self.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_images": multimodal.get_limit_per_prompt("image") if multimodal else 0,
            "backend": config.weight_transfer_config.backend,
            "rank": int(self.rank),
        }

    def mhpo_loaded(self) -> dict[str, Any]:
        """Number and sum of the tensors that the last update has loaded."""
        return {"num_tensors": len(LOADED), "total": total_of(LOADED)}
