"""Accuracies, shares and intervals are those of a hand count and of the published formulas; ranks change nothing."""

import io
import json
import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from PIL import Image

from rewards import Score, Verdict
from tests.builders import mixed_rows, picture, problem_row
from vlm_mhpo.evaluation.held_out import judge_held_out, summarise, write_evaluation
from vlm_mhpo.evaluation.tasks import Judge
from vlm_mhpo.records.evaluation import EvalCompletion, EvalItem
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.runtime import ranks

GREEDY = SamplingParams(num_samples=1, max_tokens=8, temperature=0.0)


def judged(verdict: str, num_tokens: int = 4, truncated: bool = False) -> EvalCompletion:
    return EvalCompletion(
        text="text",
        verdict=verdict,
        correct=verdict == "correct",
        extracted="7",
        num_tokens=num_tokens,
        truncated=truncated,
    )


def item(id: str, *verdicts: str, source: str = "bars", kind: str = "number", **fields) -> EvalItem:
    completions = tuple(judged(verdict, **fields) for verdict in verdicts)
    return EvalItem(
        id=id,
        problem="Problem?",
        gold="7",
        num_images=0,
        images=(),
        source=source,
        kind=kind,
        choices=None,
        completions=completions,
    )


def averages(accuracies: list[float], of: int = 8) -> list[EvalItem]:
    """Rows of `of` completions with these shares of right ones."""
    return [
        item(str(index), *["correct"] * round(share * of), *["wrong"] * round((1 - share) * of))
        for index, share in enumerate(accuracies)
    ]


def interval(accuracies: list[float]) -> tuple[float, float]:
    """The recorded interval of rows with these accuracies."""
    single = all(value in (0.0, 1.0) for value in accuracies)
    record = summarise(averages(accuracies, 1 if single else 8), name="x", step=0, params=GREEDY)
    return record.accuracy_low, record.accuracy_high


def wilson(right: int, total: int) -> tuple[float, float]:
    """E. B. Wilson, 1927: the roots of (p - right/total)^2 = z^2 p (1 - p) / total, z for 95 %."""
    z, share = 1.959963984540054, right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return centre - half, centre + half


# ---- summaries -------------------------------------------------------------------------------------------------


def test_a_hand_made_set():
    items = [
        item("a", "correct", source="bars", num_tokens=2),
        item("b", "wrong", source="bars", num_tokens=4),
        item("c", "correct", source="circles", kind="choice", num_tokens=6),
        item("d", "timeout", source="circles", kind="choice", num_tokens=8, truncated=True),
        item("e", "correct", source="circles", num_tokens=10),
    ]
    record = summarise(items, name="after", step=12, params=GREEDY).model_dump()
    assert record["name"] == "after"
    assert record["step"] == 12
    assert record["num_rows"] == 5
    assert record["num_samples"] == 1
    assert record["temperature"] == 0.0
    assert record["accuracy"] == 0.6
    assert (record["accuracy_low"], record["accuracy_high"]) == pytest.approx(wilson(3, 5), abs=1e-9)
    assert record["by_source"] == {
        "bars": {"num_rows": 2, "accuracy": 0.5},
        "circles": {"num_rows": 3, "accuracy": pytest.approx(2 / 3)},
    }
    assert record["by_kind"] == {
        "choice": {"num_rows": 2, "accuracy": 0.5},
        "number": {"num_rows": 3, "accuracy": pytest.approx(2 / 3)},
    }
    assert record["verdicts"] == {"correct": 3, "timeout": 1, "wrong": 1}
    assert record["mean_length"] == 6.0
    assert record["clipped_ratio"] == 0.2
    assert [entry["id"] for entry in record["items"]] == list("abcde")
    assert record["items"][3]["completions"][0]["verdict"] == "timeout"
    # Everything is plain JSON.
    assert json.loads(json.dumps(record))["items"][0]["completions"][0]["correct"] is True


def test_avg_at_k_counts_rows_alike_and_completions_in_verdicts():
    items = [item("a", "correct", "correct", "wrong", "wrong"), item("b", "correct", "wrong", "wrong", "no_answer")]
    params = SamplingParams(num_samples=4, max_tokens=8, temperature=1.0)
    record = summarise(items, name="x", step=0, params=params).model_dump()
    assert record["accuracy"] == pytest.approx((0.5 + 0.25) / 2)
    assert record["verdicts"] == {"correct": 3, "no_answer": 1, "wrong": 4}
    assert record["num_rows"] == 2
    assert record["num_samples"] == 4


@pytest.mark.parametrize(
    ("right", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (1, 7), (128, 256), (213, 256), (999, 1000)]
)
def test_the_interval_of_right_or_wrong_rows_is_wilsons(right, total):
    accuracies = [1.0] * right + [0.0] * (total - right)
    assert interval(accuracies) == pytest.approx(wilson(right, total), abs=1e-9)
    low, high = interval(accuracies)
    assert 0.0 <= low <= right / total <= high <= 1.0


