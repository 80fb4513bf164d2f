"""Step 2 on a GPU: tests/gpu, with the outcome of every test in a JSON as soon as it is known.

Usage: python measurements/gpu/run_tests.py [--trial] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import ROOT
from side_by_side import write_record


class Outcomes:
    """A pytest plugin that keeps each test's outcome and seconds, and writes them down at once."""

    def __init__(self, out: Path | None) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self._out = out

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A part of a test is over: set-up, the test, or what comes after it; the worst counts."""
        known = self.tests.setdefault(report.nodeid.rpartition("::")[2], {"outcome": "passed", "seconds": 0.0})
        known["seconds"] += report.duration
        if report.outcome != "passed":
            # Of a test that is skipped (file, line, reason); the file is where this machine has it.
            why = report.longrepr[2] if report.skipped else str(report.longrepr)
            known |= {"outcome": report.outcome, "reason": why[-1500:]}
        if report.when == "teardown":
            write_record("gpu_tests", self.results(), self._out)

    def results(self) -> dict[str, Any]:
        """How many there were of each outcome, and every test."""
        outcomes = [each["outcome"] for each in self.tests.values()]
        return {"counts": {name: outcomes.count(name) for name in sorted(set(outcomes))}, "tests": self.tests}


def main() -> None:
    """Run the tests and end as pytest ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="without a GPU what can run there, in small sizes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out and arguments.out.absolute()
    os.chdir(ROOT)
    if arguments.trial and not torch.cuda.is_available():
        os.environ["TEST_DEVICE"] = "cpu"
    outcomes = Outcomes(out)
    # The step has a limit of its own; what a test may take elsewhere is too little for a busy CPU.
    options = ["-q", "--durations=0", "-p", "no:cacheprovider", "-o", "timeout=600"]
    code = pytest.main(["tests/gpu", *options], plugins=[outcomes])
    # A test that is skipped on the device that it was written for has shown nothing.
    skipped = not arguments.trial and outcomes.results()["counts"].get("skipped", 0)
    sys.exit(int(code) or bool(skipped))


if __name__ == "__main__":
    main()
