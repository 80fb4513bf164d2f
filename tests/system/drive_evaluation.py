"""Evaluations in one process a rank, with small chunks; one that is to die is killed in the middle of a write."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from vlm_mhpo.config import load_config
from vlm_mhpo.evaluation import shards, tasks
from vlm_mhpo.evaluation.benchmark_run import Options
from vlm_mhpo.evaluation.chosen import choose
from vlm_mhpo.evaluation.run import evaluate_benchmarks
from vlm_mhpo.runtime import ranks

CHUNK_SIZE = 3


def die_in_chunk(number: int) -> None:
    """Replace the write of chunk `number` (from 1) by half of it and a kill."""
    write, written = shards.append_chunk, []

    def append(file: Path, items: Any) -> None:
        written.append(file)
        before = file.stat().st_size if file.exists() else 0
        write(file, items)
        if len(written) == number:
            size = file.stat().st_size
            os.truncate(file, before + (size - before) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    shards.append_chunk = append


def count_rows() -> list[int]:
    """The rows of each chunk that this process judges."""
    judge, counts = tasks.judge_rows, []

    def judge_rows(task: Any, by: Any, places: Any, on_groups: Any = None) -> Any:
        counts.append(len(places))
        return judge(task, by, places, on_groups)

    tasks.judge_rows = judge_rows
    return counts


def main() -> None:
    """Run what the file of requests asks for: {config, overrides, benchmarks, out, probes, dies_in_chunk}."""
    for request in json.loads(Path(sys.argv[1]).read_text()):
        counts = count_rows()
        if request.get("dies_in_chunk"):
            die_in_chunk(request["dies_in_chunk"])
        config = load_config(request["config"], request["overrides"])
        chosen = choose(request["benchmarks"], folder=Path("data/benchmarks"))
        options = Options(Path(request["out"]), tuple(request["probes"]), chunk_size=CHUNK_SIZE)
        evaluate_benchmarks(config, chosen, config.model.path, options)
        rank = os.environ.get("RANK", "0")
        (Path(request["out"]) / f"judged.{rank}").write_text(str(sum(counts)))


if __name__ == "__main__":
    main()
    # Without the interpreter's teardown, in which a rank whose peer is gone already may abort.
    ranks.end(0)
