"""Program of one rank: loads each folder of a JSON file under a ZeRO stage, saves it, and notes what was refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vlm_mhpo.checkpoint.policy_folder import save_policy
from vlm_mhpo.config import load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.runtime import ranks


def main(requests: Path) -> None:
    """Run every job."""
    ranks.start(1)
    for job in json.loads(requests.read_text()):
        try:
            save(job)
        except ModelError as error:
            Path(f"{job['out']}.rank{ranks.rank()}.txt").write_text(str(error))
        ranks.barrier()


def save(job: dict[str, Any]) -> None:
    """Load under the engine and save, as a run does."""
    config = load_config(job["config"], job["overrides"])
    settings = deepspeed_settings(config.deepspeed, dtype=config.model.dtype, max_grad_norm=1.0)
    merges = job.get("merges", False)
    policy, codec = load_policy(job["folder"], dtype=config.model.dtype, zero3_settings=settings, merges_adapter=merges)
    engine = Engine(policy, optimizer=config.train, deepspeed=config.deepspeed, dtype=config.model.dtype)
    save_policy(engine, codec, Path(job["out"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
