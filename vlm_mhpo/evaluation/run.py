"""From a configuration to an evaluation: the two that `vlm-mhpo evaluate` makes. The one reader of it in this room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint.opening import open_policy
from vlm_mhpo.config import Config
from vlm_mhpo.errors import ConfigError, NonFiniteError
from vlm_mhpo.evaluation.benchmark_run import (
    Options,
    ask_judge,
    benchmark_judge,
    finish,
    judge_benchmark,
    overlaps,
    protocol_of,
    ready_judge,
    start_report,
)
from vlm_mhpo.evaluation.chosen import BenchmarkRows
from vlm_mhpo.evaluation.held_out import judge_held_out, write_evaluation
from vlm_mhpo.evaluation.tasks import Judge, on_main
from vlm_mhpo.faults.agreement import check_same_folder, check_same_rows, check_same_setting, check_same_weights
from vlm_mhpo.faults.dump import unscored, write_dump
from vlm_mhpo.prompts.builder import prompt_builder
from vlm_mhpo.prompts.rows import read_rows, usable_rows
from vlm_mhpo.records.evaluation import Evaluation, Results
from vlm_mhpo.rollout.build import build_sampler, held_out_params
from vlm_mhpo.rollout.finite import NonFiniteGroups
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.scorer import start_verifier


@contextmanager
def _evidence(folder: Path, config: Config, model: str) -> Iterator[None]:
    """Inside, rows whose logits were not finite are kept in `folder/dumps/step_0`.

    Raises:
        NonFiniteError: on all ranks; names ranks, rows and the dump.
    """
    try:
        yield
    except NonFiniteGroups as problem:
        kept = write_dump(folder, 0, unscored(problem.groups), config.model_dump(), str(problem))
        raise NonFiniteError(f"{problem}. The rows are in {kept}: vlm-mhpo replay {kept} --model {model}") from problem


def evaluate_held_out(
    config: Config, *, model: str | None, out: Path | None, name: str
) -> tuple[Evaluation, tuple[Path, Path]]:
    """Judge `data.eval` rows; every rank holds a whole copy of the model and takes its share of the rows.

    Args:
        config: rows, prompt, decoding, pixel limits.
        model: run folder, checkpoint, model folder or hub name; None = `model.path`.
        out: folder of the records; None = `output_dir/eval`.
        name: of the record's files.

    Returns:
        The record and the paths of its JSON and Markdown files.
    """
    if not config.data.eval:
        raise ConfigError("data.eval is not set: name the rows to evaluate on")
    ranks.start(config.num_threads)
    data, folder = config.data, out or Path(config.output_dir) / "eval"
    asked = config.model.model_copy(update={"path": model or config.model.path})
    check_same_setting(config.model_dump(), folder)
    opened = open_policy(asked, Path(config.output_dir), "judge")
    check_same_weights(asked.path, opened.policy)
    builder = prompt_builder(data, opened.codec, opened.policy.family)
    rows = usable_rows(
        read_rows(data.eval, data, data.eval_split, data.max_eval_rows), builder, overlong="never", what="held-out"
    )
    check_same_rows(rows, "held-out rows")
    params = held_out_params(config.eval, config.rollout)
    sampler = build_sampler(config.rollout, opened.policy, opened.codec)
    with start_verifier(config.rewards) as verifier, _evidence(folder, config, opened.path):
        judge = Judge(builder, sampler, verifier, data.template, config.seed)
        step = 0 if model is None else checkpoint.step_of(Path(opened.path), folder.parent / "checkpoints")
        record = judge_held_out(
            rows, judge, params, name=name, step=step, image_dir=folder.parent, gallery=config.eval.gallery
        )
    files = (folder / f"{name}.json", folder / f"{name}.md")
    if ranks.is_main():
        files = write_evaluation(folder, record)
    ranks.barrier()
    return record, files


def evaluate_benchmarks(config: Config, chosen: Sequence[BenchmarkRows], model: str, options: Options) -> Results:
    """Judge every row of every benchmark and write results.json, tables, items and the page; the same on all ranks.

    Args:
        config: decoding, prompt, pixel limits.
        chosen: benchmarks with their rows.
        model: run folder, checkpoint, model folder or hub name.
        options: folder, probes, overlap, comparison.

    Raises:
        EvaluationError: the folder holds another evaluation or damaged records, the baseline cannot be compared, or
            the training rows cannot be read.
        JudgeError: the language model of `eval.judge` cannot be asked.
    """
    ranks.start(config.num_threads)
    check_same_setting(config.model_dump(), options.out)
    check_same_folder("--out", options.out)
    for one in chosen:
        check_same_rows(one.asked, f"rows of {one.name}")
    shared = on_main(lambda: overlaps(chosen, options.train, config.data))
    # Before anything is sampled, so that a judge who is not there is known at once.
    judging = config.eval.judge if any(one.benchmark.judge for one in chosen) else None
    asked = on_main(lambda: judging and ready_judge(judging, chosen, options.out))
    opened = open_policy(config.model.model_copy(update={"path": model}), options.out, "judge")
    check_same_weights(model, opened.policy)
    codec = opened.codec
    params = held_out_params(config.eval, config.rollout)
    state = on_main(
        lambda: start_report(
            protocol_of(config.eval, config.data, params, chosen, codec, asked), model, opened.path, options
        )
    )
    sampler = build_sampler(config.rollout, opened.policy, codec)
    with start_verifier(config.rewards) as verifier, _evidence(options.out, config, opened.path):
        judge = benchmark_judge(config.eval, config.data, params, codec, opened.policy.family, sampler, verifier)
        items = {one.name: judge_benchmark(one, judge, params, options, config.eval.gallery) for one in chosen}
    for one in chosen:
        items[one.name][""] = ask_judge(one, items[one.name][""], asked, options.out)
    return on_main(lambda: finish(chosen, items, shared, state, options))
