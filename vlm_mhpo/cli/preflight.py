"""Commands that examine a configuration before it is trained: doctor, check-resume, check-invariance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_mhpo.cli.arguments import ConfigPath, Overrides, say

Family = Annotated[
    str | None, typer.Option(help="Tiny model: qwen2_vl, qwen2_5_vl, qwen3_vl or qwen2; default: as model.path.")
]
Keep = Annotated[Path | None, typer.Option(help="New folder in which the runs are kept; default: removed.")]


def doctor(
    config: ConfigPath,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read neither rows nor the processor.")] = False,
    ranks: Annotated[int, typer.Option(min=1, help="Processes, one a GPU, that batches and memory are for.")] = 1,
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help="Memory of a GPU, GiB; default: detected.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each source that are looked at.")] = 256,
    parity: Annotated[bool, typer.Option("--parity", help="Load the model; compare sampler and trainer.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of the objective's gradient multiplier beside GRPO's and SAPO's.")
    ] = None,
) -> None:
    """Examine configuration, machine, rows, prompts, memory and disk; no weights are loaded without --parity."""
    from vlm_mhpo.config import load_config
    from vlm_mhpo.doctor import Options, examine, print_findings

    parsed = load_config(config, overrides or [])
    if plot:
        from vlm_mhpo.multiplier_plot import plot_multipliers

        say(f"gradient multiplier: {plot_multipliers(parsed, plot)}")
    if not print_findings(examine(parsed, Options(quick, rows, ranks, gpu_memory, parity))):
        raise typer.Exit(1)


COMMANDS = (doctor,)
