"""The tables of a report: Markdown to read, LaTeX (booktabs) to print, CSV to compute with; each names the protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlm_mhpo.evaluation.compare import MethodScore, ReportComparison
from vlm_mhpo.pages.tables import csv_table, latex_table, markdown_table, plain
from vlm_mhpo.records.evaluation import Accuracy, BenchmarkComparison, BenchmarkResult, Difference, Results

CSV_HEAD = ("benchmark", "split", "group", "value", "metric", "num_rows", "score", "low", "high", "p", "protocol_hash")


def percent(share: float) -> str:
    """A share in percent with one decimal."""
    return f"{100 * share:.1f}"


def _with_interval(found: Accuracy | MethodScore) -> str:
    """Accuracy and its interval, percent; without one where runs are all alike."""
    if found.low is None:
        return f"{percent(found.accuracy)} (all runs alike)"
    return f"{percent(found.accuracy)} [{percent(found.low)}, {percent(found.high)}]"


def signed(found: Difference) -> str:
    """A difference, its interval in points, and its p-value."""
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}], {_p_value(found.p)}"


def _p_value(p: float) -> str:
    """A p-value as a paper prints it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def decoding(results: Results) -> str:
    """How completions were drawn, in words."""
    protocol = results.protocol
    drawn = (
        "greedy"
        if protocol.temperature == 0
        else f"Avg@{protocol.num_samples} at temperature {protocol.temperature:g}, top-p {protocol.top_p:g}"
    )
    return f"{drawn}, at most {protocol.max_tokens} tokens"


# Markdown


def markdown(results: Results) -> str:
    """The whole report as Markdown."""
    hashes = f"protocol {results.protocol_hash}"
    parts = [
        f"# Benchmarks: {plain(results.model)}",
        "",
        f"{decoding(results)}; {hashes}; {results.created_by}. Accuracy in percent with its 95 % interval.",
        "",
        markdown_table(SCORE_HEAD, map(_score_cells, results.benchmarks)),
        "",
        "## Verdicts of our verifier, percent of the completions",
        "",
        _verdict_table(results.benchmarks),
    ]
    for title, head, rows in (
        ("By a language model", JUDGE_HEAD, judged(results)),
        (f"Against {results.comparison.baseline}" if results.comparison else "", DIFFERENCE_HEAD, compared(results)),
        ("How much needs the image", PROBE_HEAD, probed(results)),
        ("Shared with the training rows", OVERLAP_HEAD, _overlapping(results)),
        ("By category", CATEGORY_HEAD, by_category(results)),
    ):
        if rows:
            parts += ["", f"## {plain(title)}", "", markdown_table(head, rows)]
    notes = [f"- {found.title}: {found.deviation}" for found in results.benchmarks if found.deviation]
    notes += [f"- {found.title}, language model: {found.judge.source}" for found in results.benchmarks if found.judge]
    if results.comparison:
        notes += [f"- differs from the baseline: {text}" for text in results.comparison.protocol_differences]
    parts += ["", "## Deviations", "", *map(plain, notes)] if notes else []
    return "\n".join([*parts, ""])


# The least share that a table with one decimal of a percent shows.
SHOWN_SHARE = 0.0005
SCORE_HEAD = ("benchmark", "rows", "official", "our verifier", "pass@k", "other scores", "tokens", "protocol")
DIFFERENCE_HEAD = ("benchmark", "rows", "difference, points", "better", "worse", "protocol")
JUDGE_HEAD = ("benchmark", "judge", "prompts", "official rule", "judge's score", "agree", "unreadable", "refused",
              "protocol")  # fmt: skip
PROBE_HEAD = ("benchmark", "probe", "rows", "accuracy without", "lost, points", "protocol")
OVERLAP_HEAD = ("benchmark", "training rows", "same image", "near image", "same question", "clean rows",
                "accuracy on clean", "protocol")  # fmt: skip
CATEGORY_HEAD = ("benchmark", "axis", "value", "rows", "official", "protocol")


def _titled(found: BenchmarkResult) -> str:
    """A benchmark's title, with its split where the title does not say it."""
    return found.title if found.split in found.title else f"{found.title} ({found.split})"


def _score_cells(found: BenchmarkResult) -> list[str]:
    """One benchmark's line of the summary."""
    j = found.num_samples
    return [
        _titled(found),
        str(found.num_rows) + (f" ({found.num_problems} problems)" if found.num_problems < found.num_rows else ""),
        _with_interval(found.scores.official) + _unanswered(found),
        _with_interval(found.scores.ours),
        f"{percent(found.pass_at[j])} (k = {j})",
        ", ".join(f"{name} {percent(value)}" for name, value in found.extra.items()) or "-",
        f"{found.mean_tokens:.0f}",
        found.protocol_hash,
    ]


