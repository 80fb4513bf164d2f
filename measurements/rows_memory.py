"""What the rows of a large data set cost a rank: memory and seconds, at the first start and at the second.

Makes rows with an image of 116 kB each in three layouts: parquet with row groups of 100 rows (as `datasets` writes
images), parquet with one row group per file (as pandas writes), and JSON Lines beside image files. In each layout two
real ranks start: they read the rows, check every prompt, and take the prompts of shuffled steps. Then they start again.
The same with few rows (`--few`) is what a rank needs anyway; "added_mb" is the difference, all ranks together.

Memory is proportional set size (PSS) from /proc/PID/smaps_rollup, mapped files left out: those are the page cache,
which the kernel takes back when it needs the space; "mapped_mb" gives them. "held" is at the end of a phase, "highest"
the highest of ten samples a second.
"prompts_made" counts the rows that were opened by the check, on the first rank: 0 where an earlier start is believed.

Usage: python measurements/rows_memory.py [--rows 20000] [--steps 50] [--layouts parquet ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from side_by_side import ROOT, use_one_thread, write_record

LAYOUTS = {"parquet": 100, "parquet_one_group": None, "files": None}
NUM_RANKS = 2
SHARDS = 5
PROMPTS_PER_STEP = 32
IMAGE_BYTES = 116_000
MAX_PIXELS = 28 * 28 * 16
# So many different images; a segment of its own in each row's JPEG makes the bytes of all rows differ.
NUM_DRAWN = 32
PHASES = ("read", "checked", "iterated")
SAMPLE_SECONDS = 0.1
# Rank 0 writes what it found there.
RESULT = "VLM_MHPO_ROWS_MEMORY"


def main() -> None:
    """Measure every layout and write its JSON; with the result's place in the environment, be one of its ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--few", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--folder", type=Path, help="where the rows are made; default: a folder that goes afterwards")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    for layout in arguments.layouts:
        results: dict[str, Any] = {"rows": arguments.rows, "ranks": NUM_RANKS, "image_bytes": len(encoded(0))}
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            results[layout] = measure(Path(folder), layout, arguments.rows, arguments.few, arguments.steps)
        name = f"rows_memory_{layout}"
        write_record(name, results, arguments.out and arguments.out / f"{name}.json")


def measure(folder: Path, layout: str, num_rows: int, num_few: int, steps: int) -> dict[str, Any]:
    """Two starts with few rows and two with all; the cache of the user lies in `folder`, too."""
    found: dict[str, Any] = {}
    for name, count in (("few", num_few), ("all", num_rows)):
        source = folder / name
        write_rows(source, layout, count)
        found[name] = [started(source, folder, steps) for _ in ("first", "second")]
        shutil.rmtree(source)
    starts = dict(zip(("first_start", "second_start"), zip(found["few"], found["all"], strict=True), strict=True))
    return {
        start: {
            "added_mb": {
                name: {phase: round(every[f"{name}_mb"][phase] - few[f"{name}_mb"][phase], 1) for phase in PHASES}
                for name in ("held", "highest")
            },
            "few_rows": few,
            "all_rows": every,
        }
        for start, (few, every) in starts.items()
    }


