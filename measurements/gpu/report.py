"""The section of docs/speed.md about a GPU, from the JSON that the steps of run.sh left.

A step that is missing, failed or ran out of time is named as such; what it had written by then is shown. Results of a
trial are never written into the page. Of several folders the last that has a step counts for it.

Usage: python measurements/gpu/report.py [FOLDER ...] [--write docs/speed.md]
FOLDER is measurements/results/gpu unless others are given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "measurements" / "results" / "gpu"
STEPS = ("environment", "tests", "speed", "sampling", "learning")
BEGIN, END = "<!-- gpu: report.py writes this -->\n", "<!-- gpu: end -->"
NOTHING = "–"


def main() -> None:
    """Print the section, or put it in its place in the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[RESULTS])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace the section of this page")
    arguments = parser.parse_args()
    records, ends = read(arguments.folders)
    text = section(records, ends)
    if not arguments.write:
        print(text)
        return
    if any(record["trial"] for record in records.values()) or not records:
        raise SystemExit("error: these are no results of a GPU run: a trial shows no figure, and no step shows nothing")
    page = arguments.write.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise SystemExit(f"error: {arguments.write} has no place for the section: {BEGIN.strip()} and {END}")
    before, _, rest = page.partition(BEGIN)
    arguments.write.write_text(before + BEGIN + text + END + rest.partition(END)[2])


