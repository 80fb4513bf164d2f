"""The monitor as a command, read by a real browser while the run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.vlm_mhpo.browsing import chromium, needs_browser, opened

pytestmark = [pytest.mark.full, needs_browser]
ROOT = Path(__file__).resolve().parents[3]


def metrics(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "reward": 0.1 * step}) + "\n" for step in steps)


@pytest.fixture
def run_dir(tmp_path):
    """A run after its second step."""
    folder = tmp_path / "a_run"
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(metrics(1, 2))
    return folder


@pytest.fixture
def address(run_dir):
    """Where the command serves the run; it is ended with the test."""
    command = [sys.executable, "-u", "-m", "vlm_mhpo.cli", "monitor", str(run_dir), "--port", "0"]
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    yield server.stdout.readline().strip()
    server.terminate()
    server.wait(20)


def test_curves_and_samples_follow_the_run_without_a_reload(run_dir, address):
    with chromium() as browser, opened(browser, address) as (page, complaints):
        page.evaluate("window.stays = true")
        old = page.inner_html("#chart-reward svg")
        page.click("#more summary >> nth=0")
        sample = {"step": 3, "prompt_id": "p", "problem": "<b>How many?</b>", "gold": "3", "images": ["a.png"]}
        sample |= {"completion": "</pre><script>alert(1)</script>", "reward": 1.0, "verdict": "correct"}
        Image.new("RGB", (8, 8)).save(run_dir / "a.png")
        (run_dir / "samples/step_000003.jsonl").write_text(json.dumps(sample) + "\n")
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(metrics(3) + '{"step": 4, "rew')  # the fourth is being written
        page.wait_for_selector("#live:text-is('live: step 3')")
        page.wait_for_selector("#samples pre >> text=</pre><script>alert(1)</script>")
        page.wait_for_function("old => document.querySelector('#chart-reward svg').innerHTML !== old", arg=old)
        assert "0.10 → 0.30" in page.inner_text("#chart-reward figcaption")
        assert page.evaluate("window.stays") and page.locator("#more details[open]").count() == 1
        assert page.locator("#samples img").evaluate("async i => { await i.decode(); return i.naturalWidth; }") == 8
        assert complaints == []


def test_a_run_that_has_not_begun_fills_up(run_dir, address):
    (run_dir / "metrics.jsonl").unlink()
    with chromium() as browser, opened(browser, address) as (page, complaints):
        assert page.locator("#curves").count() == 0
        (run_dir / "metrics.jsonl").write_text(metrics(1, 2, 3))
        page.wait_for_selector("#chart-reward")
        order = page.eval_on_selector_all("main > section", "all => all.map(s => s.id)")
        assert order == ["curves", "more"] and complaints == []
