"""`vlm-mhpo compare`: train what a command line names, then write the report of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlm_mhpo.commands.study.runs import plan, run_all
from vlm_mhpo.commands.study.variants import parse_seeds, parse_variants
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.pages.study_report import write_comparison
from vlm_mhpo.runtime.secrets import overrides_without_secrets


def compare(
    config: Path, overrides: Sequence[str], *, objectives: str, seeds: str, baseline: str, out: Path, num_jobs: int
) -> Path:
    """Run what is missing and write the report; returns its page, which has a Markdown file beside it.

    Args:
        config, overrides: of every run.
        objectives: see `parse_variants`; `baseline` is one of them, with or without its constants.
        seeds: see `parse_seeds`.
        out: folder of the runs and of the report.
        num_jobs: runs at a time.
    Raises:
        ConfigError: one of these is wrong; TrainingError: a run failed.
    """
    variants, chosen = parse_variants(objectives), parse_seeds(seeds)
    names = {variant.name for variant in variants}
    if baseline not in names and baseline in map(str.strip, objectives.split(",")):
        baseline = parse_variants(baseline)[0].name
    if baseline not in names:
        raise ConfigError(f"--baseline {baseline} is not among the objectives {objectives}")
    planned = plan(config, overrides, variants, chosen, out)
    changed = overrides_without_secrets(overrides) or "no overrides"
    return write_comparison(
        run_all(config, planned, num_jobs=num_jobs),
        out,
        baseline=baseline,
        title=f"Objectives on {config.stem}",
        description=f"{len(chosen)} seeds ({seeds}), {config.name} with {changed}.",
    )
