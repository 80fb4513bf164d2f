"""Is a stopped and resumed run of this configuration the undisturbed one, to the last bit?"""

from __future__ import annotations

import json
from pathlib import Path

from vlm_mhpo.checkpoint import folder_of, safe_load
from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.commands.proofs.compare import first_difference, metrics_rows, weights_in
from vlm_mhpo.commands.proofs.launch import PROGRAM, run_or_fail, run_ranks, tail
from vlm_mhpo.commands.proofs.shrink import shrink, write_config
from vlm_mhpo.config import Config
from vlm_mhpo.errors import ConfigError, TrainingError


def check_resume(
    config: Config,
    folder: Path,
    *,
    num_ranks: int = 2,
    num_steps: int = 4,
    family: str | None = None,
    program: str = PROGRAM,
) -> list[Check]:
    """Train a tiny model straight, and once more with a stop on the way; compare what both left behind.

    Args:
        config: of the run that is asked about.
        folder: empty; the two runs lie in it afterwards.
        num_ranks: processes, on the CPU.
        num_steps: training steps, at least 2; the checkpoint is taken after half of them and the stop comes one later.
        family: of the tiny model; None = that of the configuration.
        program: what a rank runs.

    Raises:
        ConfigError: too few steps. TrainingError: a run failed.
    """
    if num_steps < 2:
        raise ConfigError(f"--steps {num_steps}: a run that is stopped on the way needs at least 2")
    small, findings = shrink(config, folder, num_ranks=num_ranks, family=family)
    saved = num_steps // 2
    straight, again = folder / "straight", folder / "again"
    for run_dir in (straight, again):
        write_run(small, run_dir, folder, num_steps, saved)
    launch(folder, "straight", num_ranks, program)
    stop(folder, saved + 1, num_ranks, program)
    before = (again / "metrics.jsonl").read_text().splitlines()[:saved]
    launch(folder, "again", num_ranks, program)
    after = (again / "metrics.jsonl").read_text().splitlines()[:saved]
    where = f"ZeRO-{config.deepspeed.zero_stage} on {num_ranks} rank(s), {num_steps} steps, stopped after {saved + 1}"
    findings.append(Check("ok", "runs", f"{where}, resumed from the checkpoint after {saved}"))
    if before == after:
        findings.append(Check("ok", "resumed", f"the first {saved} step(s) were not run again"))
    else:
        findings.append(Check("error", "resumed", "the run started over instead of going on from its checkpoint"))
    return [*findings, *compare_runs(straight, again, num_steps, saved)]


def write_run(config: Config, run_dir: Path, folder: Path, num_steps: int, saved: int) -> None:
    """The configuration of one of the two runs."""
    update = {
        "output_dir": str(run_dir),
        "train": config.train.model_copy(update={"max_steps": num_steps}),
        # All are kept, the middle one to be compared with the last.
        "checkpoint": config.checkpoint.model_copy(update={"save_steps": saved, "save_total_limit": num_steps}),
    }
    write_config(config.model_copy(update=update), folder / f"{run_dir.name}.yaml")


def launch(folder: Path, name: str, num_ranks: int, program: str) -> None:
    """Train a run to its end."""
    request = folder / f"{name}.json"
    request.write_text(json.dumps({"config": str(folder / f"{name}.yaml")}))
    run_or_fail(request, folder / f"{name}.log", num_ranks=num_ranks, program=program)


def stop(folder: Path, step: int, num_ranks: int, program: str) -> None:
    """Train the second run until it stops after `step`; TrainingError when it ends elsewhere."""
    request, log, mark = (folder / f"stopped.{ending}" for ending in ("json", "log", "mark"))
    asked = {"config": str(folder / "again.yaml"), "stop_after": step, "mark": str(mark)}
    request.write_text(json.dumps(asked))
    code = run_ranks(request, log, num_ranks=num_ranks, program=program)
    if not mark.exists():
        raise TrainingError(f"the run that was to stop ended with exit code {code}: {tail(log)}")


def compare_runs(straight: Path, again: Path, num_steps: int, saved: int) -> list[Check]:
    """What must be the same: metrics rows, weights, optimizer state; and weights that moved, else nothing was tried."""
    ends = [folder_of(run_dir / "checkpoints", num_steps) for run_dir in (straight, again)]
    middle = weights_in(folder_of(straight / "checkpoints", saved))
    weights = [weights_in(end) for end in ends]
    moved = first_difference(middle, weights[0])
    rows = [metrics_rows(run_dir) for run_dir in (straight, again)]
    steps = [row["step"] for row in rows[1]]
    expected = list(range(1, num_steps + 1))
    gaps = None if steps == expected else f"rows of steps {steps}, expected {expected}"
    return [
        verdict("weights moved", None if moved else "they did not, so that nothing could be seen", "after the stop"),
        verdict("metrics file", gaps, "no gap and no double row"),
        verdict("metrics rows", first_difference(*rows, "row"), f"{len(rows[0][0]) if rows[0] else 0} figures a row"),
        verdict("weights", first_difference(*weights), f"{len(weights[0])} tensors"),
        _shards_verdict(*ends),
    ]


def _shards_verdict(straight: Path, again: Path) -> Check:
    """DeepSpeed's shards: masters, moments, counters of every rank."""
    names = [sorted(str(file.relative_to(end)) for file in end.rglob("*.pt")) for end in (straight, again)]
    if not names[0] or names[0] != names[1]:
        return Check("error", "optimizer state", f"shards {names[0]} and {names[1]}")
    # Shards of the optimizer before those of the weights, so that what is named is the former.
    ordered = sorted(names[0], key=lambda name: "optim" not in name)
    pairs = ((name, safe_load(str(straight / name)), safe_load(str(again / name))) for name in ordered)
    found = (first_difference(one, other, name) for name, one, other in pairs)
    difference = next((each for each in found if each), None)
    return verdict("optimizer state", difference, f"{len(names[0])} shard(s)")


def verdict(subject: str, difference: str | None, seen: str) -> Check:
    """An error that names the difference, or what was the same."""
    return Check("error", subject, difference) if difference else Check("ok", subject, seen)
