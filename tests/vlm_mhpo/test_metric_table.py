"""The table of metrics: complete, true about reductions, the one place of their names, and printed on its page."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.vlm_mhpo.test_dynamic_sampling import scored as group_of
from tests.vlm_mhpo.test_dynamic_sampling import stream_of
from tests.vlm_mhpo.update_cases import PlainEngine, batch_of, settings_of
from vlm_mhpo.config import OBJECTIVES, MismatchConfig
from vlm_mhpo.config.evaluation import EarlyStopConfig
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.records import metric_table as table
from vlm_mhpo.records.metric_table import METRICS, REDUCTIONS, Group, Metric, markdown, metric_of
from vlm_mhpo.records.metrics import fold, reduce_metrics
from vlm_mhpo.records.norms import NormHistory
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.rollout.refill import refill
from vlm_mhpo.scoring.metrics import reward_metrics
from vlm_mhpo.training.token_statistics import Totals
from vlm_mhpo.training.update import accumulate, update_on

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "vlm_mhpo" / "records" / "metric_table.py"
# Written on the way to others and taken out of the row again.
INTERMEDIATE = {"ratio_mean_square"}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("qwen2_5_vl")


@pytest.fixture(scope="module")
def batch(model):
    return batch_of(model)


def entries(names: Iterable[str]) -> set[Metric]:
    """The table's entries of some names, each of which must have exactly one."""
    found = set()
    for name in names:
        fitting = [metric for metric in METRICS if metric.words(name) is not None]
        assert len(fitting) == 1, (name, fitting)
        assert fitting[0] == metric_of(name)
        found.add(fitting[0])
    return found


# ---- complete --------------------------------------------------------------------------------------------------


def test_every_metric_of_a_step_is_in_the_table_and_every_entry_of_these_files_is_written(model, batch):
    """Without an engine, an evaluation or a clock; their rows are looked at by tests/system/test_runs.py."""
    written = set(reward_metrics(batch.groups)) | set(NormHistory(()).add([1.0]))
    _, refilled = refill(
        [group_of("a", 0, 1)], stream_of("a", "b"), 0, lambda prompts, attempt: [], max_resample_times=1
    )
    written |= set(refilled)
    written |= set(HfSampler(model.policy, model.codec, max_batch_tokens=1).metrics())
    for kind in OBJECTIVES:
        objective, settings = build_objective(kind(), 8), settings_of(recompute=False, mismatch=MismatchConfig())
        update = update_on(
            PlainEngine(model.policy),
            objective,
            [replace(batch, fresh=frozenset(range(len(batch.advantages))))],
            settings,
            learning_rate=0.1,
            step=1,
        )
        written |= set(update.metrics)
    # `logged/` is tested with the functions that log.
    of_runs = {table.LOGGED, table.IDLE_STEPS, table.STEP_TIME, table.STAGE_TIME, table.SFT_LOSS}
    of_runs |= {metric for metric in METRICS if metric.group == table.HELD_OUT}
    # Looked at by test_servers/test_training.py.
    of_runs |= {metric for metric in METRICS if metric.when == "`rollout.engine=vllm`"}
    assert entries(written) == set(METRICS) - of_runs


@pytest.mark.parametrize("kind", OBJECTIVES, ids=[kind.model_fields["name"].default for kind in OBJECTIVES])
def test_tensors_are_reduced_as_the_table_says(model, batch, kind):
    totals = Totals()
    # Of a copy: the gradient would stay behind in a model that other files use, too.
    accumulate(PlainEngine(model.copy().policy), build_objective(kind(), 8), batch, settings_of(), totals)
    of_statistics = {"mean": table.SUM, "min": table.MIN, "max": table.MAX}
    seen = 0
    for key in totals.metrics:
        prefix, name = key.split("/", 1)
        if name in INTERMEDIATE:
            continue
        metric = metric_of(name)
        is_statistic = metric.reduction == table.STATISTICS
        said = of_statistics[metric.words(name)["extent"]] if is_statistic else metric.reduction
        assert said == ("part" if prefix == "whole" else prefix), key
        seen += 1
    assert seen >= 8


def test_a_default_of_the_configuration_that_names_a_metric_names_one_of_the_table():
    assert metric_of(EarlyStopConfig.model_fields["metric"].default) == table.EVAL_ACCURACY


def test_a_source_with_a_slash_in_its_name_is_one_of_the_family():
    assert table.EVAL_PART.words("eval/synthetic/shapes/accuracy") == {"name": "synthetic/shapes"}
    assert metric_of("eval/synthetic/shapes/our_accuracy") == table.EVAL_OURS


def test_what_only_a_users_own_loss_knows_has_no_entry():
    assert metric_of("mine") is metric_of("time/a/b") is metric_of("completions/other_length") is None


# ---- reduced ---------------------------------------------------------------------------------------------------