def _unanswered(found: BenchmarkResult) -> str:
    """What of an official score was given to responses without an answer, where that shows in its last digit."""
    return f", {percent(found.unanswered)} of it without an answer" if found.unanswered >= SHOWN_SHARE else ""


def _verdict_table(benchmarks: Sequence[BenchmarkResult]) -> str:
    """Share of each verdict, a line a benchmark."""
    names = sorted({name for found in benchmarks for name in found.verdicts})
    rows = [
        [found.title, *(percent(found.verdicts.get(name, 0.0)) for name in names), found.protocol_hash]
        for found in benchmarks
    ]
    return markdown_table(["benchmark", *names, "protocol"], rows)


def judge_name(results: Results, found: BenchmarkResult) -> str:
    """The language model that judged a benchmark: as its server calls it, and as it was asked for if that differs."""
    pinned = results.protocol.benchmarks[found.name].judge
    if pinned is None:
        return ""
    return pinned.served if pinned.served == pinned.model else f"{pinned.served} (asked as {pinned.model})"


def judged(results: Results) -> list[list[str]]:
    """Lines of the scores by a language model, each beside that of the official rule."""
    return [
        [
            found.title,
            judge_name(results, found),
            pinned.prompts,
            _with_interval(found.scores.official),
            _with_interval(found.judge),
            percent(found.judge.agreement),
            str(found.judge.unreadable),
            str(found.judge.refused),
            found.protocol_hash,
        ]
        for found in results.benchmarks
        if found.judge and (pinned := results.protocol.benchmarks[found.name].judge)
    ]


def compared(results: Results) -> list[list[str]]:
    """Lines of the comparison with the baseline."""
    if not results.comparison:
        return []
    hashes = {found.name: found.protocol_hash for found in results.benchmarks}
    titles = {found.name: found.title for found in results.benchmarks}
    return [_difference_cells(titles[one.name], one, hashes[one.name]) for one in results.comparison.benchmarks]


def _difference_cells(label: str, found: BenchmarkComparison, protocol: str) -> list[str]:
    """One line of a comparison."""
    return [label, str(found.num_rows), signed(found), str(found.wins), str(found.losses), protocol]


def probed(results: Results) -> list[list[str]]:
    """Lines of the probes."""
    return [
        [
            found.title,
            name,
            str(probe.num_rows),
            _with_interval(probe),
            signed(probe.needs_picture),
            found.protocol_hash,
        ]
        for found in results.benchmarks
        for name, probe in found.probes.items()
    ]


def _overlapping(results: Results) -> list[list[str]]:
    """Lines of the overlap with training rows."""
    return [
        [
            found.title,
            f"{part.train} ({part.num_train_rows})",
            *map(str, (part.same_picture, part.near_picture, part.same_question, part.num_clean_rows)),
            _with_interval(part.clean) if part.clean else "-",
            found.protocol_hash,
        ]
        for found in results.benchmarks
        if (part := found.overlap)
    ]


def by_category(results: Results) -> list[list[str]]:
    """Lines of the categories."""
    return [
        [found.title, axis, value, str(part.num_rows), _with_interval(part), found.protocol_hash]
        for found in results.benchmarks
        for axis, values in found.categories.items()
        for value, part in values.items()
    ]


# LaTeX


def latex(results: Results) -> str:
    """The summary as a booktabs table, its protocol in the last line."""
    rows = [
        [
            _titled(found),
            str(found.num_rows),
            _with_interval(found.scores.official),
            _with_interval(found.scores.ours),
            percent(found.pass_at[found.num_samples]),
        ]
        for found in results.benchmarks
    ]
    k = results.protocol.num_samples
    head = ["Benchmark", "Rows", "Official", "Our verifier", f"pass@{k}"]
    if any(found.judge for found in results.benchmarks):
        head.append("Judge")
        judges = [
            f"{_with_interval(found.judge)} ({judge_name(results, found)})" if found.judge else "-"
            for found in results.benchmarks
        ]
        rows = [[*row, judge] for row, judge in zip(rows, judges, strict=True)]
    if results.comparison:
        by_name = {one.name: signed(one) for one in results.comparison.benchmarks}
        head.append(f"vs. {results.comparison.baseline}")
        rows = [[*row, by_name.get(found.name, "-")] for row, found in zip(rows, results.benchmarks, strict=True)]
    return latex_table(head, rows, f"{results.model}; {decoding(results)}; protocol {results.protocol_hash}")


# CSV


def csv_text(results: Results) -> str:
    """Every figure of the report, one per line."""
    comparisons = {one.name: one for one in results.comparison.benchmarks} if results.comparison else {}
    return csv_table(
        CSV_HEAD,
        (
            (found.name, found.split, group, value, metric, num_rows, *figures, found.protocol_hash)
            for found in results.benchmarks
            for group, value, metric, num_rows, figures in _csv_figures(found, comparisons.get(found.name))
        ),
    )


