"""One line of an examination, and the table that it is printed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was seen, and what to change if it is not ok."""

    state: Literal["ok", "warning", "error"]
    subject: str
    text: str


def has_error(checks: Sequence[Check]) -> bool:
    """Whether one of them is an error."""
    return any(check.state == "error" for check in checks)


def print_checks(checks: Sequence[Check]) -> bool:
    """Print a table; True when there is no error."""
    table = Table()
    for column in ("", "what", "finding"):
        table.add_column(column, overflow="fold")
    for check in checks:
        # As plain text: a row's id or a library's message may hold what rich would read as styles.
        table.add_row(Text(check.state, STYLES[check.state]), check.subject, Text(check.text))
    Console().print(table)
    return not has_error(checks)


def in_gib(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
