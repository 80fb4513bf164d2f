"""The `vlm-mhpo` command: one subcommand a job, one clear sentence and a non-zero exit on bad input."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from vlm_mhpo.cli import data, preflight, reports, runs

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement learning of vision-language models on visual math with MHPO.",
)
# In the order of the help.
for command in (
    *(runs.quickstart, data.prepare, data.audit, runs.sft, runs.train, runs.compare, reports.monitor, runs.export),
    *(runs.replay, runs.profile, preflight.config, preflight.doctor, preflight.check_resume),
    *(preflight.check_invariance, reports.evaluate, reports.report),
):
    app.command()(command)


def main() -> None:
    """Entry point: known errors become one sentence; anything else keeps its traceback."""
    from data_prep import DataError
    from vlm_mhpo.errors import Stopped, VlmMhpoError
    from vlm_mhpo.scoring import RewardError, VerifierError

    try:
        _refuse_dashed_overrides(sys.argv[1:])
        app()
    except VlmMhpoError as error:
        _fail(error, error.exit_code, "stopped" if isinstance(error, Stopped) else "error")
    except (DataError, RewardError, VerifierError) as error:
        _fail(error, 2)


def _refuse_dashed_overrides(arguments: Sequence[str]) -> None:
    """ConfigError for `--train.max_steps=2`, as other programs write it; the parser would only say that it is none."""
    for argument in arguments:
        key, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and ("." in key or "_" in key):
            from vlm_mhpo.config.reading import known_keys
            from vlm_mhpo.errors import ConfigError

            if key in known_keys():
                raise ConfigError(f"{argument}: overrides are written without dashes: {key}={value or 'VALUE'}")


def _fail(error: Exception, code: int, label: str = "error") -> None:
    """Say what was wrong and end the process; other ranks are told by their launcher."""
    from vlm_mhpo.runtime.secrets import without_secrets

    typer.echo(f"{label}: {without_secrets(str(error))}", err=True)
    # Torch is loaded only where ranks can exist.
    if "torch" in sys.modules:
        from vlm_mhpo.runtime import ranks

        ranks.end(code)
    sys.exit(code)
