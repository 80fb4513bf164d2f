"""Arguments that several commands share, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlm_mhpo.config import Config

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML configuration, for example configs/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Overrides, for example train.learning_rate=1e-6."),
]
ProtocolDifference = Annotated[
    bool, typer.Option("--allow-protocol-difference", help="Compare although protocols differ.")
]


def load(config: Path, overrides: list[str] | None) -> Config:
    """The configuration with its overrides; ConfigError as `load_config`."""
    from vlm_mhpo.config import load_config

    return load_config(config, overrides or [])


def split_config(config: Path | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """(configuration, overrides) where the first may be left out: an override may stand in its place."""
    if config is not None and "=" in str(config):
        return None, [str(config), *(overrides or [])]
    return config, overrides or []


def say(text: str) -> None:
    """Print on the main rank."""
    from vlm_mhpo.runtime import ranks

    if ranks.is_main():
        typer.echo(text)


def names(text: str) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()]
