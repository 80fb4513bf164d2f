"""What the monitor shows while files grow under it."""

import asyncio
import json

import pytest

from vlm_mhpo.commands.monitor.view import View, last_step, version_of


def metrics(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "reward": 0.5}) + "\n" for step in steps)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", None),
        (metrics(1, 2, 3), 3),
        (metrics(1, 2) + '{"step": 3, "rew', 2),
        (metrics(1, 2) + '{"step": 3}', 2),  # whole, but its newline is still to come
        (metrics(1) + "not json\n", 1),
        (metrics(1) + '{"reward": 1}\n[]\n7\n', 1),
        ('{"step": "x"}\n', None),
        ("\0\xff\n", None),
    ],
)
def test_the_last_whole_row_counts(tmp_path, text, step):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_step(tmp_path / "metrics.jsonl") == step
    assert json.loads(View(tmp_path).state())["step"] == step


def test_a_long_file_is_read_from_its_end(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(metrics(*range(1, 20_001)))
    assert last_step(tmp_path / "metrics.jsonl") == 20_000


def test_a_folder_before_its_first_step_has_a_page(tmp_path):
    state = json.loads(View(tmp_path).state())
    assert state == {"version": version_of(tmp_path), "step": None, "age_s": None}
    assert b"No metrics.jsonl in this run" in asyncio.run(View(tmp_path).page())


def test_the_version_changes_with_every_file_that_the_page_shows(tmp_path):
    seen = {version_of(tmp_path)}
    for name in ("metrics.jsonl", "updates.jsonl", "run.json", "eval/after.json", "samples/step_000001.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for text in ("{}\n", "{}\n{}\n"):
            (tmp_path / name).write_text(text)
            seen.add(version_of(tmp_path))
    assert len(seen) == 11
    (tmp_path / "other.txt").write_text("x")
    assert version_of(tmp_path) in seen


def test_a_partly_written_last_line_does_not_break_the_page(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(metrics(1, 2) + '{"step": 3, "reward": 0.')
    page = asyncio.run(View(tmp_path).page()).decode()
    assert "chart-reward" in page and "cut off" in page


def test_a_half_written_evaluation_leaves_the_page_as_it_was(tmp_path):
    async def look() -> list[bytes]:
        (tmp_path / "metrics.jsonl").write_text(metrics(1))
        view = View(tmp_path, rest_s=0)
        pages = [await view.page()]
        (tmp_path / "eval").mkdir()
        (tmp_path / "eval/after.json").write_text('{"name": "af')
        pages.append(await view.page())
        (tmp_path / "eval/after.json").write_text('{"name": "after", "accuracy": 0.5, "num_rows": 2}')
        pages.append(await view.page())
        return pages

    before, during, after = asyncio.run(look())
    assert before == during != after
    assert b"Held-out accuracy" in after
    # The page of the first look tells what it shows, so its reader asks again.
    assert b'data-version="' in before and before[:200] != after[:200]


def test_a_damaged_folder_says_what_is_wrong(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("not json\n{}\n")
    assert b"repair or remove the line" in asyncio.run(View(tmp_path).page())


def test_many_readers_cost_one_drawing(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "vlm_mhpo.commands.monitor.view.render", lambda run, live_version: drawn.append(1) or live_version
    )

    async def look() -> None:
        view = View(tmp_path, rest_s=1000)
        await asyncio.gather(*(view.page() for _ in range(20)))
        (tmp_path / "metrics.jsonl").write_text(metrics(1))
        await view.page()

    asyncio.run(look())
    assert len(drawn) == 1
