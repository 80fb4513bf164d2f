"""Evaluate a model on benchmarks and leave a report's folder: resumable, over any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rewards import Verifier
from vlm_mhpo import __version__
from vlm_mhpo.config import Config
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.chosen import Chosen, benchmark_builder
from vlm_mhpo.evaluation.compare import compare_results
from vlm_mhpo.evaluation.output import write_outputs
from vlm_mhpo.evaluation.overlap import Shared, read_training, shared_rows
from vlm_mhpo.evaluation.probes import PROBES
from vlm_mhpo.evaluation.protocol import check_model, check_same, grader_version, protocol_hash, weights_digest
from vlm_mhpo.evaluation.results import benchmark_result, probe_score
from vlm_mhpo.evaluation.standalone import load_for_evaluation
from vlm_mhpo.evaluation.tasks import CHUNK_SIZE, Examiner, Task, on_main, run_task
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.records.evaluation import Item, Protocol, Results, State, read_record, read_results
from vlm_mhpo.rollout.base import Sampler
from vlm_mhpo.rollout.build import build_sampler, held_out_params
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.scorer import start_verifier

STATE_FILE = "evaluation.json"
GREEDY = "greedy"


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of an evaluation beside its configuration.

    Attributes:
        out: folder of the report; an interrupted evaluation in it is continued.
        probes: names of `probes.PROBES`.
        train: source of training rows that are looked for among the benchmarks' rows; None = not looked for.
        baseline: report to compare with; None = none.
        allow_protocol_difference: compare although something differs.
        chunk_size: rows that are sampled and written together.
    """

    out: Path
    probes: tuple[str, ...] = ()
    train: str | None = None
    baseline: Path | None = None
    allow_protocol_difference: bool = False
    chunk_size: int = CHUNK_SIZE


def evaluate_benchmarks(config: Config, chosen: Sequence[Chosen], model: str, options: Options) -> Results:
    """Judge every row of every benchmark and write results.json, tables, items and the page; the same on all ranks.

    Args:
        config: decoding, prompt, pixel limits.
        chosen: benchmarks with their rows.
        model: run folder, checkpoint, model folder or hub name.
        options: folder, probes, overlap, comparison.

    Raises:
        EvaluationError: the folder holds another evaluation or damaged records, the baseline cannot be compared, or
            the training rows cannot be read.
    """
    ranks.start(config.num_threads)
    shared = on_main(lambda: overlaps(chosen, options.train))
    path, policy, codec = load_for_evaluation(config, model, options.out)
    state = on_main(lambda: start_report(config, chosen, codec, model, path, options))
    sampler = build_sampler(config.rollout, policy, codec)
    with start_verifier(config.rewards) as verifier:
        examiner = examiner_of(config, codec, policy.family, sampler, verifier)
        items = {one.name: judge_chosen(config, one, examiner, options) for one in chosen}
    return on_main(lambda: finish(chosen, items, shared, state, options))


def overlaps(chosen: Sequence[Chosen], train: str | None) -> dict[str, Shared]:
    """The rows of each benchmark that the training rows of `train` hold too; {} without such a source."""
    if train is None:
        return {}
    training = read_training(train)
    return {one.name: shared_rows(one.rows, training) for one in chosen}


def start_report(
    config: Config, chosen: Sequence[Chosen], codec: Codec, model: str, path: str, options: Options
) -> State:
    """Model and protocol, once it is sure that the folder's evaluation may go on with them and the baseline fits."""
    protocol = protocol_of(config, chosen, codec)
    state = State(model=model, model_digest=weights_digest(path), protocol=protocol)
    keep_state(options.out, state)
    if options.baseline:
        base = read_results(options.baseline).protocol
        what = f"this evaluation and {options.baseline}"
        check_same(protocol, base, what=what, allowed=options.allow_protocol_difference)
    return state


def protocol_of(config: Config, chosen: Sequence[Chosen], codec: Codec) -> Protocol:
    """What pins this evaluation."""
    params = held_out_params(config.eval, config.rollout)
    sizes = dict(codec.processor.image_processor.size) if hasattr(codec.processor, "image_processor") else {}
    return Protocol(
        prompt=config.eval.prompt,
        system_prompt=config.data.system_prompt,
        min_pixels=sizes.get("shortest_edge"),
        max_pixels=sizes.get("longest_edge"),
        num_samples=params.num_samples,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        max_tokens=params.max_tokens,
        seed=config.eval.seed,
        grader=grader_version(),
        benchmarks={one.name: one.protocol for one in chosen},
    )


