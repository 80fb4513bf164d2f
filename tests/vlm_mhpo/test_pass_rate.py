"""Pass rates: each row is sampled once under a setting, whatever was interrupted, and only half-known rows are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from data_prep import DataError, load_rows
from data_prep.prepare.filters import Filter
from data_prep.schema import RowError, make_row
from data_prep.synthetic import generate
from vlm_mhpo import cli
from vlm_mhpo.commands.pass_rate import CHUNK, pass_rate_filter, read_cache, sampling_setting, with_pass_rates
from vlm_mhpo.config import load_config

BASE = Path(__file__).parents[1] / "system" / "base.yaml"
ROWS = [make_row(id=f"r{n}", problem=f"{n} + 1?", answer=str(n + 1)) for n in range(150)]


class Judge:
    """Rates by the number in a row's id, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, rows) -> list[float | None]:
        self.asked.append([row.id for row in rows])
        return [None if row.id == "r7" else (int(row.id[1:]) % 5) / 4 for row in rows]


def rates(rows) -> dict[str, float | None]:
    return {row.id: row.metadata.get("pass_rate") for row in rows}


EXPECTED = {f"r{n}": None if n == 7 else (n % 5) / 4 for n in range(150)}


def test_every_row_gets_its_rate_in_order(tmp_path):
    judge = Judge()
    found = list(with_pass_rates(ROWS, judge, tmp_path / "cache.jsonl", "s"))
    assert [row.id for row in found] == [row.id for row in ROWS]
    assert rates(found) == EXPECTED
    assert [len(chunk) for chunk in judge.asked] == [CHUNK, CHUNK, 150 - 2 * CHUNK]


def test_after_an_interruption_only_what_is_missing_is_sampled(tmp_path):
    cache = tmp_path / "cache.jsonl"
    stream = with_pass_rates(ROWS, Judge(), cache, "s")
    for _ in range(CHUNK + 3):
        next(stream)
    with cache.open("a") as file:
        file.write('{"key": "torn')
    again = Judge()
    assert rates(with_pass_rates(ROWS, again, cache, "s")) == EXPECTED
    assert again.asked == [[f"r{n}" for n in range(2 * CHUNK, 150)]]
    third = Judge()
    assert rates(with_pass_rates(ROWS, third, cache, "s")) == EXPECTED
    assert third.asked == []


def test_rates_of_another_verifier_are_sampled_again(tmp_path, monkeypatch):
    config, cache = load_config(BASE), tmp_path / "cache.jsonl"
    list(with_pass_rates(ROWS[:2], Judge(), cache, sampling_setting(config, "m", 4)))
    same, other = Judge(), Judge()
    list(with_pass_rates(ROWS[:2], same, cache, sampling_setting(config, "m", 4)))
    monkeypatch.setattr("rewards.version.GRADER", 10**6)
    list(with_pass_rates(ROWS[:2], other, cache, sampling_setting(config, "m", 4)))
    assert (same.asked, other.asked) == ([], [["r0", "r1"]])


def test_another_setting_gold_or_picture_is_sampled_again(tmp_path):
    cache = tmp_path / "cache.jsonl"
    list(with_pass_rates(ROWS[:3], Judge(), cache, "s"))
    pictured = next(iter(generate(["shapes"], 1, 0, "train")))
    changed = [make_row(id="r0", problem="0 + 1?", answer="2"), ROWS[1], make_row(id="r2", problem="x", answer="3")]
    judge = Judge()
    list(with_pass_rates(changed, judge, cache, "s"))
    assert judge.asked == [["r0", "r2"]]
    other = Judge()
    list(with_pass_rates(ROWS[:3], other, cache, "t"))
    assert other.asked == [["r0", "r1", "r2"]]
    with_picture, without = (
        make_row(id="r9", problem="9 + 1?", answer="10", images=images) for images in (pictured.images, ())
    )
    asked = Judge()
    list(with_pass_rates([with_picture, without], asked, cache, "s"))
    assert asked.asked == [["r9", "r9"]] and len(read_cache(cache)) == 3 + 2 + 3 + 2


def test_bad_rows_and_rows_that_other_filters_drop_are_not_sampled(tmp_path):
    bad = RowError("is blank", field="answer")
    dropping = Filter("even", "", lambda row: "odd" if int(row.id[1:]) % 2 else None)
    missing = make_row(id="r4", problem="p", answer="1", images=[tmp_path / "absent.png"])
    judge = Judge()
    found = list(with_pass_rates([ROWS[0], bad, ROWS[1], missing], judge, tmp_path / "c.jsonl", "s", [dropping]))
    assert judge.asked == [["r0"]]
    assert found[1] is bad and found[2] is ROWS[1] and found[3] is missing


def test_the_filter_keeps_both_bounds_and_names_the_rate():
    chosen = pass_rate_filter(0.25, 0.75, "s")
    reasons = [
        chosen.reason(make_row(id="a", problem="p", answer="1", metadata={"pass_rate": rate}))
        for rate in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert [reason is None for reason in reasons] == [False, True, True, True, False]
    assert "0.00" in reasons[0] and "1.00" in reasons[4]
    assert "cannot be built" in chosen.reason(ROWS[0])


@pytest.mark.parametrize("bounds", [(0.5, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(DataError, match="0 <= lower <= upper <= 1"):
        pass_rate_filter(*bounds, "s")


def test_a_setting_changes_with_what_the_model_sees_and_how_it_is_sampled():
    def setting(*overrides: str, model: str = "m", num_samples: int = 8) -> str:
        return sampling_setting(load_config(BASE, overrides), model, num_samples)

    one = setting()
    assert one == setting("train.learning_rate=1", "output_dir=elsewhere")
    others = [
        setting("rollout.temperature=0.7"),
        setting("data.instruction=Think."),
        setting("data.template=boxed"),
        setting("model.max_pixels=1000000"),
        setting("seed=1"),
        setting(model="n"),
        setting(num_samples=4),
    ]
    assert len({one, *others}) == 8


@pytest.mark.full
def test_the_command_samples_a_real_model_and_keeps_what_lies_between_the_bounds(tmp_path, monkeypatch, capsys):
    def run(out: str, *bounds: str) -> int:
        source = "synthetic:shapes?seed=3&num_rows=6@train"
        options = ["--pass-rate", "tiny:qwen2_5_vl", "--config", str(BASE), "--pass-samples", "2", "--pass-bounds"]
        monkeypatch.setattr(
            sys, "argv", ["vlm-mhpo", "prepare", source, "--out", str(tmp_path / out), *options, *bounds]
        )
        monkeypatch.chdir(tmp_path)
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code or 0
        return 0

    # An untrained model knows nothing.
    assert run("all", "0", "1") == 0
    rows = list(load_rows(tmp_path / "all"))
    assert [row.metadata["pass_rate"] for row in rows] == [0.0] * 6
    assert "0 dropped by pass_rate" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert "tiny:qwen2_5_vl" in json.dumps(manifest)
    assert run("none", "0.1", "0.9") == 2
    assert "pass_rate" in capsys.readouterr().err
