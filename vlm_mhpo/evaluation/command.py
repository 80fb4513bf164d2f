"""What `vlm-mhpo evaluate --benchmarks` and `vlm-mhpo report A B` do with their options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm_mhpo.config import load_config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.records.evaluation import results_file

# From RUN/checkpoints/step_N/policy up to RUN.
MAX_DEPTH = 3


def evaluate_command(
    *,
    model: str,
    benchmarks: Sequence[str],
    out: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    data: Sequence[str] = (),
    limit: int | None = None,
    probes: Sequence[str] = (),
    train: str | None = None,
    baseline: Path | None = None,
    allow_protocol_difference: bool = False,
) -> str:
    """Evaluate on benchmarks and return the summary as Markdown; options as the command describes them.

    Raises:
        ConfigError: an option names nothing that exists.
    """
    from vlm_mhpo.evaluation.benchmark_run import Options
    from vlm_mhpo.evaluation.chosen import choose
    from vlm_mhpo.evaluation.probes import PROBES
    from vlm_mhpo.evaluation.run import evaluate_benchmarks
    from vlm_mhpo.evaluation.tables import markdown

    for entry in data:
        if "=" not in entry:
            raise ConfigError(f"--data {entry!r} is not of the form name=PATH")
    for probe in probes:
        if probe not in PROBES:
            raise ConfigError(f"--probes {probe}: no such probe; use {' or '.join(PROBES)}")
    parsed = load_config(config or config_of(model), overrides)
    chosen = choose(
        benchmarks,
        folder=Path(parsed.eval.benchmark_dir),
        places=dict(entry.split("=", 1) for entry in data),
        limit=limit,
        prompt=parsed.eval.prompt,
    )
    options = Options(out, tuple(probes), train, baseline, allow_protocol_difference)
    return markdown(evaluate_benchmarks(parsed, chosen, model, options))


def config_of(model: str) -> Path:
    """The configuration of the run that `model` comes from, else configs/evaluation.yaml.

    So that a model is judged with the pixel limits and the system prompt that it was trained with.
    """
    place = Path(model)
    for folder in [place, *list(place.absolute().parents)[:MAX_DEPTH]] if place.exists() else []:
        if (folder / "run.json").is_file() and (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    shipped = Path(__file__).resolve().parents[2] / "configs" / "evaluation.yaml"
    if not shipped.is_file():
        raise ConfigError(f"{model} is of no run, and configs/evaluation.yaml is not beside the package: give --config")
    return shipped


def is_report(place: str) -> bool:
    """Whether METHOD=FOLDER or FOLDER names an evaluation report and not a training run."""
    return results_file(Path(place.partition("=")[2] or place)).is_file()


def report_command(
    places: Sequence[str], *, baseline: str | None, out: Path | None, allow_protocol_difference: bool
) -> str:
    """Compare evaluation reports and return the tables as Markdown; of a single one, write the page anew.

    Args:
        places: FOLDER or METHOD=FOLDER; those of one method are its runs (seeds).
        baseline: method, or one of the folders; None = the first.
        out: folder of comparison.json, .md, .tex, .csv, and of report.html for two reports under one protocol; None =
            runs/report. Of a single report the page; None = report.html in its folder.
        allow_protocol_difference: compare although protocols differ.
    """
    from vlm_mhpo.evaluation.compare import compare_reports, read_report
    from vlm_mhpo.evaluation.output import PAGE_FILE, write_comparison
    from vlm_mhpo.evaluation.tables import comparison_markdown
    from vlm_mhpo.pages.evaluation_page import write_page

    reports = [read_report(place) for place in places]
    if len(reports) == 1:
        page = out or reports[0].folder / PAGE_FILE
        return str(write_page(reports[0].folder, page, Path(baseline) if baseline else None))
    named = {place: report.method for place, report in zip(places, reports, strict=True)}
    chosen = named.get(baseline, baseline) if baseline else reports[0].method
    found = compare_reports(reports, chosen, allowed=allow_protocol_difference)
    out = out or Path("runs/report")
    write_comparison(out, found)
    # The page shows rows side by side, which unlike protocols do not allow.
    if len(reports) == 2 and len({report.results.protocol_hash for report in reports}) == 1:
        base, other = sorted(reports, key=lambda report: report.method != chosen)
        write_page(other.folder, out / PAGE_FILE, base.folder)
    return f"{comparison_markdown(found)}\n{out}"
