"""One self-contained HTML page of a training run, from a `Run` through a Jinja2 template.

Everything from the run is untrusted text: the template escapes all of it, and the page's own
content policy lets no script run but the one that is hashed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlm_mhpo.pages.gallery import OUTCOMES, Entry, Pair, choose_pair, compare, select
from vlm_mhpo.pages.html import digest, environment, flatten, leaf, shorten, source, write_text
from vlm_mhpo.pages.images import PictureBudget
from vlm_mhpo.pages.plotting import ends
from vlm_mhpo.pages.run_figures import draw_charts
from vlm_mhpo.records.evaluation import EvalItem
from vlm_mhpo.records.metric_table import REWARD
from vlm_mhpo.records.nouns import Run, Sample
from vlm_mhpo.records.reading import clean_text
from vlm_mhpo.records.run_folder import load_run

MAX_ITEMS = 60
MAX_PICTURE_BYTES = 6_000_000
MAX_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion as the page shows it; `score` is 'k of n' when there are several, else empty."""

    when: str
    right: bool
    verdict: str
    extracted: str
    text: str
    num_tokens: int | None
    truncated: bool
    score: str


@dataclass(frozen=True, slots=True)
class Card:
    """One held-out problem of the gallery, its images as data URIs."""

    outcome: str
    item: EvalItem
    pictures: tuple[str, ...]
    num_hidden: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """The completions of one prompt at one training step."""

    first: Sample
    pictures: tuple[str, ...]
    samples: tuple[Sample, ...]


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page of a run; the same folder gives the same bytes.

    Args:
        run_dir: the folder that the trainer wrote.
        out: the page to write, or a folder for `report.html`; None writes `report.html` into the run folder.
    Returns:
        the path of the page.
    Raises:
        ReportError: the folder holds nothing to show, or a file in it is damaged.
    """
    run = load_run(run_dir)
    path = Path(run_dir) / "report.html" if out is None else Path(out)
    return write_text(render(run), path / "report.html" if path.is_dir() else path)


def render(run: Run, *, live_version: str = "") -> str:
    """The page's HTML; with a version it is a live one, which asks its server whether there is a newer."""
    charts, undrawn = draw_charts(run)
    pair = choose_pair(run)
    entries = compare(pair) if pair else ()
    budget = PictureBudget(run.folder, MAX_PICTURE_BYTES)
    script = source("live.js", "page.js") if live_version else source("page.js")
    notes = [*run.notes]
    if run.metrics and undrawn:
        notes.append(f"Not recorded in this run, so not drawn: {', '.join(undrawn)}.")
    template = environment().get_template("page.html.j2")
    return template.render(
        run=run,
        live_version=live_version,
        description=_description(run),
        pair=pair,
        headline_reward=ends(reward) if (reward := run.series(REWARD)) else None,
        charts=[(chart, Markup(chart.svg)) for chart in charts],
        breakdowns=_breakdowns(pair) if pair else [],
        verdicts=_verdict_rows(pair) if pair else [],
        outcomes=OUTCOMES,
        totals=Counter(entry.outcome for entry in entries),
        cards=[_card(entry, pair, budget) for entry in select(entries, MAX_ITEMS)],
        sample_groups=_sample_groups(run.samples, budget),
        metric_rows=[(name, *_summary(series.values)) for name, series in sorted(run.metrics.items())],
        config_rows=list(flatten(run.facts.config)) if run.facts.config else [],
        notes=notes,
        style=source("page.css"),
        script=script,
        script_hash=digest(script),
        shorten=shorten,
    )


