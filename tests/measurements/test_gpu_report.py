"""The page's section about a GPU: figures in their places, and what is missing, failed or a trial said so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report import BEGIN, END, read, section
from shapes import ROOT
from steps import SAMPLING, SPEED_SHAPES

TRIAL = ROOT / "tests" / "data" / "gpu_trial"
CARD = {"name": "Card 9", "driver_version": "5.1", "memory.total": "80 GB", "clocks.sm": "1980 MHz"}
FACTS = {
    "trial": False,
    "device": "Card 9",
    "environment": {"card": CARD, "versions": {"torch": "2.11.0", "trl": "1.16.0"}, "git_commit": "abc"},
}
SPEED = {
    "realistic_3b": {
        "shape": {"model": "3b", "max_completion_length": 256},
        "wall_s": {"ours": {"median": 8.0}, "trl": {"median": 20.0}},
        "wall_ratio": {"median": 2.5},
        "update_wall_s": {"ours": 2.0, "trl": 7.0},
        "update_ratio": 3.5,
        "utilisation": {"ours": 0.2, "trl": 0.08},
        "update_utilisation": {"ours": 0.4, "trl": 0.125},
        "peak_memory_mb": {"ours": 61_500.0, "trl": 70_100.0},
    }
}
SAMPLED = {
    "realistic_3b_128_24_rows": {
        "shape": {"model": "3b", "num_prompts": 3, "num_generations": 8},
        "tokens_per_s": {"ours": 1234.4, "generate": 1000.0},
        "wall_ratio": {"median": 1.23},
        "decode": {"steps": 127.0, "step_s": 0.0194, "launches_per_step": 1500.0, "waiting_share": 0.625},
    }
}


def write_run(folder: Path, records: dict, ends: dict[str, str]) -> Path:
    """A folder as the steps leave it; `ends` are the statuses."""
    folder.mkdir()
    steps = [
        {"name": name, "status": status, "seconds": 12.3, "last_words": "" if status == "ok" else "CUDA out of memory"}
        for name, status in ends.items()
    ]
    (folder / "summary.json").write_text(json.dumps({"trial": False, "seconds": 1.0, "steps": steps}))
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(FACTS | record))
    return folder


def cells(text: str, start: str) -> list[str]:
    """The cells of the one line of a table that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_figures_stand_in_their_places(tmp_path):
    tests = {"test_a": {"outcome": "passed"}, "test_b": {"outcome": "failed"}}
    tests = {"counts": {"failed": 1, "passed": 9}, "tests": tests}
    records = {"speed": SPEED, "sampling": SAMPLED, "tests": tests}
    text = section(*read([write_run(tmp_path / "run", records, dict.fromkeys(records, "ok"))]))
    head, row = cells(text, "model, tokens"), cells(text, "3b, 256")
    assert len(head) == len(row)
    assert row[1:7] == ["8.00", "20.00", "2.50", "2.00", "7.00", "3.50"]
    assert row[7:] == ["20.0 / 8.0 %", "40.0 / 12.5 %", "61.5 / 70.1"]
    head, row = cells(text, "model | completions"), cells(text, "3b | 24")
    assert len(head) == len(row)
    assert row[1:] == ["24", "1,234", "1,000", "1.23", "127", "19.4", "1,500", "62 %"]
    assert "`tests/gpu`: 1 failed, 9 passed. `test_b` failed." in text
    assert "Card 9; driver 5.1; memory 80 GB; torch 2.11.0; trl 1.16.0; commit abc." in text
    assert "trial" not in text.lower()


def test_a_step_that_is_missing_or_failed_is_named_and_what_it_wrote_stays(tmp_path):
    ends = {"environment": "ok", "speed": "out of time", "tests": "failed"}
    first = write_run(tmp_path / "a", {"speed": SPEED}, ends)
    text = section(*read([first]))
    assert "Step speed: out of time after 12 s (CUDA out of memory)." in text
    assert cells(text, "3b, 256")
    assert "Step tests: failed after 12 s (CUDA out of memory)." in text
    assert "Step sampling: not run." in text and "Step learning: not run." in text
    # A second run that has the step counts for it, and for no other.
    records = {"sampling": SAMPLED, "tests": {"counts": {"passed": 9}, "tests": {}}}
    second = write_run(tmp_path / "b", records, dict.fromkeys(records, "ok"))
    text = section(*read([first, second]))
    assert "Step tests" not in text and "Step sampling" not in text
    assert "Step speed: out of time" in text and cells(text, "3b | 24")
    # What a failed second try did not write is not shown from the first one as if it had.
    third = write_run(tmp_path / "c", {}, {"speed": "failed"})
    assert "3b, 256" not in section(*read([first, third]))


def test_the_records_of_a_trial_have_all_that_the_section_needs():
    """Written by `run.sh --trial` on a CPU."""
    records, ends = read([TRIAL])
    assert {name: end["status"] for name, end in ends.items()} == dict.fromkeys(
        ("environment", "tests", "speed", "sampling", "learning"), "ok"
    )
    text = section(records, ends)
    assert text.startswith("**A trial with models of two layers: no figure below means anything.**")
    assert "not run" not in text
    for name in SPEED_SHAPES:
        measured = records["speed"][name]
        row = cells(text, f"{measured['shape']['model']}, {measured['shape']['max_completion_length']} ")
        assert float(row[3]) == pytest.approx(float(row[2]) / float(row[1]), rel=0.05)
    assert sum(line.startswith(("| 0.5b | ", "| 3b | ")) for line in text.splitlines()) == 2 * sum(
        each.startswith("realistic") for each in SAMPLING
    )
    assert len(cells(text, "the card, bfloat16")) == 5


def test_the_page_gets_a_run_and_never_a_trial(tmp_path):
    page = tmp_path / "speed.md"
    page.write_text(f"before\n\n{BEGIN}old\n{END}\nafter\n")
    folder = write_run(tmp_path / "run", {"speed": SPEED}, {"speed": "ok"})
    program = [sys.executable, ROOT / "measurements" / "gpu" / "report.py", "--write", page]
    for refused in (TRIAL, tmp_path / "nothing"):
        done = subprocess.run([*program, refused], capture_output=True, text=True)
        assert done.returncode == 1 and "no results of a GPU run" in done.stderr
        assert "old" in page.read_text()
    subprocess.run([*program, folder], check=True)
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}Card 9") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text and cells(text, "3b, 256")
    # The real page has the place.
    assert all((ROOT / "docs" / "speed.md").read_text().count(mark) == 1 for mark in (BEGIN, END))
