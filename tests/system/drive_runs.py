"""Program of one rank: whole runs of the trainer or the warm start, one after the other, as a JSON file lists them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests import builders
from tests.system.batches import scored_groups
from vlm_mhpo.config import load_config
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.forwards import log_probs_of
from vlm_mhpo.training.loop import Loop
from vlm_mhpo.training.run import open_training
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
        with open_training(config) as (loop, start):
            loop.run(start)
            if request.get("probe"):
                probe(loop, Path(request["probe"]))


def interrupt(finished: Path, run_dir: Path) -> None:
    """Copy a finished run of four steps and make it one that was killed after its third row: checkpoint at step 2."""
    if ranks.is_main():
        shutil.copytree(finished, run_dir)
        shutil.rmtree(run_dir / "checkpoints" / "step_000004")
        metrics = run_dir / "metrics.jsonl"
        kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= 3]
        metrics.write_text("\n".join(kept) + '\n{"step": 4, "rew')
    ranks.barrier()


def probe(loop: Loop, file: Path) -> None:
    """Write log-probs of fixed completions by the trained engine, as it is partitioned."""
    engine, codec = loop.update.engine, loop.prompts.build.__self__.codec
    groups = scored_groups(builders.Tiny("", Path(), engine.policy, codec), "mixed")
    values = log_probs_of(engine, engine.policy, groups, loop.update.settings)
    if ranks.is_main():
        file.write_text(json.dumps([row_T.tolist() for row_T in values]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
