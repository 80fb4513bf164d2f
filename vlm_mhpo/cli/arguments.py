"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML configuration, for example configs/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Overrides, for example train.learning_rate=1e-6."),
]


def say(text: str) -> None:
    """Print on the main rank."""
    from vlm_mhpo.runtime import ranks

    if ranks.is_main():
        typer.echo(text)


def names(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
