"""A profile as a table, an image and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vlm_mhpo.commands.profiling.advice import advise, percent
from vlm_mhpo.commands.profiling.figures import GROUPS, PHASES, Profile, Stage, merge
from vlm_mhpo.config import Config
from vlm_mhpo.pages.plotting import ACCENT, GREYS, INK, MUTED, PAPER, chart_style
from vlm_mhpo.records.run_file import git_commit, versions
from vlm_mhpo.runtime.secrets import without_secrets

STAGES = {"sample": "sample", "log_probs": "log-probs", "update": "train"}
GIB = 2**30


def write_profile(profiles: Sequence[Profile], config: Config, out: Path) -> None:
    """Print the table and the advice, write profile.json and profile.png into `out`.

    Args:
        profiles: one per rank.
        config: of the run.
        out: an existing folder.
    """
    profile = merge(profiles)
    sentences = advise(profile, config)
    (out / "profile.json").write_text(json.dumps(record(profiles, profile, sentences, config), indent=1))
    draw_profile(profile, out / "profile.png")
    console = Console()
    console.print(_phase_table(profile))
    console.print(_stage_table(profile))
    console.print(conditions(profile))
    for sentence in sentences:
        console.print(f"-> {sentence}", style="bold", soft_wrap=True)


def record(profiles: Sequence[Profile], profile: Profile, sentences: Sequence[str], config: Config) -> dict[str, Any]:
    """What profile.json holds: figures a step, those of each rank, advice, configuration and versions."""
    stages = {
        stage.name: asdict(stage)
        | {
            "prompt_tokens_per_s": stage.prompt_tokens / stage.seconds,
            "completion_tokens_per_s": stage.completion_tokens / stage.seconds,
            "utilisation": profile.utilisation(stage.name),
            "waste": stage.waste,
        }
        for stage in profile.stages
    }
    return {
        "wall_s": profile.wall_s,
        "shares": {phase.name: phase.seconds / profile.wall_s for phase in profile.phases},
        **asdict(profile),
        "stages": stages,
        "advice": list(sentences),
        "by_rank": [asdict(each) for each in profiles] if len(profiles) > 1 else [],
        "config": without_secrets(config.model_dump()),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _phase_table(profile: Profile) -> Table:
    """Seconds, share, calls and peak memory of every phase, with a line above those that belong together."""
    title = f"{profile.wall_s:.3f} s a step, mean of {len(profile.step_seconds)}; peak: {profile.memory_kind}"
    table = Table(title=title, title_justify="left")
    table.add_column("phase")
    for column in ("s a step", "share", "calls a step", "peak GiB"):
        table.add_column(column, justify="right")
    for name, words in lines(profile):
        calls = next((phase.calls for phase in profile.phases if phase.name == name), 0.0)
        peak = profile.peak_bytes(name)
        table.add_row(
            words,
            f"{profile.seconds(name):.4f}",
            percent(profile.share(name)),
            f"{calls:.0f}" if calls else "",
            f"{peak / GIB:.2f}" if peak else "",
        )
    return table


def lines(profile: Profile) -> Iterator[tuple[str, str]]:
    """(phase or group, words) in the order of a step, parts indented below their group."""
    last = ""
    for phase in profile.phases:
        group, _, part = phase.name.partition("/")
        if part and group != last:
            yield group, GROUPS[group]
        last = group
        yield phase.name, ("  " if part else "") + PHASES[phase.name]


def _stage_table(profile: Profile) -> Table:
    """Sampling, log-probs and training: tokens a second, share of the matmul rate, tokens computed for nothing."""
    table = Table()
    table.add_column("")
    for column in ("prompt tok/s", "completion tok/s", "TFLOP a step", "of matmul", "padding"):
        table.add_column(column, justify="right")
    for stage in profile.stages:
        table.add_row(
            STAGES[stage.name],
            f"{stage.prompt_tokens / stage.seconds:,.0f}",
            f"{stage.completion_tokens / stage.seconds:,.0f}",
            f"{stage.flops / 1e12:.4g}",
            percent(profile.utilisation(stage.name)),
            percent(stage.waste),
        )
    return table


def conditions(profile: Profile) -> str:
    """On what it was measured."""
    beside = f"; prompts took {profile.background_prompts_s:.3f} s a step in other threads"
    return (
        f"{profile.num_ranks} rank(s) on {profile.device}, {profile.num_threads} thread(s) each, "
        f"{profile.busy_cores:.1f} of {profile.num_cores} cores busy; matmul rate in {profile.dtype} "
        f"{profile.matmul_flops_per_s / 1e12:.3g} TFLOP/s" + (beside if profile.background_prompts_s else "")
    )


def draw_profile(profile: Profile, out: Path) -> None:
    """Write the image (PNG): seconds and peak memory of each phase side by side."""
    shown = [phase for phase in profile.phases if phase.seconds >= 0.001 * profile.wall_s]
    names = [words_of(phase.name) for phase in shown]
    with chart_style():
        figure = Figure(figsize=(10, 1.2 + 0.3 * len(shown)), dpi=130, facecolor=PAPER, layout="constrained")
        time_ax, memory_ax = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        colors = [ACCENT if phase.name.startswith(("sample", "update")) else GREYS[2] for phase in shown]
        seconds = [phase.seconds for phase in shown]
        bars(time_ax, names, seconds, colors, [f"{s:.3g} s, {percent(s / profile.wall_s)}" for s in seconds])
        time_ax.set_title(f"{profile.wall_s:.3g} s a step", color=INK)
        gib = [phase.peak_bytes / GIB for phase in shown]
        bars(memory_ax, names, gib, [GREYS[0]] * len(shown), [f"{value:.2f}" if value else "" for value in gib])
        memory_ax.set_title(f"peak GiB ({profile.memory_kind})", color=INK)
        head = "     ".join(_stage_words(profile, stage) for stage in profile.stages)
        figure.suptitle(head, x=0.01, ha="left", fontsize=9)
        figure.savefig(out, format="png", metadata={"Software": None})


def words_of(name: str) -> str:
    """A phase's words with its group before them."""
    group = name.split("/")[0]
    return f"{GROUPS[group]}: {PHASES[name]}" if "/" in name else PHASES[name]


def _stage_words(profile: Profile, stage: Stage) -> str:
    """One stage in the image's head line."""
    rate = (stage.prompt_tokens + stage.completion_tokens) / stage.seconds
    return f"{STAGES[stage.name]} {rate:,.0f} tokens/s, {percent(profile.utilisation(stage.name))} of the matmul rate"


def bars(ax: Axes, names: Sequence[str], values: Sequence[float], colors: Sequence[str], labels: Sequence[str]) -> None:
    """Horizontal bars from top to bottom with a label at each end."""
    drawn = ax.barh(range(len(names)), values, color=colors, height=0.7)
    ax.bar_label(drawn, labels, padding=3, color=MUTED, fontsize=8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.35 * max(values, default=0.0) or 1.0)
    ax.grid(False)
    ax.set_xticks([])
