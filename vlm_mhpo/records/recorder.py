"""What a run leaves behind while it trains: run.json, metrics.jsonl, TensorBoard events, sample tables."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlm_mhpo.config import LoggingConfig
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.records.images import store_media
from vlm_mhpo.records.norms import NormHistory
from vlm_mhpo.types import ScoredGroup, StepUpdate


class Recorder:
    """Writes the records of one run on the main rank; on other ranks nobody makes one.

    Args:
        run_dir: folder of the run.
        logging: what is written beside metrics.jsonl.
        start_step: steps that a checkpoint already holds; later rows of an interrupted run are dropped, so that the
            file has neither a gap nor a double row.
    """

    def __init__(self, run_dir: Path, logging: LoggingConfig, *, start_step: int) -> None:
        self.run_dir = run_dir
        self.logging = logging
        run_dir.mkdir(parents=True, exist_ok=True)
        self.metrics_file = run_dir / "metrics.jsonl"
        self.updates_file = run_dir / "updates.jsonl"
        for file in (self.metrics_file, self.updates_file):
            # A run without a finished step evaluates again before the first: row 0 would be there twice.
            keep_rows(file, start_step or -1)
        self._norms = NormHistory(_norms_in(self.updates_file))
        self._tensorboard = None
        if logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)
        check_loggers(logging)
        self._wandb = _start_wandb(run_dir) if logging.wandb else None

    def write(self, step: int, metrics: dict[str, float], update: StepUpdate, scored: Sequence[ScoredGroup]) -> None:
        """Everything of finished step `step` (1-based): metrics, what each update did, the sample table if due."""
        self.write_metrics(step, metrics | self._norms.add(update.grad_norms))
        self.write_update(step, update)
        self.write_samples(step, scored)

    def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append a row of metrics everywhere."""
        with self.metrics_file.open("a") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if self._tensorboard:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(metrics, step=step)

    def lacks(self, step: int, name: str) -> bool:
        """Whether the last row is that of training step `step` and has no metric `name`."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.exists() else []
        row = json.loads(lines[-1]) if lines else {}
        return row.get("step") == step and name not in row

    def amend(self, step: int, metrics: dict[str, float]) -> None:
        """Add metrics to the last row, which is that of `step`."""
        *rows, last = self.metrics_file.read_text().splitlines()
        row = json.loads(last)
        if row["step"] != step:
            raise ValueError(f"{self.metrics_file}: the last row is of step {row['step']}, not {step}")
        replacement = self.metrics_file.with_suffix(".tmp")
        replacement.write_text("".join(line + "\n" for line in rows))
        replacement.replace(self.metrics_file)
        self.write_metrics(step, {name: value for name, value in row.items() if name != "step"} | metrics)

    def write_update(self, step: int, update: StepUpdate) -> None:
        """Append what each update of the step did, and its histograms, to updates.jsonl."""
        row = {"step": step, "grad_norm": update.grad_norms, "kl_to_sampler": update.kl_to_sampler}
        with self.updates_file.open("a") as stream:
            stream.write(json.dumps(row | {"histograms": update.histograms}) + "\n")

    def write_samples(self, step: int, scored: Sequence[ScoredGroup]) -> None:
        """Write the sample table of `step`: prompts with images, completions, rewards, verdicts."""
        if not self.logging.sample_steps or (step != 1 and step % self.logging.sample_steps):
            return
        folder = self.run_dir / "samples"
        folder.mkdir(exist_ok=True)
        rows = [
            row for group in scored[: self.logging.sample_prompts] for row in sample_rows(self.run_dir, step, group)
        ]
        (folder / f"step_{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def close(self) -> None:
        """Flush the writers."""
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def sample_rows(run_dir: Path, step: int, scored: ScoredGroup) -> list[dict[str, Any]]:
    """The rows of one group in the sample table."""
    row = scored.group.prompt.row
    images = store_media(run_dir, row)
    return [
        {
            "step": step,
            "prompt_id": row.id,
            "problem": row.conversation,
            "gold": row.answer,
            "equivalent_answers": row.equivalent_answers,
            "images": images,
            "completion": completion.text,
            "reward": scored.rewards[index],
            "rewards": {name: values[index] for name, values in scored.rewards_by_name.items()},
            "verdict": scored.verdicts[index],
            "extracted": scored.extracted[index],
            "num_tokens": len(completion.token_ids),
            "truncated": completion.truncated,
            "logged": {name: _plain(values[index]) for name, values in scored.columns.items()},
        }
        for index, completion in enumerate(scored.group.completions)
    ]


def _plain(value: Any) -> Any:
    """A value that a reward function logged, as JSON can hold it."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _norms_in(file: Path) -> list[float]:
    """The gradient norms that an updates.jsonl holds."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [norm for line in lines for norm in json.loads(line)["grad_norm"]]


def keep_rows(file: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, a torn last line included."""
    if not file.exists():
        return
    kept: list[str] = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > last_step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    replacement = file.with_suffix(".tmp")
    replacement.write_text("".join(kept))
    replacement.replace(file)


def check_loggers(logging: LoggingConfig) -> None:
    """ConfigError when a package that `logging` needs is not installed; costs nothing, so it comes before any model."""
    if logging.wandb and find_spec("wandb") is None:
        raise ConfigError("logging.wandb=true needs the package: pip install 'vlm-mhpo[wandb]'")


def _start_wandb(run_dir: Path):
    """A Weights & Biases run."""
    import wandb

    return wandb.init(project="vlm-mhpo", name=run_dir.name, dir=str(run_dir))