def read(folders: Iterable[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each step wrote, and how each ended; by name."""
    records: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    for folder in folders:
        summary = folder / "summary.json"
        ended = json.loads(summary.read_text())["steps"] if summary.exists() else []
        for each in ended:
            name = each["name"]
            ends[name] = each
            records.pop(name, None)
            if (folder / f"{name}.json").exists():
                records[name] = json.loads((folder / f"{name}.json").read_text())
    return records, ends


def section(records: Mapping[str, Any], ends: Mapping[str, Any]) -> str:
    """The Markdown of the section, without its heading."""
    parts = [setting(records)]
    writers: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
        "tests": tests,
        "speed": speed,
        "sampling": sampling,
        "learning": learning,
    }
    for name in STEPS:
        if problem := ending(name, ends):
            parts.append(problem)
        if name in records and name in writers:
            parts += writers[name](records[name])
    return "\n\n".join(parts) + "\n"


def setting(records: Mapping[str, Any]) -> str:
    """What the figures were measured on."""
    if not records:
        return "Nothing has been measured."
    first = next(iter(records.values()))
    card, versions = first["environment"]["card"] or {}, first["environment"]["versions"]
    words = [
        card.get("name") or first["device"],
        *(
            f"{label} {card[key]}"
            for key, label in (("driver_version", "driver"), ("memory.total", "memory"))
            if key in card
        ),
        *(f"{name} {versions[name]}" for name in ("torch", "transformers", "deepspeed", "trl") if name in versions),
        f"commit {first['environment']['git_commit'] or 'unknown'}",
    ]
    text = f"{'; '.join(words)}."
    clocks = [f"{name} {at['clocks.sm']}" for name, record in records.items() if (at := record["environment"]["card"])]
    if clocks:
        text += f" Clock at the end of each step: {', '.join(clocks)}."
    if "environment" in records:
        rates = records["environment"]
        products = ", ".join(f"{rate:.0f} in {dtype}" for dtype, rate in rates["matmul_tflops_per_s"].items())
        text += f" Matrix products run at {products} TFLOP/s, copies at {rates['copy_gb_per_s']:.0f} GB/s."
    if any(record["trial"] for record in records.values()):
        text = f"**A trial with models of two layers: no figure below means anything.** {text}"
    return text


def ending(name: str, ends: Mapping[str, Any]) -> str:
    """What a reader has to know of a step that did not end well; empty when it did."""
    if name not in ends:
        return f"Step {name}: not run."
    end = ends[name]
    if end["status"] == "ok":
        return ""
    return f"Step {name}: {end['status']} after {end['seconds']:.0f} s ({end['last_words']})."


def tests(record: Mapping[str, Any]) -> list[str]:
    """How many tests of tests/gpu ended how, and which did not pass."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in record["counts"].items())
    others = [f"`{name}` {test['outcome']}" for name, test in record["tests"].items() if test["outcome"] != "passed"]
    return [f"`tests/gpu`: {counts}." + (f" {'; '.join(others)}." if others else "")]


def speed(record: Mapping[str, Any]) -> list[str]:
    """Steps and updates, ours and TRL's."""
    head = (
        *("model, tokens per completion", "step, s", "TRL", "ratio", "update, s", "TRL", "ratio"),
        *("utilisation of a step, ours / TRL", "of an update", "memory, GB, ours / TRL"),
    )
    rows = []
    for each in shapes_in(record):
        shape = each["shape"]
        wall, used, busy = each["wall_s"], each["utilisation"], each["update_utilisation"]
        memory = {name: value / 1e3 for name, value in each["peak_memory_mb"].items()}
        rows.append(
            (
                f"{shape['model']}, {shape['max_completion_length']}",
                *(f"{wall[side]['median']:.2f}" for side in ("ours", "trl")),
                f"{each['wall_ratio']['median']:.2f}",
                *(f"{each['update_wall_s'][side]:.2f}" for side in ("ours", "trl")),
                f"{each['update_ratio']:.2f}",
                *(f"{100 * share['ours']:.1f} / {100 * share['trl']:.1f} %" for share in (used, busy)),
                f"{memory['ours']:.1f} / {memory['trl']:.1f}",
            )
        )
    return [table(head, rows)] if rows else []


def sampling(record: Mapping[str, Any]) -> list[str]:
    """Tokens a second of both samplers, and a decode step of ours."""
    head = (
        *("model", "completions", "tokens per s", "generate()", "ratio"),
        *("decode steps", "step, ms", "launches per step", "the device waits for launches"),
    )
    rows = []
    for each in shapes_in(record):
        shape, decode = each["shape"], each["decode"]
        rows.append(
            (
                shape["model"],
                str(shape["num_prompts"] * shape["num_generations"]),
                *(f"{each['tokens_per_s'][side]:,.0f}" for side in ("ours", "generate")),
                f"{each['wall_ratio']['median']:.2f}",
                f"{decode['steps']:.0f}",
                f"{1e3 * decode['step_s']:.1f}",
                f"{decode['launches_per_step']:,.0f}",
                share(decode.get("waiting_share")),
            )
        )
    return [table(head, rows)] if rows else []


def learning(record: Mapping[str, Any]) -> list[str]:
    """The quickstart on both devices, and the larger model's course."""
    found = []
    if quick := record.get("quickstart"):
        rows = [
            (
                {"gpu": "the card, bfloat16", "cpu": "one core, float32"}[name],
                number(quick[name].get("step_s"), ".2f"),
                number(quick[name].get("seconds", {}).get("all"), ".0f"),
                share(quick[name].get("accuracy_after_warm_start")),
                share(quick[name].get("accuracy_after_rl")),
            )
            for name in ("gpu", "cpu")
        ]
        head = ("quickstart on", "s per RL step", "s in all", "held-out accuracy after the warm start", "after RL")
        found.append(
            table(head, rows)
            + f"\n\nThe core's step takes {number(quick['cpu_over_gpu']['step'], '.1f')} times as long."
        )
    if (large := record.get("learning")) and "rl" in large:
        rl = large["rl"]
        reward = rl.get("reward") or {}
        ends = [number(reward.get(key), ".2f") for key in ("first_5", "last_5")]
        accuracies = [f"{100 * value:.0f} % after {step}" for step, value in rl["held_out_accuracy"].items()]
        found.append(
            f"Qwen2.5-VL of 0.5B from random weights, {large['sft']['steps']} steps of warm start, then {rl['steps']} "
            f"of RL in the time that was left: mean reward {ends[0]} in the first five steps, {ends[1]} in the last "
            f"five; held-out accuracy {', '.join(accuracies) or NOTHING}."
        )
    return found


def shapes_in(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results of a record's shapes, in the order in which they were measured."""
    return [value for value in record.values() if isinstance(value, Mapping) and "shape" in value]


def share(value: float | None) -> str:
    """A share in percent."""
    return NOTHING if value is None else f"{100 * value:.0f} %"


def number(value: float | None, form: str) -> str:
    """A number that may not be known."""
    return NOTHING if value is None else f"{value:{form}}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