def test_wilson_by_published_numbers():
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, score method: 81/263, 15/148, 0/20, 1/29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, total), bounds in published.items():
        assert interval([1.0] * right + [0.0] * (total - right)) == pytest.approx(bounds, abs=5e-5)


def test_the_interval_of_averages_goes_by_rows_and_is_the_same_every_time():
    accuracies = [0.25, 0.5, 0.75, 1.0] * 50
    low, high = interval(accuracies)
    assert interval(accuracies) == (low, high)
    # Normal theory: 0.625 +- 1.96 * 0.2795 / sqrt(200).
    assert (low, high) == pytest.approx((0.625 - 0.0387, 0.625 + 0.0387), abs=0.005)


def test_the_interval_of_averages_is_wider_than_if_completions_were_independent():
    # 100 rows of 8 completions that are all right or all but one wrong: 800 completions, but 100 problems.
    accuracies = [1.0] * 50 + [0.125] * 50
    low, high = interval(accuracies)
    independent_low, independent_high = wilson(450, 800)
    assert high - low > 1.5 * (independent_high - independent_low)


@pytest.mark.parametrize("accuracies", [[0.5], [0.5, 0.5, 0.5], [0.25] * 10])
def test_an_interval_exists_for_one_row_and_for_equal_rows(accuracies):
    low, high = interval(accuracies)
    assert 0.0 <= low < accuracies[0] < high <= 1.0


def test_twenty_rows_that_are_all_half_right_do_not_make_the_score_certain():
    # As wide as 10 right of 20, by Wilson: 0.30 to 0.70.
    assert interval([0.5] * 20) == pytest.approx(wilson(10, 20), abs=1e-9)
    assert interval([0.5] * 20) == pytest.approx((0.30, 0.70), abs=0.005)


def test_the_files_hold_the_record_and_a_table(tmp_path):
    items = [item(str(index), "correct" if index < 3 else "wrong") for index in range(4)]
    record = summarise(items, name="before", step=0, params=GREEDY)
    json_file, markdown_file = write_evaluation(tmp_path / "eval", record)
    assert json.loads(json_file.read_text()) == json.loads(json.dumps(record.model_dump()))
    text = markdown_file.read_text()
    low, high = wilson(3, 4)
    assert f"| all (4) | 75.0 % | {100 * low:.1f} to {100 * high:.1f} % |" in text
    assert "4 rows, greedy, after step 0" in text
    assert "correct 3, wrong 1" in text
    # Every line of the table has the same number of columns.
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {4}
    assert write_evaluation(tmp_path / "again", record)[1].read_text() == text


# ---- the run ---------------------------------------------------------------------------------------------------


@dataclass
class EvenLength:
    """A verifier that calls a completion right when its text has an even length; remembers what it was asked."""

    asked: list = field(default_factory=list)

    def score(self, items):
        self.asked += items
        right = [len(item.completion) % 2 == 0 for item in items]
        return [
            Score(Verdict.correct if r else Verdict.wrong, r, item.completion[:1], "")
            for r, item in zip(right, items, strict=True)
        ]


def judge_of(model, *, sampler=None, verifier=None, template="think_answer", seed=3) -> Judge:
    sampler = sampler or HfSampler(model.policy, model.codec, max_batch_tokens=10_000)
    return Judge(model.builder(), sampler, verifier or EvenLength(), template, seed)


def run(model, rows, *, params=GREEDY, verifier=None, **options):
    return judge_held_out(rows, judge_of(model, verifier=verifier), params, name="x", step=0, **options)


def test_a_row_of_several_turns_is_asked_and_shown_with_all_of_them(tiny):
    model = tiny("qwen2_5_vl")
    turns = [("user", "What is 1 + 1 ?"), ("assistant", "2")]
    rows = [problem_row("alone", "And 2 + 2 ?"), problem_row("turns", "And 2 + 2 ?", earlier_turns=turns)]
    alone, shown = run(model, rows).items
    assert (alone.problem, shown.problem) == (
        "And 2 + 2 ?",
        "user: What is 1 + 1 ?\n\nassistant: 2\n\nuser: And 2 + 2 ?",
    )


def test_rows_come_back_in_order_with_what_was_asked(tiny):
    model = tiny("qwen2_5_vl")
    choice = problem_row("choice", "Which?", kind="choice", choices=["red", "blue"])
    rows = [*mixed_rows(model), choice, problem_row("hidden", "How many?", kind="number", choices=["1", "2"])]
    verifier = EvenLength()
    record = run(model, rows, params=SamplingParams(2, 6), verifier=verifier)
    items = record.items
    assert [item.id for item in items] == ["two", "one", "none", "choice", "hidden"]
    assert [item.num_images for item in items] == [2, 1, 0, 0, 0]
    assert [item.problem for item in items] == [row.problem for row in rows]
    assert [item.choices for item in items[3:]] == [("red", "blue"), ("1", "2")]
    assert [(item.kind, item.source) for item in items] == [(row.kind, row.source) for row in rows]
    assert all(len(item.completions) == 2 for item in items)
    assert [one.text for item in items for one in item.completions] == [asked.completion for asked in verifier.asked]
    for entry in items:
        assert entry.gold == "7"
        assert [one.correct for one in entry.completions] == [len(one.text) % 2 == 0 for one in entry.completions]
        assert [one.extracted for one in entry.completions] == [one.text[:1] for one in entry.completions]
        assert entry.share_correct == sum(one.correct for one in entry.completions) / 2
    assert record.accuracy == sum(one.correct for item in items for one in item.completions) / 10
    # A letter may only answer a question that showed the choices.
    by_row = {row.id: verifier.asked[2 * index] for index, row in enumerate(rows)}
    assert by_row["choice"].choices == ("red", "blue")
    assert by_row["hidden"].choices is None
    assert {asked.template for asked in verifier.asked} == {"think_answer"}


