"""The main job on a laptop: draw data, build a tiny model, warm start, MHPO, evaluation, report. Every stage is timed.

The stages are the ones of a real run: `prepare`, `sft`, `train` and `report` on a model folder that from_pretrained
reads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlm_mhpo.config import Config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.runtime.clock import Clock

NUM_TRAIN, NUM_HELDOUT, NUM_WARM_START = 4096, 512, 4096
NEXT_STEP = "bash scripts/train.sh configs/qwen2_5_vl_3b_geometry3k.yaml"


def default_config() -> Path:
    """configs/quickstart.yaml of the source tree that this package runs from."""
    file = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
    if not file.is_file():
        raise ConfigError("configs/quickstart.yaml is not beside the package: give the path of a configuration")
    return file


def run_quickstart(config: Config) -> dict[str, float]:
    """Run every stage under `config.output_dir`, which is made anew; returns accuracies (0 to 1) and seconds."""
    root = Path(config.output_dir)
    clear(root)
    clock = Clock()
    with clock("draw images"):
        draw(root, config.seed)
    with clock("build model"):
        from vlm_mhpo.models.tiny import build_tiny

        build_tiny(root / "tiny_model", seed=config.seed)
    with clock("warm start"):
        from vlm_mhpo.training.warm_start import warm_start

        warm_started = warm_start(stage_config(config, root, "warm_start", root / "tiny_model", data="warm_start"))
    with clock("reinforcement learning"):
        from vlm_mhpo.training.run import train

        rl = stage_config(config, root, "rl", warm_started, data="train")
        train(rl)
    run_dir = Path(rl.output_dir)
    with clock("report"):
        report = _finish_report(run_dir, _seconds_of(clock))
    before, after = (json.loads((run_dir / "eval" / f"{name}.json").read_text()) for name in ("before", "after"))
    _print_summary(before, after, _seconds_of(clock), report)
    return {"before": before["accuracy"], "after": after["accuracy"], **_seconds_of(clock)}


def clear(root: Path) -> None:
    """Remove an earlier quickstart; ConfigError when the folder holds something else."""
    if not root.exists():
        return
    if not (root / "tiny_model").exists() and any(root.iterdir()):
        raise ConfigError(f"output_dir={root} holds something that is not a quickstart: choose another folder")
    shutil.rmtree(root)


def draw(root: Path, seed: int) -> None:
    """Three parquet sets that share no image: warm start, training, held-out."""
    from data_prep.prepare.prepare import prepare
    from data_prep.synthetic import draw_datasets

    sets = draw_datasets(["shapes"], num_train=NUM_TRAIN, num_heldout=NUM_HELDOUT, num_sft=NUM_WARM_START, seed=seed)
    for name, rows in (("train", sets.train), ("heldout", sets.heldout), ("warm_start", sets.sft)):
        prepare(rows, root / "data" / name)


def stage_config(config: Config, root: Path, stage: str, model: Path, *, data: str) -> Config:
    """The configuration of one stage: its own folder, model and rows."""
    return config.model_copy(
        update={
            "output_dir": str(root / stage),
            "model": config.model.model_copy(update={"path": str(model)}),
            "data": config.data.model_copy(
                update={"train": str(root / "data" / data), "eval": str(root / "data" / "heldout")}
            ),
        }
    )


def _finish_report(run_dir: Path, seconds: dict[str, float]) -> Path:
    """Put the stage times into run.json and write the page and the image."""
    from vlm_mhpo.pages import write_report, write_result_picture

    file = run_dir / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stages": seconds}, indent=1))
    write_result_picture(run_dir, run_dir / "result.png")
    return write_report(run_dir)


def _print_summary(before: dict, after: dict, seconds: dict[str, float], report: Path) -> None:
    """What came out, how long each stage took, where the report is, what to do next."""
    console = Console()
    table = Table(title="quickstart")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.1f}")
    table.add_row("all", f"{sum(seconds.values()):.1f}")
    console.print(table)
    for title, record in (("warm start", before), ("after MHPO", after)):
        console.print(
            f"held-out accuracy, {title}: {100 * record['accuracy']:.1f} % "
            f"({100 * record['accuracy_low']:.1f} to {100 * record['accuracy_high']:.1f} %, "
            f"{record['num_rows']} images)"
        )
    console.print(f"report: {report}", soft_wrap=True)
    console.print(f"next, a real model: {NEXT_STEP}", soft_wrap=True)


def _seconds_of(clock: Clock) -> dict[str, float]:
    """Seconds of each stage, in order."""
    return {stage: round(seconds, 1) for stage, seconds in clock.totals.items()}
