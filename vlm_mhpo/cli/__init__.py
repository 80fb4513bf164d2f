"""The `vlm-mhpo` command: one subcommand a job, one clear sentence and a non-zero exit on bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_mhpo.cli import preflight, reports
from vlm_mhpo.cli.arguments import ConfigPath, Overrides, names, say

if TYPE_CHECKING:
    from data_prep import Row, RowError
    from data_prep.prepare.filters import Filter

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement learning of vision-language models on visual math with MHPO.",
)

Source = Annotated[
    str, typer.Argument(help="File, folder, path@split, org/name@split, or synthetic:FAMILY?seed=0&num_rows=100.")
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder that image paths are relative to; default: the table's own.")
]
Processor = Annotated[str | None, typer.Option(help="Model whose processor counts the tokens of prompts.")]


@app.command()
def quickstart(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Default: configs/quickstart.yaml.")] = None,
    overrides: Overrides = None,
) -> None:
    """Draw a visual-math set, build a tiny Qwen2.5-VL, warm-start it, fine-tune it with MHPO, report."""
    from vlm_mhpo.commands.quickstart import default_config, run_quickstart
    from vlm_mhpo.config import load_config

    if config is not None and "=" in str(config):
        config, overrides = None, [str(config), *(overrides or [])]
    run_quickstart(load_config(config or default_config(), overrides or []))


@app.command()
def prepare(
    source: Source,
    out: Annotated[Path, typer.Option(help="New folder for parquet and manifest.")],
    format: Annotated[str, typer.Option(help="Reader; auto = recognise.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    image_root: ImageRoot = None,
    min_side: Annotated[int | None, typer.Option(min=1, help="Least shorter side of a picture, pixels.")] = None,
    max_side: Annotated[int | None, typer.Option(min=1, help="Largest longer side of a picture, pixels.")] = None,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Least width x height of a picture.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest width x height of a picture.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt; needs --model.")] = None,
    model: Processor = None,
    kinds: Annotated[str | None, typer.Option(help="Keep these kinds of rows, for example number,math.")] = None,
    answer_forms: Annotated[
        str | None, typer.Option(help="Keep golds that look so, for example integer,decimal,fraction.")
    ] = None,
    heldout: Annotated[
        float | None,
        typer.Option(help="Split into train and heldout, about this share, with no picture in both."),
    ] = None,
    pass_rate: Annotated[
        str | None, typer.Option(help="Model that is sampled on every row; needs --config. Keeps what it half knows.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration whose prompts and sampling --pass-rate uses.", exists=True)
    ] = None,
    pass_samples: Annotated[int, typer.Option(min=1, help="Completions a row for --pass-rate.")] = 8,
    pass_bounds: Annotated[tuple[float, float], typer.Option(help="Least and largest rate that is kept.")] = (0.1, 0.9),
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of refused rows above which nothing is written.")
    ] = 0.01,
) -> None:
    """Check every row (image opens, gold verifies against itself), filter, write parquet with a manifest.

    Run the same command again to continue after an interruption.
    """
    from data_prep.loading import scan_rows
    from data_prep.prepare.filters import image_filters
    from data_prep.prepare.prepare import prepare as prepare_rows

    filters = image_filters(min_side=min_side, max_side=max_side, min_pixels=min_pixels, max_pixels=max_pixels)
    filters += row_filters(kinds, answer_forms, max_prompt_tokens, model)
    rows = scan_rows(source, format=format, split=split, image_root=image_root)
    with ExitStack() as stack:
        if pass_rate is not None:
            cache = out.with_name(f".{out.name}.pass_rates.jsonl")
            stage = rating(rows, filters, config, pass_rate, pass_samples, pass_bounds, cache)
            rows, chosen = stack.enter_context(stage)
            filters.append(chosen)
        report = prepare_rows(rows, out, max_bad_share=max_bad_share, filters=filters, heldout=heldout)
    typer.echo(
        f"{report.num_rows} rows in {report.out_dir}, {len(report.refused)} refused"
        + "".join(f", {number} dropped by {name}" for name, number in report.num_dropped.items())
        + (f" ({report.num_resumed} rows of an interrupted run)" if report.num_resumed else "")
    )
    for name, number in report.counts["split"].items() if heldout else ():
        typer.echo(f"{name}: {number} rows")


@app.command()
def audit(
    source: Source,
    against: Annotated[
        list[str] | None, typer.Option(help="Benchmark that the rows must not hold; give it once for each.")
    ] = None,
    format: Annotated[str, typer.Option(help="Reader of SOURCE; auto = recognise.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Only this split of SOURCE.")] = None,
    image_root: ImageRoot = None,
    model: Processor = None,
    near_limit: Annotated[
        int | None, typer.Option(min=0, max=255, help="Bits, of 256, up to which pictures are nearly the same.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.html and audit.json.")] = Path("runs/audit"),
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is a defect.")] = False,
) -> None:
    """Look for bad golds, pictures and placeholders, duplicates, and overlap with benchmarks and between splits."""
    from data_prep.audit import as_text, write_audit
    from data_prep.audit import audit as examine_rows
    from data_prep.images.hashes import NEAR_LIMIT

    found = examine_rows(
        source,
        against=against or [],
        format=format,
        split=split,
        image_root=image_root,
        count_tokens=token_counter(model) if model else None,
        near_limit=NEAR_LIMIT if near_limit is None else near_limit,
    )
    page = write_audit(found, out, format=format, split=split, image_root=image_root)
    typer.echo(as_text(found))
    typer.echo(f"\n{page}")
    if strict and found.num_defects:
        raise typer.Exit(1)


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None) -> None:
    """Warm start: imitate the `solution` of each row; the model lands in OUTPUT_DIR/policy."""
    from vlm_mhpo.config import load_config

    parsed = load_config(config, overrides or [])
    from vlm_mhpo.training.warm_start import warm_start

    folder = warm_start(parsed)
    say(f"warm-started model: {folder}")


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """RL fine-tuning. Run the same command again to continue after an interruption."""
    from vlm_mhpo.config import load_config

    parsed = load_config(config, overrides or [])
    from vlm_mhpo.training.run import train as run

    record = run(parsed)
    if record:
        say(f"held-out accuracy: {100 * record['accuracy']:.1f} % ({record['num_rows']} rows)")
    say(f"run folder: {parsed.output_dir}")


@app.command()
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
    from vlm_mhpo.commands.study.runs import plan, run_all
    from vlm_mhpo.commands.study.variants import parse_seeds, parse_variants
    from vlm_mhpo.errors import ConfigError
    from vlm_mhpo.pages.study_report import write_comparison
    from vlm_mhpo.runtime.secrets import overrides_without_secrets

    variants, chosen = parse_variants(objectives), parse_seeds(seeds)
    names = {variant.name for variant in variants}
    if baseline not in names and baseline in map(str.strip, objectives.split(",")):
        baseline = parse_variants(baseline)[0].name
    if baseline not in names:
        raise ConfigError(f"--baseline {baseline} is not among the objectives {objectives}")
    planned = plan(config, overrides or [], variants, chosen, out)
    changed = overrides_without_secrets(overrides or []) or "no overrides"
    measures = run_all(config, planned, num_jobs=jobs)
    page = write_comparison(
        measures,
        out,
        baseline=baseline,
        title=f"Objectives on {config.stem}",
        description=f"{len(chosen)} seeds ({seeds}), {config.name} with {changed}.",
    )
    typer.echo(page.with_suffix(".md").read_text())
    typer.echo(page)


@app.command()
def monitor(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run, also one that is training.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token_file: Annotated[Path | None, typer.Option(help="Secret of >= 32 bytes in a file of mode 0600.")] = None,
) -> None:
    """Serve the report of a run in a browser, live and read-only, until interrupted."""
    from vlm_mhpo.commands.monitor import serve

    serve(run_dir, host=host, port=port, token_file=token_file, say=typer.echo)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="Run folder or checkpoint.")],
    out: Annotated[Path, typer.Option(help="New folder that from_pretrained loads.")],
    which: Annotated[
        str, typer.Option(help="Checkpoint of a run, newest or best; best needs checkpoint.keep_best.")
    ] = "newest",
) -> None:
    """Copy the trained policy (safetensors and processor) out of a run."""
    if which not in ("newest", "best"):
        raise typer.BadParameter(f"--which {which}: newest or best")
    from vlm_mhpo.checkpoint.policy_folder import export as copy

    typer.echo(copy(source, out, which))


@app.command()
def replay(
    dump: Annotated[Path, typer.Argument(help="Folder of a bad step, RUN/dumps/step_N.")],
    model: Annotated[str | None, typer.Option(help="Run, checkpoint or model; default: the dump's.")] = None,
) -> None:
    """Repeat a bad step on one process and name the completions that are not finite; exit 1 if there are any."""
    from vlm_mhpo.commands.replay import report

    text, is_finite = report(dump, model)
    typer.echo(text)
    raise typer.Exit(0 if is_finite else 1)


@app.command()
def profile(
    config: ConfigPath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured, after one that is not.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder for profile.json and profile.png; default: OUTPUT_DIR/profile.")
    ] = None,
) -> None:
    """Train a few steps, without checkpoints or evaluation, and show where time and memory go and what to change."""
    from vlm_mhpo.config import load_config

    parsed = load_config(config, overrides or [])
    from vlm_mhpo.commands.profiling.run import profile_run

    folder = out or Path(parsed.output_dir) / "profile"
    profile_run(parsed, num_steps=steps, out=folder)
    say(f"{folder}/profile.png and profile.json")


def row_filters(
    kinds: str | None, answer_forms: str | None, max_prompt_tokens: int | None, model: str | None
) -> list[Filter]:
    """The filters of what a row says, as far as they are asked for."""
    from data_prep.prepare.filters import answer_form_filter, kind_filter, prompt_token_filter

    filters = [kind_filter(names(kinds))] if kinds else []
    filters += [answer_form_filter(names(answer_forms))] if answer_forms else []
    if max_prompt_tokens is not None:
        if model is None:
            raise typer.BadParameter("--max-prompt-tokens needs --model, whose processor counts them")
        filters.append(prompt_token_filter(token_counter(model), max_prompt_tokens, model))
    return filters


def rating(
    rows: Iterable[Row | RowError],
    filters: list[Filter],
    config: Path | None,
    model: str,
    num_samples: int,
    bounds: tuple[float, float],
    cache: Path,
) -> AbstractContextManager[tuple[Iterable[Row | RowError], Filter]]:
    """See `vlm_mhpo.commands.pass_rate.rated`; loads torch and the model."""
    if config is None:
        raise typer.BadParameter("--pass-rate needs --config, whose prompts and sampling it uses")
    from vlm_mhpo.commands.pass_rate import rated
    from vlm_mhpo.config import load_config

    return rated(rows, filters, load_config(config), model, num_samples=num_samples, bounds=bounds, cache=cache)


def token_counter(model: str) -> Callable[[Row], int]:
    """See `vlm_mhpo.prompts.token_counts`; loads transformers."""
    from vlm_mhpo.prompts.token_counts import token_counter as load_counter

    return load_counter(model)


for command in (*preflight.COMMANDS, *reports.COMMANDS):
    app.command()(command)


def main() -> None:
    """Entry point: known errors become one sentence; anything else keeps its traceback."""
    from data_prep import DataError
    from rewards import RewardError, VerifierError
    from vlm_mhpo.errors import Stopped, VlmMhpoError

    try:
        app()
    except VlmMhpoError as error:
        fail(error, error.exit_code, "stopped" if isinstance(error, Stopped) else "error")
    except (DataError, RewardError, VerifierError) as error:
        fail(error, 2)


def fail(error: Exception, code: int, label: str = "error") -> None:
    """Say what was wrong and end the process; other ranks are told by their launcher."""
    from vlm_mhpo.runtime.secrets import without_secrets

    typer.echo(f"{label}: {without_secrets(str(error))}", err=True)
    # Torch is loaded only where ranks can exist.
    if "torch" in sys.modules:
        from vlm_mhpo.runtime import ranks

        ranks.end(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