def test_micro_batches_by_hand():
    """Two micro-batches of 3 and 1 tokens, the metrics of a user's own loss among them."""
    first = {"sum/mine": 6.0, "part/share": 1.0, "whole/share": 3.0, "min/low": 0.5, "max/high": 2.0, "add/loss": 0.25}
    second = {
        "sum/mine": -2.0,
        "part/share": 0.5,
        "whole/share": 1.0,
        "min/low": -1.0,
        "max/high": 1.0,
        "add/loss": 1.0,
    }
    metrics: dict[str, torch.Tensor] = {}
    for one in (first, second):
        fold(metrics, {name: torch.tensor(value) for name, value in one.items()})
    found = reduce_metrics(metrics, torch.tensor(4))
    assert found == {"high": 2.0, "loss": 1.25, "low": -1.0, "mine": 1.0, "share": 0.375}
    assert list(found) == sorted(found)


def test_what_nothing_was_counted_for_is_left_out():
    metrics = {"sum/mine": 0.0, "part/share": 0.0, "whole/share": 0.0, "min/low": torch.inf, "max/high": -torch.inf}
    tensors = {name: torch.tensor(value) for name, value in metrics.items()} | {"add/loss": torch.tensor(0.5)}
    assert reduce_metrics(tensors, torch.tensor(0)) == {"loss": 0.5}
    assert reduce_metrics({}, torch.tensor(0)) == {}


# ---- the one place of the names --------------------------------------------------------------------------------

# The same word for something else, by file.
HOMONYMS = {
    "vlm_mhpo/commands/proofs/invariance.py": {"learning_rate"},  # a key of train
    "vlm_mhpo/commands/proofs/shrink.py": {"learning_rate"},
    "vlm_mhpo/commands/proofs/updates.py": {"reward"},  # a part of a seed
    "vlm_mhpo/commands/replay.py": {"num_tokens"},  # a denominator
    "vlm_mhpo/objectives/multipliers.py": {"num_tokens"},
    "vlm_mhpo/training/update.py": {"num_tokens"},
    "vlm_mhpo/config/evaluation.py": {"eval/accuracy"},  # a default, on a floor below the table
    "vlm_mhpo/pages/run_figures.py": {"reward", "entropy"},  # labels
    "vlm_mhpo/pages/run_inside.py": {"mhpo/"},  # names of histograms
    "vlm_mhpo/pages/study_report.py": {"entropy"},  # measures of a run
    "vlm_mhpo/records/study.py": {"entropy", "grad_norm", "kl_to_sampler"},  # the last two: keys of updates.jsonl
    "vlm_mhpo/records/recorder.py": {"reward", "num_tokens", "grad_norm", "kl_to_sampler"},  # also of the sample table
    "vlm_mhpo/training/progress.py": {"reward"},  # a label
    "rewards/functions/user.py": {"num_tokens"},  # an argument
}
# On a floor below the table, so that two objectives write the name out.
PRODUCERS = {table.CLIPPED: {"vlm_mhpo/objectives/common.py", "vlm_mhpo/objectives/gmpo.py"}}


def literals(file: Path) -> Iterator[str]:
    """Every text of a program but docstrings; what stands in the braces of an f-string becomes {}."""
    tree = ast.parse(file.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def spells(text: str, metric: Metric) -> bool:
    """Whether a text is a metric's name, or what all names of a family begin with."""
    start, *others = re.split(r"\{\w+\}", metric.name)
    return metric.words(text) is not None or text == "{}".join([start, *others]) or bool(others and start == text != "")


def files_by_metric() -> dict[Metric, set[str]]:
    """The product's files that spell the name of a metric, the table left out."""
    found = defaultdict(set)
    for file in sorted(
        path for package in ("vlm_mhpo", "data_prep", "rewards") for path in (ROOT / package).rglob("*.py")
    ):
        place = str(file.relative_to(ROOT))
        texts = set() if file == TABLE else set(literals(file)) - HOMONYMS.get(place, set())
        for text in texts:
            bare = re.sub(rf"^({'|'.join(REDUCTIONS)}|whole)/", "", text)
            for metric in METRICS:
                if spells(bare, metric):
                    found[metric].add(place)
    return found


def test_a_metrics_name_is_spelled_by_the_file_that_computes_it_and_by_no_other():
    found = files_by_metric()
    twice = {metric.name: files for metric, files in found.items() if len(files) > 1 and files != PRODUCERS.get(metric)}
    assert twice == {}
    # The walk sees what it is meant to see.
    assert found[table.REWARD] == {"vlm_mhpo/scoring/metrics.py"}
    assert len(found) > 30


def test_a_spelled_name_is_seen():
    assert spells("rewards/{}/mean", table.REWARD_PART) and spells("verdicts/", table.VERDICT)
    assert spells("clip_ratio/{}_mean", table.CLIPPED) and spells("grad_norm", table.GRAD_NORM)
    assert not spells("gradient", table.GRAD_NORM) and not spells("", table.LOG_RATIO)


# ---- the page --------------------------------------------------------------------------------------------------


def test_the_committed_page_is_what_the_table_prints():
    assert (ROOT / "docs" / "metrics.md").read_text() == markdown(), table.__doc__


def test_every_entry_is_fit_for_the_page():
    groups = {value for value in vars(table).values() if isinstance(value, Group)}
    assert {metric.group for metric in METRICS} == groups
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.reduction in REDUCTIONS
        assert metric.sentence.endswith(".") and "|" not in metric.sentence + metric.when, metric
        assert f"| {metric.sentence} |" in markdown()
