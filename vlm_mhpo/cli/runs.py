"""Commands that train, and that look into a run: quickstart, sft, train, compare, export, replay, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_mhpo.cli.arguments import ConfigPath, Overrides, load, say, split_config


def quickstart(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Default: configs/quickstart.yaml.")] = None,
    overrides: Overrides = None,
) -> None:
    """Draw a visual-math set, build a tiny Qwen2.5-VL, warm-start it, fine-tune it with MHPO, report."""
    from vlm_mhpo.commands.quickstart import default_config, run_quickstart

    config, overrides = split_config(config, overrides)
    run_quickstart(load(config or default_config(), overrides))


def sft(config: ConfigPath, overrides: Overrides = None) -> None:
    """Warm start: imitate the `solution` of each row; the model lands in OUTPUT_DIR/policy."""
    parsed = load(config, overrides)
    from vlm_mhpo.training.warm_start import warm_start

    folder = warm_start(parsed)
    say(f"warm-started model: {folder}")


def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """RL fine-tuning. Run the same command again to continue after an interruption."""
    parsed = load(config, overrides)
    from vlm_mhpo.training.run import train as run

    record = run(parsed)
    if record:
        say(f"held-out accuracy: {100 * record['accuracy']:.1f} % ({record['num_rows']} rows)")
    from vlm_mhpo.records.run_folder import load_best

    if best := load_best(Path(parsed.output_dir)):
        say(f"best checkpoint: {best}")
    say(f"run folder: {parsed.output_dir}")


def compare(
    config: ConfigPath,
    overrides: Overrides = None,
    objectives: Annotated[str, typer.Option(help="Comma-separated, for example mhpo,grpo,mhpo:c=1.0.")] = "mhpo,grpo",
    seeds: Annotated[str, typer.Option(help="FIRST..LAST or a list such as 0,1,2.")] = "0..7",
    baseline: Annotated[str, typer.Option(help="What the paired differences are taken against.")] = "grpo",
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the report; continues where it stopped.")] = Path(
        "runs/comparison"
    ),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
) -> None:
    """Train objectives on the same task, order, start and sampling seeds; report intervals and paired differences."""
    from vlm_mhpo.commands.study.compare import compare as run

    page = run(config, overrides or [], objectives=objectives, seeds=seeds, baseline=baseline, out=out, num_jobs=jobs)
    typer.echo(page.with_suffix(".md").read_text())
    typer.echo(page)


def export(
    source: Annotated[str, typer.Argument(help="Run folder or checkpoint.")],
    out: Annotated[Path, typer.Option(help="New folder that from_pretrained loads.")],
    which: Annotated[
        str, typer.Option(help="Checkpoint of a run, newest or best; best needs checkpoint.keep_best.")
    ] = "newest",
    merge: Annotated[bool, typer.Option("--merge", help="Write an adapter and its base as one model.")] = False,
) -> None:
    """Copy the trained policy (safetensors and processor; of model.lora the adapter) out of a run."""
    if which not in ("newest", "best"):
        raise typer.BadParameter(f"--which {which}: newest or best")
    from vlm_mhpo.checkpoint.exporting import export as copy

    typer.echo(copy(source, out, which, merge=merge))


def replay(
    dump: Annotated[Path, typer.Argument(help="Folder of a bad step, RUN/dumps/step_N.")],
    model: Annotated[str | None, typer.Option(help="Run, checkpoint or model; default: the dump's.")] = None,
) -> None:
    """Repeat a bad step on one process and name the completions that are not finite; exit 1 if there are any."""
    from vlm_mhpo.commands.replay import report

    text, is_finite = report(dump, model)
    typer.echo(text)
    raise typer.Exit(0 if is_finite else 1)


def profile(
    config: ConfigPath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured, after one that is not.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for profile.json and profile.png; default: OUTPUT_DIR/profile.")
    ] = None,
) -> None:
    """Train a few steps, without checkpoints or evaluation, and show where time and memory go and what to change."""
    parsed = load(config, overrides)
    from vlm_mhpo.commands.profiling.run import profile_run

    folder = out or Path(parsed.output_dir) / "profile"
    profile_run(parsed, num_steps=steps, out=folder)
    say(f"{folder}/profile.png and profile.json")
