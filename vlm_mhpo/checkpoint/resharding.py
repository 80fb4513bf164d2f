"""Load a checkpoint into an engine of another number of ranks or ZeRO stage, value by value.

Every rank maps all shards into memory and copies what it owns; float32 weights and Adam moments stay as they were to
the bit. Not covered: bfloat16 at ZeRO-0 and states on NVMe (refused by name).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_mhpo.checkpoint.names import ENGINE_TAG
from vlm_mhpo.checkpoint.reading import safe_load
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import CheckpointError
from vlm_mhpo.runtime import ranks

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Saved:
    """The values of a checkpoint, wherever its shards hold them.

    Attributes:
        pieces: by parameter name, (first index in the flattened parameter, values by WEIGHT and MOMENTS), flat.
        step: Adam's count of updates, as the optimizer keeps it; None before the first.
        counters: DeepSpeed's own, by attribute.
    """

    pieces: dict[str, list[tuple[int, dict[str, Tensor]]]] = field(default_factory=dict)
    step: Any = None
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, begin: int, flat: dict[str, Tensor], start: int, length: int) -> None:
        """Note that `flat[start : start + length]` holds a parameter from its index `begin` on."""
        values = {key: value.reshape(-1)[start : start + length] for key, value in flat.items()}
        self.pieces.setdefault(name, []).append((begin, values))

    def copy(self, name: str, key: str, begin: int, target: Tensor) -> None:
        """Fill a flat tensor with a parameter's values from `begin` on; CheckpointError when some are missing."""
        end, num_copied = begin + target.numel(), 0
        for first, values in self.pieces.get(name, ()):
            low, high = max(begin, first), min(end, first + values[key].numel())
            if low < high:
                target[low - begin : high - begin].copy_(values[key][low - first : high - first])
                num_copied += high - low
        if num_copied != target.numel():
            raise CheckpointError(f"the checkpoint lacks values of {name} ({key}): it is of another model")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where this rank keeps a part of a parameter: `flat[start : start + length]`, from the parameter's `begin` on."""

    name: str
    begin: int
    flat: Tensor
    start: int
    length: int


def load_resharded(engine: Engine, folder: Path) -> None:
    """Put the weights, Adam moments and update count of a checkpoint of another layout into the engine.

    Raises:
        CheckpointError: on every rank, when any cannot: a layout that is not covered, another model, a planted pickle.
    """
    error: CheckpointError | None = None
    try:
        fill(engine, _read_shards(folder / ENGINE_TAG, _trained_parameters(engine)))
    except CheckpointError as problem:
        error = CheckpointError(f"{folder}: {problem}")
    except (KeyError, IndexError, AttributeError, TypeError) as problem:
        error = CheckpointError(f"{folder}: its layout cannot be read for other ranks ({problem!r}): use the old ones")
    ranks.raise_together(error)
    settle(engine)


def _trained_parameters(engine: Engine) -> dict[str, torch.nn.Parameter]:
    """What the optimizer moves, by name, in its order."""
    return {name: parameter for name, parameter in engine.policy.named_parameters() if parameter.requires_grad}


def _read_shards(folder: Path, trained: dict[str, torch.nn.Parameter]) -> Saved:
    """Find every value in DeepSpeed's shards of any stage."""
    models = {_rank_of(file): file for file in sorted(folder.glob("*model_states.pt"))}
    optimizers = {_rank_of(file): file for file in sorted(folder.glob("*optim_states.pt"))}
    model = safe_load(str(models[0]), "cpu", mmap=True)
    saved = Saved(counters={name: model[name] for name in ("global_steps", "global_samples", "skipped_steps")})
    if not optimizers:
        _read_stage_0(saved, model, trained)
    position: dict[str, int] = {}
    for rank in range(len(optimizers)):
        state = safe_load(str(optimizers[rank]), "cpu", mmap=True)["optimizer_state_dict"]
        if int(state["zero_stage"]) == 3:
            _read_stage_3(saved, state, model["param_shapes"], rank, len(optimizers))
        else:
            _read_stage_1_2(saved, state, position)
    return saved


def _rank_of(file: Path) -> int:
    """The rank that a shard's name tells."""
    found = re.search(r"zero_pp_rank_(\d+)_", file.name)
    return int(found[1]) if found else 0


def _read_stage_0(saved: Saved, model: dict[str, Any], trained: dict[str, torch.nn.Parameter]) -> None:
    """Whole parameters; the optimizer numbers them in its own order."""
    states = model["optimizer"]["state"]
    for index, name in enumerate(trained):
        flat = _flat_values(saved, model["module"][name], states.get(index, {}))
        saved.add(name, 0, flat, 0, flat[WEIGHT].numel())