def keep_state(out: Path, state: State) -> None:
    """Write evaluation.json, or check that the folder's own evaluation is the same and add new benchmarks to it.

    Raises:
        EvaluationError: the folder holds an evaluation of another model, under another protocol, or of nobody knows.
    """
    file = out / STATE_FILE
    if file.is_file():
        old = read_record(file, State)
        what = f"{out} and this command"
        check_same(old.protocol, state.protocol, what=what, allowed=False, advice="choose another --out")
        check_model(old, state, out)
        benchmarks = old.protocol.benchmarks | state.protocol.benchmarks
        state = state.model_copy(update={"protocol": state.protocol.model_copy(update={"benchmarks": benchmarks})})
    elif any(out.glob("results/*.jsonl")) or any(out.glob("parts/*/*.jsonl")):
        raise EvaluationError(f"{out} holds judged rows but no {STATE_FILE} that says of what: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    replacement = file.with_suffix(".tmp")
    replacement.write_text(state.model_dump_json(indent=1) + "\n")
    replacement.replace(file)


def examiner_of(config: Config, codec: Codec, family: Family, sampler: Sampler, verifier: Verifier) -> Examiner:
    """What asks and judges: the official question as it is and any response format, or both as in training."""
    template = config.data.template if config.eval.prompt == "run" else "auto"
    return Examiner(benchmark_builder(config, codec, family), sampler, verifier, template, config.eval.seed)


def judge_chosen(config: Config, one: Chosen, examiner: Examiner, options: Options) -> dict[str, list[Item]]:
    """Judged rows of a benchmark and of its probes, by the name of the condition; "" is the benchmark itself.

    Probes are greedy, on the rows with pictures, so a sampled evaluation judges those rows greedily once more.
    """
    params, seed = held_out_params(config.eval, config.rollout), config.eval.seed
    tasks = {"": Task(one.name, one.benchmark, one.rows, one.asked, params)}
    pictured = [index for index, row in enumerate(one.rows) if row.images]
    if options.probes and pictured:
        rows, asked = (tuple(part[index] for index in pictured) for part in (one.rows, one.asked))
        params = replace(params, num_samples=1, temperature=0.0)
        conditions = {GREEDY: list(asked)} if config.eval.temperature else {}
        conditions |= {probe: PROBES[probe](asked, one.benchmark, seed) for probe in options.probes}
        for name, changed in conditions.items():
            tasks[name] = Task(f"{one.name}.{name}", one.benchmark, rows, tuple(changed), params)
    return {
        name: run_task(
            task,
            examiner,
            options.out,
            gallery=0 if name else config.eval.gallery,
            chunk_size=options.chunk_size,
        )
        for name, task in tasks.items()
    }


def finish(
    chosen: Sequence[Chosen],
    items: Mapping[str, Mapping[str, list[Item]]],
    shared: Mapping[str, Shared],
    state: State,
    options: Options,
) -> Results:
    """Compute the figures, compare, and write every file of the report."""
    found = []
    for one in chosen:
        judged = items[one.name]
        plain = judged.get(GREEDY) or [item for item, row in zip(judged[""], one.rows, strict=True) if row.images]
        found.append(
            benchmark_result(
                one.benchmark,
                one.rows,
                judged[""],
                split=one.split,
                protocol_hash=protocol_hash(state.protocol, one.name),
                items_file=f"results/{one.name}.jsonl",
                probes={probe: probe_score(plain, judged[probe]) for probe in options.probes if probe in judged},
                shared=shared.get(one.name),
            )
        )
    results = Results(
        model=state.model,
        model_digest=state.model_digest,
        created_by=f"vlm-mhpo {__version__}",
        protocol=state.protocol,
        protocol_hash=protocol_hash(state.protocol),
        benchmarks=tuple(found),
        comparison=None,
    )
    if options.baseline:
        ours = {one.name: items[one.name][""] for one in chosen}
        comparison = compare_results(results, ours, options.baseline, allowed=options.allow_protocol_difference)
        results = results.model_copy(update={"comparison": comparison})
    write_outputs(options.out, results, options.baseline)
    return results
