"""The page in a real browser, where one is installed: filters work, hostile text runs nothing."""

import json
import re
import shutil
import subprocess

import pytest

from vlm_mhpo.pages import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine; the other tests read the page's source"),
]


def dump(address: str, profile) -> str:
    """The page's document after its script has run."""
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    flags += "--disable-sync --no-first-run --dump-dom"
    command = [BROWSER, *flags.split(), f"--user-data-dir={profile}", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_filter_in_the_address_hides_the_other_cards(run_dir, tmp_path):
    html = dump(write_report(run_dir).as_uri() + "#broken", tmp_path / "profile")
    cards = dict(re.findall(r'<article class="card" data-outcome="(\w+)"( hidden="")?', html))
    assert cards == {"fixed": ' hidden=""', "broken": "", "wrong": ' hidden=""', "right": ' hidden=""'}
    assert "1 of 1 shown" in html


def test_a_script_in_a_completion_does_not_run(run_dir, tmp_path):
    path = run_dir / "eval/after.json"
    content = json.loads(path.read_text())
    hostile = "</pre><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    content["items"][0]["completions"][0]["text"] = hostile
    path.write_text(json.dumps(content))
    html = dump(write_report(run_dir).as_uri(), tmp_path / "profile")
    assert "<title>a_run · training report</title>" in html