def _read_stage_1_2(saved: Saved, state: dict[str, Any], position: dict[str, int]) -> None:
    """One flat part of all parameters a rank, in rank order; `position` is how far each parameter has come."""
    states = state["base_optimizer_state"]["state"]
    for group, weights in enumerate(state["single_partition_of_fp32_groups"]):
        flat = _flat_values(saved, weights, states.get(group, {}))
        for name, address in state["param_slice_mappings"][group].items():
            begin = position.get(name, 0)
            saved.add(name, begin, flat, address.start, address.numel)
            position[name] = begin + address.numel


def _read_stage_3(
    saved: Saved, state: dict[str, Any], shapes: list[dict[str, torch.Size]], rank: int, num_ranks: int
) -> None:
    """Every parameter cut into equal parts, one per rank, the last one padded; one flat tensor a sub-group."""
    states = state["optimizer_state_dict"]["state"]
    for group, weights in enumerate(state["fp32_flat_groups"]):
        flat = _flat_values(saved, weights, states.get(group, {}))
        start = 0
        for name, shape in shapes[group].items():
            part = -(-shape.numel() // num_ranks)
            begin = min(rank * part, shape.numel())
            saved.add(name, begin, flat, start, min(part, shape.numel() - begin))
            start += part


def _flat_values(saved: Saved, weights: Tensor, state: dict[str, Any]) -> dict[str, Tensor]:
    """Weights with their moments, and the update count noted; zeros before the first update."""
    if state.keys() - {"step", *MOMENTS}:
        raise CheckpointError("its 8-bit moments cannot be cut for other ranks or stages: use the old ones")
    saved.step = state.get("step", saved.step)
    return {WEIGHT: weights.reshape(-1)} | {
        key: state[key].reshape(-1) if key in state else torch.zeros(weights.numel()) for key in MOMENTS
    }


def slots(engine: Engine) -> Iterator[Slot]:
    """Everything that this rank's optimizer owns."""
    optimizer = engine.deepspeed.optimizer
    for name, parameter in _trained_parameters(engine).items():
        if engine.zero_stage == 0:
            yield Slot(name, 0, parameter, 0, parameter.numel())
        elif engine.zero_stage < 3:
            mapping = parameter._hp_mapping
            if mapping is not None:
                flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
                own = mapping.hp_fragment_address
                yield Slot(name, mapping.lp_fragment_address.start, flat, own.start, own.numel)
        else:
            group, start, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
            begin = min(ranks.rank() * part, parameter.ds_numel)
            flat = optimizer.fp32_partitioned_groups_flat[group]
            yield Slot(name, begin, flat, int(start), min(part, parameter.ds_numel - begin))


def fill(engine: Engine, saved: Saved) -> None:
    """Copy every value that this rank owns."""
    if engine.zero_stage == 0 and engine.deepspeed.optimizer is not engine.optimizer:
        raise CheckpointError("ZeRO-0 in bfloat16 keeps its state in another form: use ZeRO 1, 2 or 3")
    with torch.no_grad():
        for slot in slots(engine):
            state = engine.optimizer.state[slot.flat]
            if saved.step is not None:
                for key in MOMENTS:
                    moment = state.setdefault(key, torch.zeros_like(slot.flat, requires_grad=False))
                    saved.copy(slot.name, key, slot.begin, part_of(moment, slot))
                state["step"] = saved.step.clone() if isinstance(saved.step, Tensor) else saved.step
            saved.copy(slot.name, WEIGHT, slot.begin, part_of(slot.flat, slot))
        if engine.zero_stage in (1, 2):
            for name, parameter in _trained_parameters(engine).items():
                whole = torch.empty(parameter.numel())
                saved.copy(name, WEIGHT, 0, whole)
                parameter.copy_(whole.view_as(parameter))
    for name, value in saved.counters.items():
        setattr(engine.deepspeed, name, value)


def part_of(tensor: Tensor, slot: Slot) -> Tensor:
    """The slot's part of a tensor that is laid out as its own."""
    return tensor.detach().view(-1)[slot.start : slot.start + slot.length]


def settle(engine: Engine) -> None:
    """Let DeepSpeed load its own, now filled, state: it refreshes every copy in lower precision and every link."""
    if engine.zero_stage == 0:
        return
    optimizer = engine.deepspeed.optimizer
    if engine.deepspeed._optimizer_has_ckpt_event_prologue():
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict([optimizer.state_dict()] * ranks.world_size(), load_from_fp32_weights=True)
    if engine.deepspeed._optimizer_has_ckpt_event_epilogue():
        optimizer.checkpoint_event_epilogue()
