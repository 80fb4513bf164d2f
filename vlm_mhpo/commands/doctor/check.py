"""One line of an examination, and the table that it is printed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was seen, and what to change if it is not ok."""

    state: Literal["ok", "warning", "error"]
    subject: str
    text: str


def print_checks(findings: Sequence[Check]) -> bool:
    """Print a table; True when there is no error."""
    table = Table()
    for column in ("", "what", "finding"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        # A row's id or a library's message may hold square brackets, which rich would read as styles.
        text = finding.text.replace("[", "\\[")
        table.add_row(f"[{STYLES[finding.state]}]{finding.state}[/]", finding.subject, text)
    Console().print(table)
    return all(finding.state != "error" for finding in findings)


def in_gib(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
