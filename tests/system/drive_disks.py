"""Program of one rank: commands that write a folder, where that folder is another disk on every rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_mhpo import cli
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import VlmMhpoError
from vlm_mhpo.evaluation.benchmark_run import Options
from vlm_mhpo.evaluation.chosen import choose
from vlm_mhpo.evaluation.run import evaluate_benchmarks
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.warm_start import warm_start


def main(request: Path) -> None:
    """{arguments, benchmark, out, answers}: what a warm start and an evaluation say goes to the folder `answers`, by
    rank; the last is `vlm-mhpo train ARGUMENTS`, as a user starts it."""
    asked = json.loads(request.read_text())
    ranks.start(1)
    config = load_config(asked["arguments"][0], asked["arguments"][1:])
    chosen = choose([asked["benchmark"]], folder=Path("data/benchmarks"))
    commands: dict[str, Callable[[], Any]] = {
        "sft": lambda: warm_start(config),
        "evaluate": lambda: evaluate_benchmarks(config, chosen, config.model.path, Options(Path(asked["out"]))),
    }
    answers = {}
    for name, command in commands.items():
        try:
            answers[name] = repr(command())
        except VlmMhpoError as error:
            answers[name] = f"{type(error).__name__}: {error}"
    (Path(asked["answers"]) / f"rank{ranks.rank()}.json").write_text(json.dumps(answers))
    sys.argv = ["vlm-mhpo", "train", *asked["arguments"]]
    cli.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