def _csv_figures(found: BenchmarkResult, compared: BenchmarkComparison | None) -> Iterator[tuple]:
    """(group, value, metric, rows, (score, low, high, p)) of a benchmark."""
    rows = found.num_rows
    yield "", "", "official_accuracy", rows, spread(found.scores.official)
    yield "", "", "our_accuracy", rows, spread(found.scores.ours)
    if found.judge:
        yield "", "", "judge_accuracy", rows, spread(found.judge)
        yield "", "", "judge_agreement", rows, (found.judge.agreement, "", "", "")
        yield "", "", "judge_unreadable", rows, (found.judge.unreadable, "", "", "")
        yield "", "", "judge_refused", rows, (found.judge.refused, "", "", "")
    for j, share in found.pass_at.items():
        yield "", "", f"pass@{j}", rows, (share, "", "", "")
    for name, share in found.extra.items():
        yield "", "", name, rows, (share, "", "", "")
    for verdict, share in found.verdicts.items():
        yield "verdict", verdict, "share", rows, (share, "", "", "")
    yield "", "", "mean_tokens", rows, (found.mean_tokens, "", "", "")
    for axis, values in found.categories.items():
        for value, part in values.items():
            yield axis, value, "official_accuracy", part.num_rows, spread(part)
    for name, probe in found.probes.items():
        yield "probe", name, "official_accuracy", probe.num_rows, spread(probe)
        yield "probe", name, "needs_picture", probe.num_rows, gap(probe.needs_picture)
    if found.overlap and found.overlap.clean:
        yield "overlap", "clean", "official_accuracy", found.overlap.num_clean_rows, spread(found.overlap.clean)
    if compared:
        yield "", "", "difference_to_baseline", compared.num_rows, gap(compared)


def spread(found: Accuracy | MethodScore) -> tuple:
    """The last columns of an accuracy."""
    return found.accuracy, found.low, found.high, ""


def gap(found: Difference) -> tuple:
    """The last columns of a difference."""
    return found.difference, found.low, found.high, found.p


# Several reports


COMPARISON_SCORES = ("method", "benchmark", "runs", "official accuracy", "protocol")
COMPARISON_DIFFERENCES = ("method", "benchmark", "rows", "over problems, points", "better", "worse",
                          "over runs, points", "protocol")  # fmt: skip
COMPARISON_CSV = ("method", "benchmark", "metric", "runs", "score", "low", "high", "p", "protocol_hash")


def comparison_markdown(found: ReportComparison) -> str:
    """Methods against the baseline as Markdown."""
    parts = [f"# Against {plain(found.baseline)}", f"Accuracy in percent; protocol {found.protocol_hash}."]
    parts += [
        markdown_table(COMPARISON_SCORES, _comparison_scores(found)),
        markdown_table(COMPARISON_DIFFERENCES, _comparison_differences(found)),
    ]
    if found.protocol_differences:
        parts += ["Protocols differ:", "\n".join(f"- {plain(text)}" for text in found.protocol_differences)]
    return "\n\n".join(parts) + "\n"


def _comparison_scores(found: ReportComparison) -> list[list[str]]:
    """Lines of the methods' accuracies."""
    return [[one.method, one.name, str(one.num_runs), _with_interval(one), found.protocol_hash] for one in found.scores]


def _comparison_differences(found: ReportComparison) -> list[list[str]]:
    """Lines of the methods' differences from the baseline."""
    return [
        [
            one.method,
            one.name,
            *(str(one.num_rows), signed(one), str(one.wins), str(one.losses)),
            signed(one.over_runs) if one.over_runs else "-",
            found.protocol_hash,
        ]
        for one in found.differences
    ]


def comparison_latex(found: ReportComparison) -> str:
    """Methods against the baseline as two booktabs tables."""
    note = f"protocol {found.protocol_hash}"
    return "\n".join(
        [
            latex_table(COMPARISON_SCORES[:-1], [row[:-1] for row in _comparison_scores(found)], note),
            latex_table(COMPARISON_DIFFERENCES[:-1], [row[:-1] for row in _comparison_differences(found)], note),
        ]
    )


def comparison_csv(found: ReportComparison) -> str:
    """Methods against the baseline, one figure per line."""
    scores = [(one.method, one.name, "official_accuracy", one.num_runs, *spread(one)) for one in found.scores]
    differences = [
        (one.method, one.name, metric, "", *gap(figures))
        for one in found.differences
        for metric, figures in (("difference_over_problems", one), ("difference_over_runs", one.over_runs))
        if figures
    ]
    return csv_table(COMPARISON_CSV, [(*row, found.protocol_hash) for row in (*scores, *differences)])