def on_ranks(monkeypatch, world_size: int, work) -> list:
    """What `work(rank)` returns on each of so many ranks, threads here that meet in every collective."""
    own, meeting, told = threading.local(), threading.Barrier(world_size, timeout=60), [None] * world_size

    def gather(value):
        told[own.rank] = value
        meeting.wait()
        everyone = list(told)
        meeting.wait()
        return everyone

    def on_rank(rank: int):
        own.rank = rank
        return work(rank)

    monkeypatch.setattr(ranks, "world_size", lambda: world_size)
    monkeypatch.setattr(ranks, "rank", lambda: own.rank)
    monkeypatch.setattr(ranks, "is_main", lambda: own.rank == 0)
    monkeypatch.setattr(ranks, "gather_objects", gather)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(on_rank, range(world_size)))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_together_judge_what_one_rank_judges(tiny, monkeypatch, world_size):
    model = tiny("qwen2")
    rows = [problem_row(f"r{index}", f"{index} + {index} ?") for index in range(5)]
    params = SamplingParams(2, 6)
    expected = run(model, rows, params=params)
    verifiers = [EvenLength() for _ in range(world_size)]
    # A rank has a model of its own: threads must not call one head at the same time.
    models = [model.copy() for _ in range(world_size)]
    found = on_ranks(
        monkeypatch, world_size, lambda rank: run(models[rank], rows, params=params, verifier=verifiers[rank])
    )
    assert all(record == expected for record in found)
    # Every completion was verified once, and no rank had more than its share of the rows.
    shares = [len(verifier.asked) for verifier in verifiers]
    assert sum(shares) == 10 and max(shares) <= 2 * -(-5 // world_size)
    asked = Counter(one.completion for verifier in verifiers for one in verifier.asked)
    assert asked == Counter(one.text for item in expected.items for one in item.completions)


def test_all_ranks_call_the_sampler_equally_often(tiny, monkeypatch):
    """ZeRO-3 gathers the weights in every call: a rank without rows must still make it."""
    model = tiny("qwen2")
    monkeypatch.setattr("vlm_mhpo.evaluation.held_out.CHUNK_SIZE", 2)
    rows = [problem_row(f"r{index}", f"{index} + {index} ?") for index in range(7)]

    class Counting:
        def __init__(self):
            self.inner = HfSampler(model.copy().policy, model.codec, max_batch_tokens=10_000)
            self.count = 0

        def sample(self, *arguments):
            self.count += 1
            return self.inner.sample(*arguments)

    samplers = [Counting() for _ in range(3)]
    on_ranks(
        monkeypatch,
        3,
        lambda rank: judge_held_out(rows, judge_of(model, sampler=samplers[rank]), GREEDY, name="x", step=0),
    )
    assert [sampler.count for sampler in samplers] == [2, 2, 2]


def test_pictures_of_the_first_rows_are_kept(tiny, tmp_path):
    model = tiny("qwen2_5_vl")
    side = model.token_side
    rows = [problem_row(f"r{index}", "<image>?", [picture(side, side, seed=index % 2)]) for index in range(4)]
    items = run(model, rows, image_dir=tmp_path, gallery=3).items
    assert [len(item.images) for item in items] == [1, 1, 1, 0]
    # Rows 0 and 2 show the same image, which is stored once.
    assert items[0].images == items[2].images != items[1].images
    assert len(list((tmp_path / "images").iterdir())) == 2
    with Image.open(tmp_path / items[1].images[0]) as stored, Image.open(io.BytesIO(rows[1].images[0])) as original:
        assert stored.convert("RGB").tobytes() == original.convert("RGB").tobytes()
    assert all(item.images == () for item in run(model, rows).items)


def test_evaluation_is_the_same_twice_and_sampled_ones_differ_by_seed(tiny):
    model = tiny("qwen2")
    rows = [problem_row(f"r{index}", f"{index} + {index} ?") for index in range(3)]
    params = SamplingParams(3, 6)
    assert run(model, rows, params=params) == run(model, rows, params=params)
    other = judge_held_out(rows, judge_of(model, seed=4), params, name="x", step=0)
    assert other != run(model, rows, params=params)