def _description(run: Run) -> list[tuple[str, str]]:
    """(what, value) lines under the title, as far as run.json knows them."""
    facts, config = run.facts, run.facts.config
    size = f"{_count(facts.model.num_parameters)} parameters" if facts.model.num_parameters else ""
    if facts.model.trainable is not None and facts.model.trainable != facts.model.num_parameters:
        size += f", {_count(facts.model.trainable)} trained"
    model_path = str(_look_up(config, "model", "path") or "").rstrip("/").rsplit("/", 1)[-1]
    steps = [series.steps[-1] for series in run.metrics.values()]
    generations = _look_up(config, "rollout", "num_generations")
    prompts = _look_up(config, "train", "num_prompts_per_step")
    batch = f", {prompts} prompts × {generations} completions per step" if prompts and generations else ""
    lines = {
        "model": ", ".join(part for part in (model_path, facts.model.family, size) if part),
        "objective": str(_look_up(config, "objective", "name") or "").upper(),
        "data": _listed(_look_up(config, "data", "train")),
        "held out": _listed(_look_up(config, "data", "eval")),
        "training": f"{max(steps)} steps{batch}" if steps else "",
        "seed": "" if facts.seed is None else str(facts.seed),
        "commit": (facts.git_commit or "")[:12],
        "best checkpoint": str(run.best or ""),
        "started": facts.started[:19].replace("T", " "),
        "changed on the way": "; ".join(
            f"after step {change.step}: {change.key} {leaf(change.before)} → {leaf(change.after)}"
            for change in facts.changes
        ),
    }
    return [(what, clean_text(value)) for what, value in lines.items() if value]


def _look_up(config: Mapping[str, Any], *keys: str) -> Any:
    """A nested configuration value, or None when the run's configuration does not have it."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _listed(value: Any) -> str:
    """A string, or the strings of a list joined by commas."""
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value or "")


def _breakdowns(pair: Pair) -> list[tuple[str, list[tuple]]]:
    """Accuracy by source and by kind: (title, [(name, rows, before, after)]); a table of one row is left out."""
    tables = []
    for title, field in (("Source", "by_source"), ("Kind", "by_kind")):
        after = getattr(pair.after, field)
        before = getattr(pair.before, field) if pair.before else {}
        rows = [
            (clean_text(name), part.num_rows, before[name].accuracy if name in before else None, part.accuracy)
            for name, part in sorted(after.items())
        ]
        if len(rows) > 1:
            tables.append((title, rows))
    return tables


def _verdict_rows(pair: Pair) -> list[tuple[str, int | None, int]]:
    """(verdict, count before, count after), most frequent after training first."""
    before = pair.before.verdicts if pair.before else None
    names = sorted({*pair.after.verdicts, *(before or {})}, key=lambda name: (-pair.after.verdicts.get(name, 0), name))
    return [
        (clean_text(name), None if before is None else before.get(name, 0), pair.after.verdicts.get(name, 0))
        for name in names
    ]


def _card(entry: Entry, pair: Pair, budget: PictureBudget) -> Card:
    """A gallery entry with its images and its answers."""
    pictures, num_hidden = _pictures(entry.item.images, budget)
    pairs = [(pair.before.name, entry.before)] if pair.before and entry.before else []
    pairs.append((pair.after.name, entry.item))
    answers = tuple(_answer(when, item) for when, item in pairs if item.completions)
    return Card(entry.outcome, entry.item, pictures, num_hidden, answers)


def _pictures(images: Sequence[str], budget: PictureBudget) -> tuple[tuple[str, ...], int]:
    """The data URIs of those that can be shown, and how many cannot."""
    uris = [uri for image in images if (uri := budget.uri(image)) is not None]
    return tuple(uris), len(images) - len(uris)


def _answer(when: str, item: EvalItem) -> Answer:
    """The first completion of an item, with the score of all of them."""
    first = item.completions[0]
    num_right = sum(c.correct for c in item.completions)
    score = f"{num_right} of {len(item.completions)} right" if len(item.completions) > 1 else ""
    return Answer(
        when=when,
        right=first.correct,
        verdict=first.verdict,
        extracted=first.extracted or "",
        text=shorten(first.text),
        num_tokens=first.num_tokens,
        truncated=first.truncated,
        score=score,
    )


def _sample_groups(samples: Sequence[Sample], budget: PictureBudget) -> list[SampleGroup]:
    """The newest training samples by prompt, in file order, at most MAX_SAMPLES completions."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples[:MAX_SAMPLES]:
        groups.setdefault(sample.prompt_id, []).append(sample)
    return [SampleGroup(group[0], _pictures(group[0].images, budget)[0], tuple(group)) for group in groups.values()]


def _summary(values: Sequence[float]) -> tuple[int, float, float, float, float]:
    """Count, first, last, smallest and largest of a metric's values."""
    return len(values), values[0], values[-1], min(values), max(values)


def _count(value: int) -> str:
    """A number of parameters: 812, 94.3 K, 1.10 M, 7.62 B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)
