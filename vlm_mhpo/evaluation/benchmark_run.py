"""The parts of an evaluation on benchmarks: the folder of its report, what is asked of each, the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlm_mhpo import __version__
from vlm_mhpo.config import DataConfig, EvalConfig, JudgeConfig
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation import shards
from vlm_mhpo.evaluation.chosen import BenchmarkRows, benchmark_builder
from vlm_mhpo.evaluation.compare import compare_results
from vlm_mhpo.evaluation.judge.asking import JudgeModel, find_judge, open_judge
from vlm_mhpo.evaluation.judge.verdicts import are_kept, judge_items, judge_protocol
from vlm_mhpo.evaluation.output import write_outputs
from vlm_mhpo.evaluation.overlap import Shared, read_training, shared_rows
from vlm_mhpo.evaluation.probes import PROBES
from vlm_mhpo.evaluation.protocol import check_model, check_same, protocol_hash, weights_digest
from vlm_mhpo.evaluation.results import benchmark_result, probe_score
from vlm_mhpo.evaluation.tasks import CHUNK_SIZE, Judge, Task, Together, at_once, on_main, run_task
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.records.evaluation import Item, JudgeProtocol, Protocol, Results, State, read_record, read_results
from vlm_mhpo.rollout.base import Sampler, SamplingParams
from vlm_mhpo.scoring import Verifier, grader_version

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


def overlaps(chosen: Sequence[BenchmarkRows], train: str | None, data: DataConfig) -> dict[str, Shared]:
    """The rows of each benchmark that the training rows of `train` hold too; {} without such a source.

    `data` says how that source is read: format, columns, image_root and whatever else a run's own source has.
    """
    if train is None:
        return {}
    training = read_training(train, data)
    return {one.name: shared_rows(one.rows, training) for one in chosen}


def start_report(protocol: Protocol, model: str, path: str, options: Options) -> State:
    """Model and protocol, once it is sure that the folder's evaluation may go on with them and the baseline fits.

    Args:
        protocol: of this evaluation.
        model, path: as it was asked for, and where it was loaded from.
        options: folder of the report, baseline.
    """
    judges = _judges_that_spoke(options.out) if (options.out / STATE_FILE).is_file() else {}
    # Verdicts that are there stay, also where this command names no judge.
    benchmarks = {
        name: one if one.judge else one.model_copy(update={"judge": judges.get(name)})
        for name, one in protocol.benchmarks.items()
    }
    protocol = protocol.model_copy(update={"benchmarks": benchmarks})
    state = State(model=model, model_digest=weights_digest(path), protocol=protocol)
    keep_state(options.out, state)
    if options.baseline:
        base = read_results(options.baseline).protocol
        what = f"this evaluation and {options.baseline}"
        check_same(protocol, base, what=what, allowed=options.allow_protocol_difference, judges=False)
    return state


def protocol_of(
    evaluation: EvalConfig,
    data: DataConfig,
    params: SamplingParams,
    chosen: Sequence[BenchmarkRows],
    codec: Codec,
    asked: JudgeModel | None,
) -> Protocol:
    """What pins this evaluation; `asked` is the language model that judges too."""
    sizes = dict(codec.processor.image_processor.size) if hasattr(codec.processor, "image_processor") else {}
    return Protocol(
        prompt=evaluation.prompt,
        system_prompt=data.system_prompt,
        min_pixels=sizes.get("shortest_edge"),
        max_pixels=sizes.get("longest_edge"),
        num_samples=params.num_samples,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        max_tokens=params.max_tokens,
        seed=evaluation.seed,
        grader=grader_version(),
        benchmarks={
            one.name: one.protocol.model_copy(
                update={"judge": judge_protocol(one.benchmark.judge, asked) if asked and one.benchmark.judge else None}
            )
            for one in chosen
        },
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
        # Rows that rules alone have judged may get a judge: what the model said stays as it is.
        before = _with_judges(_without_silent_judges(old.protocol, out), state.protocol)
        check_same(before, state.protocol, what=what, allowed=False, advice="choose another --out")
        check_model(old, state, out)
        benchmarks = old.protocol.benchmarks | state.protocol.benchmarks
        state = state.model_copy(update={"protocol": state.protocol.model_copy(update={"benchmarks": benchmarks})})
    elif any(out.glob("results/*.jsonl")) or any(out.glob("parts/*/*.jsonl")):
        raise EvaluationError(f"{out} holds judged rows but no {STATE_FILE} that says of what: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    replacement = file.with_suffix(".tmp")
    replacement.write_text(state.model_dump_json(indent=1) + "\n")
    replacement.replace(file)


def _with_judges(old: Protocol, new: Protocol) -> Protocol:
    """The old protocol with the judges of the new one where it has none."""
    benchmarks = {
        name: one if one.judge or name not in new.benchmarks else one.model_copy(
            update={"judge": new.benchmarks[name].judge}
        )
        for name, one in old.benchmarks.items()
    }  # fmt: skip
    return old.model_copy(update={"benchmarks": benchmarks})


def _without_silent_judges(old: Protocol, out: Path) -> Protocol:
    """The old protocol without the judges that gave no verdict on its rows: who died need not be waited for."""
    if not any(out.glob("results/*.jsonl")) and not any(out.glob("parts/*/*.jsonl")):
        return old
    judges = _judges_that_spoke(out)
    benchmarks = {name: one.model_copy(update={"judge": judges.get(name)}) for name, one in old.benchmarks.items()}
    return old.model_copy(update={"benchmarks": benchmarks})


def _judges_that_spoke(out: Path) -> dict[str, JudgeProtocol]:
    """The judges of a folder's evaluation whose verdicts stand beside its rows, by benchmark."""
    old = read_record(out / STATE_FILE, State).protocol.benchmarks
    files = {name: out / "results" / f"{name}.jsonl" for name, one in old.items() if one.judge}
    spoke = {
        name: any(c.judge for item in shards.read_items(file) for c in item.completions)
        for name, file in files.items()
        if file.is_file()
    }
    return {name: judge for name, was_heard in spoke.items() if was_heard and (judge := old[name].judge)}


