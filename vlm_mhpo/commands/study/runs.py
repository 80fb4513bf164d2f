"""Start the runs of a comparison, several at a time; finished ones are not run again, interrupted ones continue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vlm_mhpo.checkpoint import steps_in
from vlm_mhpo.commands.study.variants import Variant
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import ConfigError, TrainingError
from vlm_mhpo.records.study import RunMeasures, measure
from vlm_mhpo.runtime.ranks import LAUNCHER_VARIABLES
from vlm_mhpo.runtime.secrets import without_secrets

SEED_PLACEHOLDER = "{seed}"


@dataclass(frozen=True, slots=True)
class Job:
    """One training run of a comparison."""

    variant: str
    seed: int
    run_dir: Path
    overrides: tuple[str, ...]


def plan(
    config: Path, overrides: Sequence[str], variants: Sequence[Variant], seeds: Sequence[int], out: Path
) -> list[Job]:
    """All jobs, seed after seed; every configuration is validated here, before the first run starts.

    `{seed}` in an override stands for the seed, for example in a warm start of its own for each.
    """
    jobs = []
    for seed in seeds:
        for variant in variants:
            run_dir = out / variant.name / f"seed_{seed}"
            common = [text.replace(SEED_PLACEHOLDER, str(seed)) for text in overrides]
            own = (*common, *variant.overrides, f"seed={seed}", f"output_dir={run_dir}")
            if not load_config(config, own).data.eval:
                raise ConfigError("a comparison needs held-out rows: set data.eval")
            jobs.append(Job(variant.name, seed, run_dir, own))
    return jobs


def run_all(config: Path, jobs: Sequence[Job], *, num_jobs: int) -> dict[str, dict[int, RunMeasures]]:
    """Run what is not finished, `num_jobs` at a time; returns the measures by variant and seed.

    Raises:
        TrainingError: a run failed; names it and the end of its log.
        ConfigError: a folder holds a run of another setting.
    """
    for job in jobs:
        _check_setting(config, job)
    waiting = [job for job in jobs if not is_finished(job)]
    with (
        ThreadPoolExecutor(num_jobs) as pool,
        tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="comparing", unit="run") as bar,
    ):
        futures = {pool.submit(_run_one, config, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                future.result()
                bar.set_postfix_str(f"{futures[future].variant} seed {futures[future].seed}")
                bar.update()
        finally:
            # After a failure, and after Ctrl-C, nothing new may start.
            pool.shutdown(wait=False, cancel_futures=True)
    results: dict[str, dict[int, RunMeasures]] = {}
    for job in jobs:
        results.setdefault(job.variant, {})[job.seed] = measure(job.run_dir)
    return results


def is_finished(job: Job) -> bool:
    """The run wrote its last evaluation and, after it, the last rows of its records."""
    after = job.run_dir / "eval" / "after.json"
    if not after.is_file():
        return False
    step = json.loads(after.read_text())["step"]
    return all(last_step(job.run_dir / name) == step for name in ("metrics.jsonl", "updates.jsonl"))


def last_step(file: Path) -> int | None:
    """The step of a record's last line; None when there is none or it is torn."""
    lines = file.read_text().splitlines() if file.is_file() else []
    try:
        return json.loads(lines[-1])["step"] if lines else None
    except ValueError:
        return None


def _setting_file(job: Job) -> Path:
    """Where the setting that a run was started with is kept, beside its folder."""
    return job.run_dir.with_suffix(".json")


def _setting_of(config: Path, job: Job) -> dict:
    """The resolved configuration of a job, as JSON values, without passwords and tokens."""
    return without_secrets(load_config(config, job.overrides).model_dump(mode="json"))


def _check_setting(config: Path, job: Job) -> None:
    """ConfigError when the job's folder was filled with another configuration."""
    file = _setting_file(job)
    if file.is_file() and json.loads(file.read_text()) != _setting_of(config, job):
        raise ConfigError(f"{job.run_dir} holds a run of another setting ({file}): choose another --out or remove it")


def _run_one(config: Path, job: Job) -> None:
    """One training process; its output goes to a log beside the run folder."""
    log = job.run_dir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    if job.run_dir.is_dir() and not steps_in(job.run_dir / "checkpoints"):
        # It died before its first checkpoint, so there is nothing to continue from.
        shutil.rmtree(job.run_dir)
    _setting_file(job).write_text(json.dumps(_setting_of(config, job), indent=1))
    command = [sys.executable, "-m", "vlm_mhpo.cli", "train", str(config), *job.overrides]
    with log.open("w") as stream:
        # One thread a process: several share the cores.
        # A run by itself, also when this process is, or was, a rank.
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        environment = inherited | {"OMP_NUM_THREADS": "1"}
        finished = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    if finished.returncode:
        end = log.read_text(errors="replace")[-300:].strip()
        raise TrainingError(f"{job.variant} with seed {job.seed} failed; see {log}: {end}")
