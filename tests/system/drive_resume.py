"""Program of one rank: runs that continue copies of other runs' checkpoints, one after the other, from a list."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from vlm_mhpo.checkpoint import folder_of, steps_in
from vlm_mhpo.config import load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.run import open_training


def main(requests: Path) -> None:
    """Run everything that the file asks for."""
    ranks.start(1)
    for request in json.loads(requests.read_text()):
        if "source" in request:
            copy_run(Path(request["source"]), request["step"], Path(request["output_dir"]))
        config = load_config(request["config"], [*request["overrides"], f"output_dir={request['output_dir']}"])
        with open_training(config) as (loop, start):
            engine, record = loop.update.engine, request.get("record")
            if record:
                write_state(engine, Path(record) / "before.pt")
            loop.run(start)
            if record:
                write_state(engine, Path(record) / "after.pt")


def copy_run(source: Path, step: int, run_dir: Path) -> None:
    """Copy a run and leave of its checkpoints only the one at `step`."""
    if ranks.is_main():
        shutil.copytree(source, run_dir)
        root = run_dir / "checkpoints"
        for other in steps_in(root):
            if other != step:
                shutil.rmtree(folder_of(root, other))
    ranks.barrier()


def write_state(engine: Engine, file: Path) -> None:
    """Every trained parameter and its moments, whole and in float32, as DeepSpeed's own interface gives them."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if any(engine.optimizer.state.values()) and engine.zero_stage in (1, 2):
        # DeepSpeed links the moments of these stages at its first update only.
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
    values: dict[str, Any] = {}
    for name, parameter in engine.policy.named_parameters():
        if not parameter.requires_grad:
            continue
        state = engine.optimizer.state
        # An optimizer that has not stepped has no moments yet.
        keys = ("exp_avg", "exp_avg_sq") if any(state.values()) else ()
        if engine.zero_stage == 0:
            values |= {f"{name} {key}": state[parameter][key].clone() for key in keys}
            values[name] = parameter.detach().clone()
        else:
            values |= {f"{name} {key}": safe_get_full_optimizer_state(parameter, key) for key in keys}
            values[name] = safe_get_full_fp32_param(parameter)
    values |= {"steps": sorted({float(each["step"]) for each in engine.optimizer.state.values() if "step" in each})}
    if engine.zero_stage < 3:
        values |= {f"{name} in use": parameter.detach().clone() for name, parameter in engine.policy.named_parameters()}
    if ranks.is_main():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(values, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
