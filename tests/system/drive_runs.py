"""Program of one rank: whole runs of the trainer or the warm start, one after the other, as a JSON file lists them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests import builders
from tests.system.batches import scored_groups
from vlm_mhpo.config import load_config
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training import loop as trainer
from vlm_mhpo.training.assembly import Setup
from vlm_mhpo.training.update import log_probs_of
from vlm_mhpo.training.warm_start import warm_start


def main(requests: Path) -> None:
    """Run everything that the file asks for."""
    ranks.start(1)
    for request in json.loads(requests.read_text()):
        if copied := request.get("interrupted"):
            interrupt(Path(copied), Path(request["output_dir"]))
        config = load_config(request["config"], [*request["overrides"], f"output_dir={request['output_dir']}"])
        if request.get("sft"):
            warm_start(config)
            continue
        original = trainer.loop
        if request.get("probe"):
            trainer.loop = probing(original, Path(request["probe"]))
        trainer.train(config)
        trainer.loop = original


def interrupt(finished: Path, run_dir: Path) -> None:
    """Copy a finished run of four steps and make it one that was killed after its third row: checkpoint at step 2."""
    if ranks.is_main():
        shutil.copytree(finished, run_dir)
        shutil.rmtree(run_dir / "checkpoints" / "step_000004")
        metrics = run_dir / "metrics.jsonl"
        kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= 3]
        metrics.write_text("\n".join(kept) + '\n{"step": 4, "rew')
    ranks.barrier()


def probing(loop: Any, file: Path) -> Any:
    """The training loop, followed by log-probs of fixed completions by the trained engine, as it is partitioned."""

    def run(setup: Setup, objective: Any, *rest: Any) -> None:
        loop(setup, objective, *rest)
        settings = trainer.update_settings(setup.config, setup.codec, objective)
        groups = scored_groups(builders.Tiny("", Path(), setup.policy, setup.codec), "mixed")
        values = log_probs_of(setup.engine, setup.policy, groups, settings)
        if ranks.is_main():
            file.write_text(json.dumps(values))

    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
