"""How a command must end on bad input, and what it must leave alone."""

from __future__ import annotations

import re
from pathlib import Path


def assert_one_sentence(code: int | None, stderr: str, sentence: str) -> None:
    """A non-zero code, and one line that begins with `error:`, the last."""
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert code, stderr
    assert "Traceback" not in stderr
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert re.fullmatch(f"error: {sentence}", lines[-1]), lines[-1]


def contents(run_dir: Path) -> dict[str, bytes]:
    """Every file of a run, by its name inside."""
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
