"""What the monitor shows: a run folder's state in a few bytes, and its page, drawn anew when the folder changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path

from vlm_mhpo.pages.run_page import render
from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.nouns import Run, RunFacts
from vlm_mhpo.records.run_folder import load_run

WATCHED = ("run.json", "metrics.jsonl", "updates.jsonl", "eval/*.json", "samples/*.jsonl")
TAIL_BYTES = 65_536  # more than a row of metrics


class View:
    """The page of a run folder, kept until the folder changes.

    Args:
        folder: the run folder; it may still be empty.
        rest_s: seconds that a page is served as it is even if the folder has changed: drawing takes a core from the
            training for about a second.
    """

    def __init__(self, folder: Path, rest_s: float = 2.0) -> None:
        self._folder, self._rest_s = folder, rest_s
        self._page, self._version, self._drawn_at = b"", "", 0.0
        self._drawing = asyncio.Lock()

    def state(self) -> bytes:
        """JSON: version of the folder, last finished step (null before the first), seconds since the last row."""
        metrics = self._folder / "metrics.jsonl"
        try:
            age_s = max(0, int(time.time() - metrics.stat().st_mtime))
        except OSError:
            age_s = None
        state = {"version": version_of(self._folder), "step": last_step(metrics), "age_s": age_s}
        return json.dumps(state).encode()

    async def page(self) -> bytes:
        """The page's HTML, drawn in a thread and by one request at a time."""
        async with self._drawing:
            version = version_of(self._folder)
            if version != self._version and (not self._page or time.monotonic() - self._drawn_at >= self._rest_s):
                self._page = await asyncio.to_thread(self._draw, version)
                self._version, self._drawn_at = version, time.monotonic()
            return self._page

    def _draw(self, version: str) -> bytes:
        """The page; while a file is being written and cannot be read, the page as it was."""
        try:
            run = load_run(self._folder, may_be_empty=True)
        except ReportError as error:
            if self._page:
                return self._page
            run = Run(self._folder, RunFacts(), {}, (), (), (str(error),))
        return render(run, live_version=version).encode("utf-8", "replace")


def version_of(folder: Path) -> str:
    """A digest that changes with the names, sizes and times of the files that the page is made of."""
    seen = hashlib.sha256()
    for path in sorted(path for pattern in WATCHED for path in folder.glob(pattern)):
        try:
            status = path.stat()
        except OSError:  # removed since the listing
            continue
        seen.update(f"{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "replace"))
    return seen.hexdigest()[:16]


def last_step(metrics: Path) -> int | None:
    """The step of the last whole row; None without one."""
    try:
        with metrics.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(step, int):
            return step
    return None
