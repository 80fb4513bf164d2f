"""When the policy is judged while it trains, what is kept of that, and when a run ends as it no longer improves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from data_prep import Row
from vlm_mhpo.config import EvalConfig
from vlm_mhpo.evaluation.chosen import BenchmarkRows
from vlm_mhpo.evaluation.held_out import judge_held_out, write_evaluation
from vlm_mhpo.evaluation.results import accuracy_of
from vlm_mhpo.evaluation.tasks import Judge, Task, judge_in_memory
from vlm_mhpo.faults.stopping import Interrupted
from vlm_mhpo.records.evaluation import Evaluation
from vlm_mhpo.records.recorder import Recorder
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.guarded import Watch


class HeldOut:
    """The evaluations of a run: held-out rows by our verifier, benchmarks by their official rules.

    Args:
        config: when, and how early a run may end.
        rows: held-out rows; may be empty.
        judge: asks and judges them as training does, and gives up when the run is asked to stop.
        benchmarks: those of `eval.benchmarks`, with their rows.
        benchmark_judge: asks and judges those.
        params: decoding.
        run_dir: folder of the run.
        max_steps: of the run.
    """

    def __init__(
        self,
        config: EvalConfig,
        rows: Sequence[Row],
        judge: Judge,
        benchmarks: Sequence[BenchmarkRows],
        benchmark_judge: Judge,
        params: SamplingParams,
        *,
        run_dir: Path,
        max_steps: int,
    ) -> None:
        self._config, self._rows, self._judge = config, rows, judge
        self._benchmarks, self._benchmark_judge, self._params = benchmarks, benchmark_judge, params
        self._run_dir, self._max_steps = run_dir, max_steps

    def at_start(self, start: int, records: Recorder | None, watch: Watch) -> bool:
        """The evaluation before the first step, or the one after step `start` if a stop cut it off.

        Returns:
            Whether the run has ended early already.
        """
        watch.guard.watchdog.enter("evaluate", start)
        if start == 0:
            try:
                with watch.evidence(0):
                    metrics = self._judged(0, name="before") if self._config.before else {}
            except Interrupted:
                watch.leave(0, is_saved=True)
            if records and metrics:
                records.write_metrics(0, metrics)
            return False
        sought = "eval/accuracy" if self._rows else next((f"eval/{b.name}/accuracy" for b in self._benchmarks), None)
        # Only the main rank reads the records.
        if sought and ranks.largest(int(records is not None and records.lacks(start, sought))):
            with watch.evidence(start):
                metrics = self.if_due(start)
            if records and metrics:
                records.amend(start, metrics)
        return self._stops_early({}, start)

    def if_due(self, step: int) -> dict[str, float]:
        """Metrics of the evaluation after `step`; the one after the last step is kept as eval/after.json.

        {} when none is due, or when it was given up because of a stop: the run makes up for it when it continues.
        """
        if not self._is_due(step):
            return {}
        last = step == self._max_steps
        with suppress(Interrupted):
            return self._judged(step, name="after" if last else f"step_{step}", keep=last)
        return {}

    def ends_early(self, metrics: Mapping[str, float], step: int) -> bool:
        """Whether `eval.early_stop` ends the run after `step`; then its evaluation is kept as eval/after.json."""
        if not self._stops_early(metrics, step):
            return False
        with suppress(Interrupted):
            self._judge_rows(step, name="after", keep=True)
        return True

    def _is_due(self, step: int) -> bool:
        every = self._config.every
        return step == self._max_steps or bool(every and step % every == 0)

    def _judged(self, step: int, *, name: str, keep: bool = True) -> dict[str, float]:
        if self._rows or self._benchmarks:
            self._judge.sampler.sync(step)
        return _evaluation_metrics(self._judge_rows(step, name=name, keep=keep)) | self._benchmark_metrics()

    def _judge_rows(self, step: int, *, name: str, keep: bool) -> Evaluation | None:
        """The record of the held-out rows, None without any; with `keep` in eval/NAME.json and .md.

        Raises:
            Interrupted: on all ranks, when one was asked to stop.
        """
        if not self._rows:
            return None
        record = judge_held_out(
            self._rows,
            self._judge,
            self._params,
            name=name,
            step=step,
            image_dir=self._run_dir if keep else None,
            gallery=self._config.gallery,
        )
        if keep and ranks.is_main():
            write_evaluation(self._run_dir / "eval", record)
        return record

    def _benchmark_metrics(self) -> dict[str, float]:
        """eval/NAME/accuracy (official) and eval/NAME/our_accuracy of each benchmark, on all ranks."""
        metrics = {}
        for one in self._benchmarks:
            task = Task(one.name, one.benchmark, one.rows, one.asked, self._params)
            items = judge_in_memory(task, self._benchmark_judge)
            metrics[f"eval/{one.name}/accuracy"] = accuracy_of(items).accuracy
            metrics[f"eval/{one.name}/our_accuracy"] = accuracy_of(items, official=False).accuracy
        return metrics

    def _stops_early(self, metrics: Mapping[str, float], step: int) -> bool:
        """Whether the rule ends the run after `step` steps; the same on all ranks.

        Args:
            metrics: row of this step, if it is not in the file yet; the values up to now are read from the run's
                metrics.jsonl, so a continued run decides alike.
        """
        rule = self._config.early_stop
        if rule is None or step == self._max_steps or not self._is_due(step):
            return False
        stops = False
        if ranks.is_main():
            file = self._run_dir / "metrics.jsonl"
            rows = [*map(json.loads, file.read_text().splitlines() if file.is_file() else []), metrics]
            values = [row[rule.metric] for row in rows if rule.metric in row]
            stops = no_longer_improves(values, rule.patience)
            if stops:
                tqdm.write(
                    f"step {step}: {rule.metric} has no new best in {rule.patience} evaluations: the run ends here"
                )
        return ranks.gather_objects(stops)[0]


def no_longer_improves(values: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` values are all no higher than the best before them."""
    return len(values) > patience and max(values[-patience:]) <= max(values[:-patience])


def _evaluation_metrics(record: Evaluation | None) -> dict[str, float]:
    """The row of metrics.jsonl of an evaluation."""
    if record is None:
        return {}
    metrics = {"eval/accuracy": record.accuracy, "eval/mean_length": record.mean_length}
    return metrics | {f"eval/{source}/accuracy": part.accuracy for source, part in record.by_source.items()}
