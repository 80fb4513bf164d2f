"""The steps on one GPU, one after the other, each within its own seconds; a step that fails leaves the others alone.

Every step writes FOLDER/STEP.json while it works; FOLDER/summary.json says how each ended, and FOLDER/log.txt has what
they printed. Ends with 1 when a step failed or ran out of time. Started by run.sh, which installs what is missing.

Usage: python measurements/gpu/steps.py --out FOLDER [--trial] [--steps NAME[:SECONDS] ...]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
# A step that is told to stop has this long to write what it knows.
GRACE_S = 3
# A CPU takes longer for what is left of each step.
TRIAL_SECONDS = 1200


@dataclass(frozen=True, slots=True)
class Step:
    """A program with a limit.

    Attributes:
        name: of its JSON.
        seconds: it may take.
        program: below measurements/.
        arguments: of the program, beside --out and --trial.
    """

    name: str
    seconds: int
    program: str
    arguments: tuple[str, ...] = ()


SPEED_SHAPES = ("realistic_0.5b", "realistic_3b", "realistic_0.5b_1024", "realistic_3b_1024")
SAMPLING = ("--rounds", "1", "--shapes", "realistic_0.5b_128", "realistic_3b_128")
# What is most wanted comes first in each, so that the limit cuts what is least wanted.
STEPS = (
    Step("environment", 40, "gpu/environment.py"),
    Step("tests", 110, "gpu/run_tests.py"),
    Step("speed", 200, "speed_step.py", ("--rounds", "1", "--shapes", *SPEED_SHAPES)),
    Step("sampling", 100, "speed_sampling.py", (*SAMPLING, "--rows", "24", "128", "256")),
    Step("learning", 110, "gpu/learning.py"),
)
TRIAL_ARGUMENTS = {"sampling": (*SAMPLING, "--rows", "2", "4")}


def main() -> None:
    """Run the steps and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trial", action="store_true", help="two layers, a few tokens: no figure counts")
    parser.add_argument(
        "--steps", nargs="+", default=[step.name for step in STEPS], metavar="NAME[:SECONDS]", help="default: all"
    )
    arguments = parser.parse_args()
    try:
        wanted = chosen(arguments.steps, trial=arguments.trial)
    except ValueError as error:
        parser.error(str(error))
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if run_all(wanted, out, trial=arguments.trial) else 1)


def chosen(names: Sequence[str], *, trial: bool) -> list[Step]:
    """The steps of a command line, each NAME or NAME:SECONDS.

    Raises:
        ValueError: there is no such step, or no such number.
    """
    known = {step.name: step for step in STEPS}
    steps = []
    for each in names:
        name, _, seconds = each.partition(":")
        if name not in known or not (seconds.isdecimal() or not seconds):
            raise ValueError(f"--steps {each}: give NAME or NAME:SECONDS, with one of {', '.join(known)}")
        step = known[name]
        limit = int(seconds) if seconds else TRIAL_SECONDS if trial else step.seconds
        arguments = TRIAL_ARGUMENTS.get(name, step.arguments) if trial else step.arguments
        steps.append(Step(name, limit, step.program, arguments))
    return steps


def run_all(steps: Sequence[Step], out: Path, *, trial: bool) -> bool:
    """Run steps in order; returns whether all ended well. The summary is whole after each of them."""
    ended: list[dict[str, Any]] = []
    begun = time.monotonic()
    with (out / "log.txt").open("w") as log:
        for step in steps:
            print(f"{step.name}: at most {step.seconds} s", flush=True)
            ended.append(run(step, out, log, trial=trial))
            print(f"{step.name}: {ended[-1]['status']} after {ended[-1]['seconds']:.0f} s", flush=True)
            seconds = round(time.monotonic() - begun, 1)
            summary = {"trial": trial, "seconds": seconds, "steps": ended}
            (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    bad = [each for each in ended if each["status"] != "ok"]
    for each in bad:
        print(f"{each['name']}: {each['status']}: {each['last_words']}", flush=True)
    return not bad


def run(step: Step, out: Path, log: IO[str], *, trial: bool) -> dict[str, Any]:
    """Run one step; how it ended."""
    file = out / f"{step.name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(HERE.parent / step.program), *step.arguments, "--out", str(file)]
    command += ["--trial"] if trial else []
    log.write(f"== {step.name}: {' '.join(command)}\n")
    log.flush()
    place = log.tell()
    begun = time.monotonic()
    # Models of gigabytes lie there, and a step that is killed removes none.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        code = code_of(command, environment(step, scratch), log, step.seconds)
    status = {None: "out of time", 0: "ok"}.get(code, "failed")
    return {
        "name": step.name,
        "status": status,
        "exit_code": code,
        "seconds": round(time.monotonic() - begun, 1),
        "limit_s": step.seconds,
        "last_words": "" if status == "ok" else last_words(Path(log.name), place),
    }


def code_of(command: Sequence[str], variables: Mapping[str, str], log: IO[str], seconds: int) -> int | None:
    """The exit code of a program; None when it had to be ended. Nothing that it started is left."""
    child = subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=variables
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        return child.poll()
    finally:
        end_session(child)


def environment(step: Step, scratch: str) -> Mapping[str, str]:
    """A step's environment: it can import what lies beside it, knows how long it has, and where files may go."""
    roots = [str(HERE.parent.parent), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(each for each in roots if each)
    own = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "STEP_SECONDS": str(step.seconds), "TMPDIR": scratch}
    return os.environ | own


def end_session(child: subprocess.Popen) -> None:
    """End a step and what it started; the device must be free for the next one."""
    for signum, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(child.pid, signum)
        except ProcessLookupError:
            break
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def last_words(log: Path, place: int) -> str:
    """The last line of a step's log, which starts at byte `place`, that names an error; else its last line."""
    text = log.read_bytes()[place:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or line.startswith(("error", "FAILED"))]
    return (named or lines or ["it printed nothing"])[-1][:500]


if __name__ == "__main__":
    main()