def ready_judge(config: JudgeConfig, chosen: Sequence[BenchmarkRows], out: Path) -> JudgeModel:
    """The judge, who has answered just now unless nothing of this evaluation is left to ask.

    Raises:
        ConfigError, JudgeError: see `open_judge`.
    """
    kept = find_judge(config)
    return kept if kept and all(_is_answered(one, kept, out) for one in chosen) else open_judge(config, now=True)


def _is_answered(one: BenchmarkRows, judge: JudgeModel, out: Path) -> bool:
    """Whether all verdicts on a benchmark are there, or follow from kept answers."""
    rule, file = one.benchmark.judge, out / "results" / f"{one.name}.jsonl"
    if rule is None:
        return True
    if not file.is_file():
        return False
    items = shards.read_items(file, [row.id for row in one.rows])
    return all(c.judge for item in items for c in item.completions) or are_kept(rule, one.rows, items, judge)


def benchmark_judge(
    evaluation: EvalConfig,
    data: DataConfig,
    params: SamplingParams,
    codec: Codec,
    family: Family,
    sampler: Sampler,
    verifier: Verifier,
    together: Together = at_once,
) -> Judge:
    """What asks and judges: the official question as it is and any response format, or both as in training."""
    template = data.template if evaluation.prompt == "run" else "auto"
    builder = benchmark_builder(evaluation.prompt, data, codec, family, params.max_tokens)
    return Judge(builder, sampler, verifier, template, evaluation.seed, together)


def judge_benchmark(
    one: BenchmarkRows, judge: Judge, params: SamplingParams, options: Options, gallery: int
) -> dict[str, list[Item]]:
    """Judged rows of a benchmark and of its probes, by the name of the condition; "" is the benchmark itself.

    Probes are greedy, on the rows with images, so a sampled evaluation judges those rows greedily once more.
    """
    tasks = {"": Task(one.name, one.benchmark, one.rows, one.asked, params)}
    pictured = [index for index, row in enumerate(one.rows) if row.images]
    if options.probes and pictured:
        rows, asked = (tuple(part[index] for index in pictured) for part in (one.rows, one.asked))
        greedy = replace(params, num_samples=1, temperature=0.0)
        conditions = {GREEDY: list(asked)} if params.temperature else {}
        conditions |= {probe: PROBES[probe](asked, one.benchmark, judge.seed) for probe in options.probes}
        for name, changed in conditions.items():
            tasks[name] = Task(f"{one.name}.{name}", one.benchmark, rows, tuple(changed), greedy)
    return {
        name: run_task(task, judge, options.out, gallery=0 if name else gallery, chunk_size=options.chunk_size)
        for name, task in tasks.items()
    }


def ask_judge(one: BenchmarkRows, items: list[Item], asked: JudgeModel | None, out: Path) -> list[Item]:
    """The items of a benchmark with a language model's verdicts, kept with them, where its authors ask one.

    All ranks call it with the same; what was asked before is not asked again.
    """
    rule = one.benchmark.judge
    if rule is None or asked is None or all(c.judge for item in items for c in item.completions):
        return items
    judged = judge_items(rule, one.rows, items, asked, name=one.name)
    on_main(lambda: shards.write_items(out / "results" / f"{one.name}.jsonl", judged))
    return judged


def finish(
    chosen: Sequence[BenchmarkRows],
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
