"""Reads a run folder (run.json, metrics.jsonl, updates.jsonl, eval/*.json, samples/*.jsonl) into a `Run`."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.evaluation import Evaluation
from vlm_mhpo.records.histograms import NUM_BINS
from vlm_mhpo.records.nouns import BestCheckpoint, Run, RunFacts, Sample, Series, UpdateRow
from vlm_mhpo.records.reading import clean_text, json_lines, parse, read_text, tolerant


def load_run(run_dir: Path, *, may_be_empty: bool = False) -> Run:
    """Read a run folder; what is missing becomes a note, what is damaged an error.

    Args:
        run_dir: the folder that the trainer wrote.
        may_be_empty: take a run that has not finished a step.
    Raises:
        ReportError: no such folder, neither metrics.jsonl nor an evaluation in it, or a damaged file.
    """
    folder = Path(run_dir).resolve()
    if not folder.is_dir():
        raise ReportError(f"There is no run folder at {run_dir}; give the folder that the training run wrote.")
    notes: list[str] = []
    metrics = _load_metrics(folder / "metrics.jsonl", notes)
    evaluations = tuple(_load_evaluation(path, notes) for path in sorted(folder.glob("eval/*.json")))
    if not metrics and not evaluations and not may_be_empty:
        raise ReportError(
            f"{run_dir} has neither metrics.jsonl with a row in it nor eval/*.json, so there is nothing to report; "
            "give the folder of a training run, or run an evaluation into it first."
        )
    if not evaluations:
        notes.append("No evaluation (eval/*.json) in this run: no held-out accuracy and no gallery before and after.")
    return Run(
        folder=folder,
        facts=_load_facts(folder / "run.json", notes),
        metrics=metrics,
        evaluations=tuple(sorted(evaluations, key=_by_step)),
        samples=_load_newest_samples(folder, notes),
        notes=tuple(notes),
        histograms=_load_histograms(folder / "updates.jsonl", notes),
        best=load_best(folder),
    )


def load_best(folder: Path) -> BestCheckpoint | None:
    """The best checkpoint of a run; None where none is kept. ReportError for a damaged record of it."""
    path = folder / "checkpoints" / "best.json"
    return parse(BestCheckpoint, read_text(path), str(path)) if path.is_file() else None


def _by_step(evaluation: Evaluation) -> tuple[bool, int, str]:
    """Orders evaluations: those of this run's steps first, then those of other models."""
    return evaluation.step is None, evaluation.step or 0, evaluation.name


def _load_facts(path: Path, notes: list[str]) -> RunFacts:
    """run.json, or defaults and a note when it is missing."""
    if not path.is_file():
        notes.append("No run.json in this run: model, configuration and versions are not known.")
        return RunFacts()
    return parse(RunFacts, read_text(path), str(path))


def _load_evaluation(path: Path, notes: list[str]) -> Evaluation:
    """One eval/*.json; a doubled problem is an error, a number that its items contradict a note."""
    evaluation = parse(tolerant(Evaluation), read_text(path), str(path))
    ids = Counter(item.id for item in evaluation.items)
    for item_id, count in ids.items():
        if count > 1:
            raise ReportError(f"{path}: problem {item_id!r} is listed {count} times; run the evaluation again.")
    if len(ids) > evaluation.num_rows:
        notes.append(f"eval/{path.name} lists {len(ids)} problems but says num_rows {evaluation.num_rows}.")
    elif ids and len(ids) == evaluation.num_rows and evaluation.accuracy is not None:
        from_items = sum(item.share_correct for item in evaluation.items) / len(ids)
        if abs(from_items - evaluation.accuracy) > 1e-6:
            notes.append(
                f"eval/{path.name} says accuracy {evaluation.accuracy:.4f}, but its problems give {from_items:.4f}."
            )
    return evaluation


def _load_metrics(path: Path, notes: list[str]) -> dict[str, Series]:
    """metrics.jsonl as one series a metric; a step that was written again (a resumed run) keeps its last values."""
    if not path.is_file():
        notes.append("No metrics.jsonl in this run: no learning curves.")
        return {}
    columns: dict[str, dict[int, float]] = defaultdict(dict)
    num_dropped = 0
    for where, row in json_lines(path, notes):
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise ReportError(f"{where}: a row of metrics needs an integer 'step', found {step!r}; repair the file.")
        for name, value in row.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                columns[clean_text(name)][step] = float(value)
            else:
                num_dropped += 1
    if num_dropped:
        notes.append(f"{num_dropped} values in metrics.jsonl are not finite and are left out of the curves.")
    return {name: _series(by_step) for name, by_step in columns.items()}


def _series(by_step: dict[int, float]) -> Series:
    """Values by step, in step order."""
    steps = sorted(by_step)
    return Series(tuple(steps), tuple(by_step[step] for step in steps))


def _load_histograms(path: Path, notes: list[str]) -> dict[str, dict[str, list[int]]]:
    """The token counts of the last tenth of the steps, summed."""
    if not path.is_file():
        return {}
    lines = json_lines(path, notes)
    totals: dict[str, dict[str, list[int]]] = {}
    for where, line in lines[-max(1, len(lines) // 10) :]:
        for name, by_sign in parse(UpdateRow, line, where).histograms.items():
            for sign, trimmed in by_sign.items():
                counts = totals.setdefault(name, {}).setdefault(sign, [0] * NUM_BINS)
                for offset, count in enumerate(trimmed.counts):
                    counts[trimmed.first + offset] += count
    return totals


def _load_newest_samples(folder: Path, notes: list[str]) -> tuple[Sample, ...]:
    """The rows of the last file in samples/ (names carry zero-padded steps)."""
    files = sorted(folder.glob("samples/*.jsonl"))
    if not files:
        notes.append("No samples/ in this run: no completions from training.")
        return ()
    return tuple(parse(Sample, row, where) for where, row in json_lines(files[-1], notes))
