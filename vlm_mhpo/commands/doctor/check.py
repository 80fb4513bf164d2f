"""One line of an examination, and the table that it is printed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlm_mhpo.errors import VlmMhpoError

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was seen, and what to change if it is not ok.

    Attributes:
        exit_code: of the examination if this is an error; what the run itself would end with, where it would.
    """

    state: Literal["ok", "warning", "error"]
    subject: str
    text: str
    exit_code: int = 1

    @staticmethod
    def refusal(subject: str, error: VlmMhpoError) -> Check:
        """What a run would end with: the same words and exit code."""
        return Check("error", subject, str(error), error.exit_code)


def exit_code_of(checks: Sequence[Check]) -> int:
    """0 without an error, else the largest of theirs."""
    return max((check.exit_code for check in checks if check.state == "error"), default=0)


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