def started(source: Path, folder: Path, steps: int) -> dict[str, Any]:
    """What the ranks of one start found."""
    result = folder / "result.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS)]
    environment = os.environ | {
        RESULT: str(result),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    rank = [str(Path(__file__).resolve()), str(source), str(folder / "model"), str(steps)]
    subprocess.run([*command, *rank], env=environment, check=True)
    return json.loads(result.read_text())


def encoded(row: int) -> bytes:
    """A JPEG of about `IMAGE_BYTES` whose bytes no other row has."""
    image = _drawn()[row % NUM_DRAWN]
    comment = f"row {row}".encode()
    # The segments of a JPEG begin behind its first two bytes.
    return image[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + image[2:]


_images: list[bytes] = []


def _drawn() -> list[bytes]:
    """Noise compresses to a steady size: about 0.62 bytes a pixel at this quality."""
    while len(_images) < NUM_DRAWN:
        side = round((IMAGE_BYTES / 0.62) ** 0.5)
        noise = np.random.default_rng(len(_images)).integers(0, 256, (side, side, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", quality=75)
        _images.append(file.getvalue())
    return _images


def write_rows(folder: Path, layout: str, num_rows: int) -> None:
    """The rows of a layout in `folder`."""
    folder.mkdir()
    if layout == "files":
        (folder / "images").mkdir()
        with (folder / "rows.jsonl").open("w") as table:
            for row in range(num_rows):
                (folder / f"images/{row:06}.jpg").write_bytes(encoded(row))
                table.write(json.dumps(record(row) | {"images": [f"images/{row:06}.jpg"]}) + "\n")
        return
    import pyarrow
    import pyarrow.parquet

    for shard in range(SHARDS):
        rows = range(shard * num_rows // SHARDS, (shard + 1) * num_rows // SHARDS)
        table = pyarrow.Table.from_pylist([record(row) | {"images": [{"bytes": encoded(row)}]} for row in rows])
        pyarrow.parquet.write_table(
            table, folder / f"train-{shard:05}.parquet", row_group_size=LAYOUTS[layout] or len(rows)
        )


def record(row: int) -> dict[str, Any]:
    """The text of a row, about as long as a real one; no two are equal."""
    text = f"In the figure, triangle {row} has sides of {row % 97} cm and {row % 89} cm. "
    return {"id": f"geometry/{row}", "problem": f"<image>{text * 3}What is its area?", "answer": str(row % 101)}


def be_rank(source: str, model: str, steps: str) -> None:
    """Read, check and take prompts as a run does; rank 0 writes what all ranks measured."""
    import torch.distributed as dist

    from vlm_mhpo.config import DataConfig
    from vlm_mhpo.models.families import family_for
    from vlm_mhpo.models.loading import load_policy
    from vlm_mhpo.models.tiny import build_tiny
    from vlm_mhpo.prompts.builder import PromptBuilder
    from vlm_mhpo.prompts.rows import read_rows, usable_rows
    from vlm_mhpo.prompts.stream import PromptStream
    from vlm_mhpo.runtime import ranks

    class Counting(PromptBuilder):
        made = 0

        def build(self, rows: Sequence[Any]) -> list[Any]:
            Counting.made += len(rows)
            return super().build(rows)

    ranks.start(1)
    if ranks.is_main() and not Path(model).exists():
        build_tiny(Path(model))
    ranks.barrier()
    # Few image tokens per prompt: what is measured is the rows, not the prompts that are made of them.
    policy, codec = load_policy(model, dtype="float32", max_pixels=MAX_PIXELS)
    builder = Counting(codec, family_for(policy.model.config))
    config = DataConfig(train=source)
    watch = Watch()
    rows = read_rows(source, config, None, None)
    watch.note("read")
    rows = usable_rows(rows, builder, overlong="filter", what="training")
    watch.note("checked")
    made = Counting.made
    stream = PromptStream(rows, builder.build, seed=0, num_prompts=PROMPTS_PER_STEP)
    for step in range(int(steps)):
        stream.for_step(step)
    watch.note("iterated")
    everyone = ranks.gather_objects(watch.megabytes)
    if ranks.is_main():
        sums = {
            name: {phase: round(sum(each[name][phase] for each in everyone), 1) for phase in PHASES}
            for name in watch.megabytes
        }
        text = {"rows": len(rows), "prompts_made": made, "seconds": watch.seconds, **sums}
        Path(os.environ[RESULT]).write_text(json.dumps(text))
    dist.barrier()
    ranks.leave()


class Watch:
    """Seconds and memory of one phase after the other.

    Attributes:
        seconds: of each phase.
        megabytes: at the end of each phase, at its highest, and of mapped files at its end.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.megabytes: dict[str, dict[str, float]] = {"held_mb": {}, "highest_mb": {}, "mapped_mb": {}}
        self._highest, self._since = 0.0, time.perf_counter()
        threading.Thread(target=self._sample, daemon=True).start()

    def note(self, phase: str) -> None:
        """End a phase."""
        self.seconds[phase] = round(time.perf_counter() - self._since, 2)
        held, mapped = memory_mb()
        values = (held, max(held, self._highest), mapped)
        for name, value in zip(self.megabytes, values, strict=True):
            self.megabytes[name][phase] = value
        self._highest, self._since = 0.0, time.perf_counter()

    def _sample(self) -> None:
        while True:
            self._highest = max(self._highest, memory_mb()[0])
            time.sleep(SAMPLE_SECONDS)


def memory_mb() -> tuple[float, float]:
    """Of this process without mapped files, and its mapped files; shared pages by their share."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {line[0]: int(line[1]) * 1024 / 1e6 for line in lines}
    return sizes["Pss:"] - sizes["Pss_File:"], sizes["Pss_File:"]


if __name__ == "__main__":
    if RESULT in os.environ:
        be_rank(*sys.argv[1:])
    else:
        main()
