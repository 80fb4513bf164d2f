"""Size and open time of an evaluation page in a headless Chromium, and an image of it for the documentation.

Without a page one is made of 2,000 made-up rows with two sides and 300 images in the manner of photographs. The open
time is from the start of the navigation to the end of the load event, by which the script has drawn the first rows;
the browser is new for every round. CPU is that of all its processes meanwhile: what the open time is on a free core.

Usage: python -m benchmarks.evaluation_page [PAGE] [--rounds 5] [--picture FILE] [--out FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
from pathlib import Path

import psutil
from PIL import Image

from tests.vlm_mhpo.browsing import chromium, opened
from tests.vlm_mhpo.test_report.evaluation_cases import large_folders
from vlm_mhpo.pages.evaluation_page import write_page

SIZE = {"width": 1280, "height": 1240}


def measure(address: str, rounds: int) -> dict[str, float]:
    """Median, smallest and largest open time, and the median CPU time it took, seconds."""
    opens, works = [], []
    for _ in range(rounds):
        with chromium() as browser, opened(browser, "about:blank", viewport=SIZE) as (page, _):
            page.wait_for_timeout(1000)  # the start of the browser is not the page's
            before = cpu_s()
            page.goto(address)
            works.append(cpu_s() - before)
            opens.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
    return {
        "open_s": statistics.median(opens),
        "open_s_min": min(opens),
        "open_s_max": max(opens),
        "cpu_s": statistics.median(works),
    }


def cpu_s() -> float:
    """CPU seconds of the browser's processes so far."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def take_picture(address: str, file: Path) -> None:
    """The top of the page in light beside its problems in dark."""
    shots = []
    with chromium() as browser:
        for scheme, place in (("light", ""), ("dark", "#outcome=fixed")):
            with opened(browser, address + place, viewport=SIZE, color_scheme=scheme) as (page, _):
                page.wait_for_function("[...document.images].every(image => image.complete)")
                shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    both = Image.new("RGB", (2 * SIZE["width"], SIZE["height"]))
    for index, shot in enumerate(shots):
        both.paste(shot, (index * SIZE["width"], 0))
    both.quantize(256).save(file, optimize=True)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = asked.page
        if page is None:
            after, before = large_folders(Path(folder))
            page = write_page(after, Path(folder) / "page.html", before)
        address = page.resolve().as_uri()
        figures = {"megabytes": page.stat().st_size / 1e6, "rounds": asked.rounds, **measure(address, asked.rounds)}
        if asked.picture:
            take_picture(address, asked.picture)
    print(json.dumps(figures, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
