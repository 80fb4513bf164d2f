"""Examine a configuration before a run: settings, machine, rows, prompts, memory, disk; weights only on request."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm_mhpo.commands.doctor.check import Check, exit_code_of, has_error, print_checks
from vlm_mhpo.commands.doctor.environment import examine_environment
from vlm_mhpo.commands.doctor.settings import examine_settings
from vlm_mhpo.config import Config
from vlm_mhpo.errors import VlmMhpoError

__all__ = ["Check", "Options", "examine", "exit_code_of", "print_checks"]


@dataclass(frozen=True, slots=True)
class Options:
    """What an examination takes on.

    Attributes:
        quick: leave out whatever reads rows or a processor.
        num_rows: rows of each source that are looked at.
        num_ranks: processes that memory and batches are examined for, one a device.
        gpu_memory_gb: memory of a device, GiB; None = as detected.
        parity: load the model and compare sampler and trainer.
    """

    quick: bool = True
    num_rows: int = 256
    num_ranks: int = 1
    gpu_memory_gb: float | None = None
    parity: bool = False


def examine(config: Config, options: Options | None = None) -> list[Check]:
    """All checks: of machine and settings, then, unless `quick`, of rows, and of log-probs if asked for."""
    options = options or Options()
    checks = [*examine_environment(config), *examine_settings(config), *examine_size(config, options)]
    if config.rollout.engine == "vllm":
        from vlm_mhpo.commands.doctor.servers import examine_servers

        checks += examine_servers(config)
    if not options.quick and not any(check.subject == "model" and check.state == "error" for check in checks):
        from vlm_mhpo.commands.doctor.model import examine_folder

        checks += examine_folder(config.model)
    if (not options.quick or options.parity) and has_error(checks):
        return [*checks, Check("warning", "rows", "not examined: first mend what is red above")]
    if not options.quick:
        from vlm_mhpo.commands.doctor.rows import examine_rows

        checks += examine_rows(config, num_rows=options.num_rows)
    if options.parity:
        from vlm_mhpo.commands.doctor.parity import examine_parity

        try:
            with tempfile.TemporaryDirectory() as scratch:
                checks += examine_parity(config, Path(scratch))
        except VlmMhpoError as error:
            checks.append(Check.refusal("log-prob parity", error))
    return checks


def examine_size(config: Config, options: Options) -> Iterator[Check]:
    """Ranks, positions, memory and disk of the model that is named."""
    from vlm_mhpo.commands.doctor.disk import examine_disk
    from vlm_mhpo.commands.doctor.memory import device_memory, examine_memory, with_or_without_adapters
    from vlm_mhpo.commands.doctor.recommend import recommend
    from vlm_mhpo.commands.doctor.shapes import shapes_of
    from vlm_mhpo.config import check_world_size
    from vlm_mhpo.engine.settings import deepspeed_settings

    try:
        check_world_size(config, options.num_ranks)
    except VlmMhpoError as error:
        yield Check("error", "ranks", str(error))
    try:
        shapes = shapes_of(config.model)
        settings = deepspeed_settings(
            config.deepspeed, dtype=config.model.dtype, max_grad_norm=config.train.max_grad_norm
        )
    except VlmMhpoError as error:
        yield Check("warning", "memory", f"{error}; memory, positions and disk are not examined")
        return
    needed = config.data.max_prompt_length + config.rollout.max_completion_length
    if needed > shapes.max_positions:
        text = f"data.max_prompt_length + rollout.max_completion_length = {needed} tokens, and the model has "
        yield Check("error", "positions", f"{text}{shapes.max_positions} positions: lower one of them")
    stage = settings["zero_optimization"]["stage"]
    memory = device_memory(options.gpu_memory_gb)
    place = {"stage": stage, "num_ranks": options.num_ranks, "device_bytes": memory}
    yield from examine_memory(config, shapes, **place)
    yield with_or_without_adapters(config, **place)
    yield from recommend(config, shapes, **place)
    if memory is None:
        yield Check("ok", "device memory", "no GPU here: give --gpu-memory GIB to have the estimates judged")
    yield from examine_disk(config, shapes, stage=stage)
