"""Commands that judge models and show what they left: evaluate, report, monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_mhpo.cli.arguments import Overrides, ProtocolDifference, load, names, say, split_config


def evaluate(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Configuration; with --benchmarks as --config.")
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="Run folder, checkpoint or model; default: model.path of CONFIG.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default: OUTPUT_DIR/eval, with --benchmarks required.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the record, without --benchmarks.")] = "evaluation",
    benchmarks: Annotated[
        str | None, typer.Option(help="Comma-separated names, each with @SPLIT behind it if not its first.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="Default: that of MODEL's run, else configs/evaluation.yaml.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="NAME=PLACE of a benchmark's rows; once for each.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each benchmark.")] = None,
    probes: Annotated[str | None, typer.Option(help="blank,shuffled: greedy, without the right images.")] = None,
    train: Annotated[
        str | None, typer.Option(help="Training rows that must not be among the benchmarks' rows.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Report to compare with, row by row.")] = None,
    allow_protocol_difference: ProtocolDifference = False,
) -> None:
    """Accuracy on data.eval, greedy or Avg@k (eval.num_samples=k eval.temperature=1), or on --benchmarks.

    Run the same command again to continue after an interruption.
    """
    config, overrides = split_config(config, overrides)
    if benchmarks is None:
        _evaluate_heldout(config or config_file, overrides, model, out, name)
        return
    if model is None or out is None:
        raise typer.BadParameter("--benchmarks needs --model and --out")
    from vlm_mhpo.evaluation.command import evaluate_command

    text = evaluate_command(
        model=model,
        benchmarks=names(benchmarks),
        out=out,
        config=config_file or config,
        overrides=overrides,
        data=data or [],
        limit=limit,
        probes=names(probes or ""),
        train=train,
        baseline=baseline,
        allow_protocol_difference=allow_protocol_difference,
    )
    say(f"{text}\n{out}")


def _evaluate_heldout(
    config: Path | None, overrides: list[str], model: str | None, out: Path | None, name: str
) -> None:
    """Evaluate on data.eval and print the accuracy."""
    if config is None:
        raise typer.BadParameter("give a CONFIG whose data.eval is evaluated, or --benchmarks")
    parsed = load(config, overrides)
    from vlm_mhpo.evaluation.run import evaluate_held_out

    record, files = evaluate_held_out(parsed, model=model, out=out, name=name)
    say(
        f"accuracy {100 * record.accuracy:.1f} % ({100 * record.accuracy_low:.1f} to "
        f"{100 * record.accuracy_high:.1f} %), {record.num_rows} rows: {files[1]}"
    )


def report(
    places: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="Run, or evaluation reports: FOLDER or METHOD=FOLDER.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Page of a run (default RUN/report.html), or folder of a comparison (default runs/report)."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method or report that differences are taken against; default: the first.")
    ] = None,
    allow_protocol_difference: ProtocolDifference = False,
) -> None:
    """The page of a run, or evaluation reports against each other; those of one METHOD are its seeds."""
    from vlm_mhpo.evaluation.command import is_report, report_command

    if any(map(is_report, places)) or len(places) > 1:
        typer.echo(
            report_command(places, baseline=baseline, out=out, allow_protocol_difference=allow_protocol_difference)
        )
        return
    from vlm_mhpo.pages import write_report

    typer.echo(write_report(Path(places[0]), out))


def monitor(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run, also one that is training.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token_file: Annotated[Path | None, typer.Option(help="Secret of >= 32 bytes in a file of mode 0600.")] = None,
) -> None:
    """Serve the report of a run in a browser, live and read-only, until interrupted."""
    from vlm_mhpo.commands.monitor import serve

    serve(run_dir, host=host, port=port, token_file=token_file, say=typer.echo)
