"""What the speed benchmarks share: shapes of work, processes that take turns, figures with their spread.

A side is a trainer in a process of its own. It takes one step when asked and waits otherwise, so two sides can
alternate step by step on one machine and share nothing but the files of the model and the rows. Everything runs on
one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from quickstart_seeds import environment
from shapes import ROOT, SHAPES, Shape, prepare, trial

RESULTS = ROOT / "measurements" / "results"


def use_one_thread() -> None:
    """Before torch is loaded; processes started later inherit it."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


def apart(call: Callable, *arguments: Any) -> Any:
    """The result of a call in a process of its own, which leaves no process group and no environment behind."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


class Stopped(Exception):
    """The parent has seen enough."""


class Turnstile:
    """The child's end: it reports a finished step and waits until it may take the next one."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._begun = 0.0
        self._cpu = 0.0

    def arrive(self, **facts: float) -> None:
        """Report `facts` with the times since the last report, then wait.

        `wall_s` starts when the parent said go; `cpu_s` counts this process and those that it started, also what they
        did while it waited.

        Raises:
            Stopped: there is no next step.
        """
        wait_for_device()
        wall, cpu = time.perf_counter() - self._begun, cpu_seconds()
        self._pipe.send({"wall_s": wall, "cpu_s": cpu - self._cpu, **memory_held(), **facts})
        self._cpu = cpu
        if self._pipe.recv() != "go":
            raise Stopped
        self._begun = time.perf_counter()


def wait_for_device() -> None:
    """Until a GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_held() -> dict[str, float]:
    """Bytes that this process holds now and held at most: of the GPU where there is one, else of the host."""
    import torch

    if torch.cuda.is_available():
        return {"held_bytes": torch.cuda.memory_allocated(), "peak_bytes": torch.cuda.max_memory_allocated()}
    return {"held_bytes": psutil.Process().memory_info().rss, "peak_bytes": peak_rss_bytes()}


def cpu_seconds() -> float:
    """Processor seconds of this process, of its ended children and of those that live."""
    living = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            living += sum(child.cpu_times()[:2])
    return living + sum(psutil.Process().cpu_times()[:4])


def peak_rss_bytes() -> int:
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Side:
    """A trainer in a process of its own; a context manager.

    Args:
        run: called there with the overrides and a `Turnstile`; arrives once when it is ready and after every step.
        overrides: of configs/quickstart.yaml.
    """

    def __init__(self, run: Callable[[Sequence[str], Turnstile], None], overrides: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=serve, args=(run, overrides, far))
        self._process.start()
        far.close()
        self.ready = self._answer()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._pipe.send("stop")
        self._process.join(60)
        if self._process.is_alive():
            self._process.terminate()

    def step(self) -> dict[str, float]:
        """Take one step; what the turnstile reported of it."""
        self._pipe.send("go")
        return self._answer()

    def _answer(self) -> dict[str, float]:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit("one of the two sides ended: its error is above") from None


def serve(run: Callable[[Sequence[str], Turnstile], None], overrides: Sequence[str], pipe: Connection) -> None:
    """The child: run until told to stop."""
    with suppress(Stopped):
        run(overrides, Turnstile(pipe))


def alternate(
    calls: Mapping[str, Callable[[], dict[str, float]]], rounds: int, warmup: int
) -> dict[str, list[dict[str, float]]]:
    """What each call reported, by round without the first `warmup`; who comes first goes round."""
    names = list(calls)
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        turn = index % len(names)
        for name in (*names[turn:], *names[:turn]):
            facts = calls[name]()
            print(f"{index - warmup + 1:3d} {name:24} {facts['wall_s']:8.3f} s", file=sys.stderr, flush=True)
            if index >= warmup:
                steps[name].append(facts)
    return steps


def timed(call: Callable[[], Any]) -> Callable[[], dict[str, float]]:
    """A call in this process that reports its own wall and processor seconds, for `alternate`."""

    def report() -> dict[str, float]:
        begun, cpu = time.perf_counter(), time.process_time()
        call()
        wait_for_device()
        return {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}

    return report


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * [values[0]]
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def compare(steps: Mapping[str, Sequence[Mapping[str, float]]], ours: str, peer: str) -> dict[str, Any]:
    """Times of both, and how many times faster `ours` is, round by round."""
    record: dict[str, Any] = {}
    for clock in ("wall_s", "cpu_s"):
        record[clock] = {name: spread([step[clock] for step in each]) for name, each in steps.items()}
        ratios = [b[clock] / a[clock] for a, b in zip(steps[ours], steps[peer], strict=True)]
        record[f"{clock.removesuffix('_s')}_ratio"] = spread(ratios)
    record["rounds"] = len(steps[ours])
    return record


def measure_shapes(name: str, description: str | None, measure: Callable[..., Any], default: Sequence[str]) -> None:
    """Command line of a benchmark that measures shapes, each in a process of its own, and writes the JSON as it comes.

    `measure` is called there with a shape, the overrides that describe its run, and the rounds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, default)
    arguments = parser.parse_args()
    use_one_thread()
    results: dict[str, Any] = {}
    for shape in chosen(arguments):
        with tempfile.TemporaryDirectory() as folder:
            overrides = apart(prepare, shape, Path(folder), arguments.start)
            results[shape.name] = apart(measure, shape, overrides, arguments.rounds)
        write_record(name, results, arguments.out)


def add_common_arguments(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """What every benchmark of shapes is asked; `default` are the names of its shapes."""
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(default))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--trial", action="store_true", help="cut down to two layers and a few tokens: no figure counts"
    )
    parser.add_argument("--start", type=Path, help="warm-started model of the quickstart's shape; default: made")
    parser.add_argument("--out", type=Path)


def chosen(arguments: argparse.Namespace) -> list[Shape]:
    """The shapes that a command line asks for."""
    shapes = [SHAPES[name] for name in arguments.shapes]
    return [trial(shape) for shape in shapes] if arguments.trial else shapes


def without_folders(arguments: Sequence[str]) -> list[str]:
    """A command line as anyone can type it in this repository: without where it lies, and where results went."""
    program = Path(arguments[0]).resolve()
    name = str(program.relative_to(ROOT)) if program.is_relative_to(ROOT) else program.name
    places = [index for index, each in enumerate(arguments) if each == "--out"]
    return [name, *(each for i, each in enumerate(arguments) if i and i not in places and i - 1 not in places)]


def write_record(
    name: str, results: Mapping[str, Any], out: Path | None = None, before: Mapping[str, Any] | None = None
) -> None:
    """Write measurements/results/NAME.json (or `out`): command, what was known `before`, results, load, environment.

    Prints the results.
    """
    import torch

    record = {
        "command": " ".join(["python", *without_folders(sys.argv)]),
        "trial": "--trial" in sys.argv,
        **(before or {}),
        **results,
        "threads": 1,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load_average_at_end": os.getloadavg(),
        "environment": environment(),
    }
    file = out or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: whoever has only so much time ends us at any moment.
    new = file.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.replace(file)
    print(json.dumps(results, indent=1), flush=True)
