"""Commands that examine a configuration before it is trained: doctor, check-resume, check-invariance."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_mhpo.cli.arguments import ConfigPath, Overrides, load, say

if TYPE_CHECKING:
    from vlm_mhpo.commands.doctor import Check
    from vlm_mhpo.config import Config

Family = Annotated[
    str | None, typer.Option(help="Tiny model, such as qwen2_5_vl, internvl or qwen2; default: as model.path.")
]
Keep = Annotated[Path | None, typer.Option(help="New folder in which the runs are kept; default: removed.")]


def config(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="A key or a section; default: all.")] = None,
) -> None:
    """Print configuration keys with what they do, their default and range."""
    from vlm_mhpo.config.keys import all_keys, as_text, keys_under

    typer.echo(as_text(keys_under(key) if key else all_keys()))


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
    from vlm_mhpo.commands.doctor import Options, examine

    parsed = _load(config, overrides)
    if plot:
        from vlm_mhpo.objectives.plot import plot_multipliers

        say(f"gradient multiplier: {plot_multipliers(parsed, plot)}")
    _conclude(examine(parsed, Options(quick, rows, ranks, gpu_memory, parity)))


def check_resume(
    config: ConfigPath,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes, on the CPU.")] = 2,
    steps: Annotated[int, typer.Option(min=2, help="Training steps; the stop is behind the middle.")] = 4,
    family: Family = None,
    keep: Keep = None,
) -> None:
    """Prove with a tiny model that a stopped and resumed run of CONFIG is the undisturbed one, to the last bit."""
    parsed = _load(config, overrides)
    from vlm_mhpo.commands.proofs.resume import check_resume as check

    with _folder_for(keep) as folder:
        _conclude(check(parsed, folder, num_ranks=ranks, num_steps=steps, family=family))


def check_invariance(
    config: ConfigPath,
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that share the batch, on the CPU.")] = 2,
    family: Family = None,
    keep: Keep = None,
) -> None:
    """Prove with a tiny model that CONFIG's gradient does not depend on micro-batches, packing, chunks, ranks, ZeRO."""
    parsed = _load(config, overrides)
    from vlm_mhpo.commands.proofs.invariance import check_invariance as check

    with _folder_for(keep) as folder:
        _conclude(check(parsed, folder, num_ranks=ranks, family=family))


def _load(config: Path, overrides: list[str] | None) -> Config:
    """The configuration, in a process that has named its accelerator."""
    from vlm_mhpo.runtime import ranks

    ranks.name_accelerator()
    return load(config, overrides)


@contextmanager
def _folder_for(keep: Path | None) -> Iterator[Path]:
    """The new folder that the user named, or one that is removed at the end."""
    from vlm_mhpo.errors import ConfigError

    if keep is None:
        with tempfile.TemporaryDirectory(prefix="vlm_mhpo_check_") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--keep {keep}: a new folder cannot be made there ({error})") from error
    yield keep


def _conclude(checks: list[Check]) -> None:
    """Print the table; if there is an error in it, exit with the code that the run would end with, or 1."""
    from vlm_mhpo.commands.doctor import exit_code_of, print_checks

    print_checks(checks)
    if code := exit_code_of(checks):
        raise typer.Exit(code)
