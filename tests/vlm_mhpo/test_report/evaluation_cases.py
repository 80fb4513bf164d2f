"""Results folders written by hand in the evaluation's format: two benchmarks, a baseline, hostile texts, many rows."""

import json
import random
from pathlib import Path

from PIL import Image

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"alert(1)\">\u2028{{ 7*7 }} <!-- & '\""
LINK = "javascript:alert(1)"
# By benchmark and row: right before, right after. One of each outcome in "shapes" and a second fixed one.
OUTCOMES = {
    "shapes": {"s1": (False, True), "s2": (True, False), "s3": (False, False), "s4": (True, True), "s5": (False, True)},
    "words": {"w1": (True, True), "w2": (False, False)},
}


def share(right: int, rows: int) -> dict:
    """An accuracy with a made-up interval of 10 points each way."""
    value = right / rows
    return {"accuracy": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def completion(right: bool, text: str, **changes) -> dict:
    """One completion, official rule and verifier agreeing."""
    verdict = "correct" if right else "wrong"
    known = {"text": text, "official": right, "extracted": "7" if right else "6", "verdict": verdict, "correct": right}
    return known | {"num_tokens": 5, "truncated": False} | changes


def row(row_id: str, completions: list[dict], **changes) -> dict:
    """One row with the image of its id."""
    known = {"id": row_id, "problem": row_id, "question": f"How many in {row_id}?", "choices": None, "gold": "7"}
    known |= {"kind": "number", "images": [f"pictures/{row_id}.png"], "categories": {"level": row_id[-1]}}
    return known | {"completions": completions} | changes


def benchmark(name: str, rows: list[dict], **changes) -> dict:
    """A benchmark's entry with the scores that its rows give."""
    right = sum(r["completions"][0]["official"] for r in rows)
    levels = sorted({r["categories"]["level"] for r in rows})
    by_level = {
        level: [r["completions"][0]["official"] for r in rows if r["categories"]["level"] == level] for level in levels
    }
    needs = {"difference": 0.3, "low": 0.1, "high": 0.5, "p": 0.0004}
    known = {
        "name": name,
        "title": name.title(),
        "citation": f"The {name} authors, 2024",
        "split": "test",
        "deviation": "no judge" if name == "words" else "",
        "num_problems": len(rows),
        "num_rows": len(rows),
        "num_samples": len(rows[0]["completions"]),
        "scores": {"official": share(right, len(rows)), "ours": share(right, len(rows))},
        "pass_at": {"1": right / len(rows)},
        "extra": {"worst_case": 0.25} if name == "shapes" else {},
        "verdicts": {"correct": right / len(rows), "wrong": 1 - right / len(rows)},
        "mean_tokens": 5.0,
        "categories": {"level": {k: share(sum(v), len(v)) | {"num_rows": len(v)} for k, v in by_level.items()}},
        "probes": {"blank": share(1, 10) | {"num_rows": 5, "needs_picture": needs}} if name == "shapes" else {},
        "overlap": None,
        "items": f"results/{name}.jsonl",
    }
    return known | changes


def write_folder(folder: Path, model: str, rows_by_benchmark: dict[str, list[dict]], **changes) -> Path:
    """results.json, the rows, and an image for every path that a row names."""
    entries = [benchmark(name, rows) for name, rows in rows_by_benchmark.items()]
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    for name, rows in rows_by_benchmark.items():
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (folder / f"results/{name}.jsonl").write_text(text, encoding="utf-8")
        for path in (path for r in rows for path in r["images"]):
            if not (folder / path).exists():
                # A letter and a digit name an image: its own shade of red and green.
                red, green = (ord(char) * 53 % 256 for char in path[-6:-4])
                Image.new("RGB", (40, 30), (red, green, 0)).save(folder / path)
    protocol = {"prompt": "official", "temperature": 0.0, "num_samples": 1, "max_tokens": 256, "system_prompt": None}
    results = {
        "schema": 1,
        "model": model,
        "created_by": "0.1.0",
        "protocol": protocol,
        "protocol_hash": "0123456789ab",
    }
    results |= {"benchmarks": entries, "comparison": None} | changes
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def small_folders(folder: Path) -> tuple[Path, Path]:
    """(after, before): seven rows of OUTCOMES, 4 of 7 right after (shapes 3 of 5), 3 of 7 before (shapes 2 of 5)."""
    sides = {}
    for place, side in enumerate(("before", "after")):
        sides[side] = {
            name: [
                row(key, [completion(pair[place], f"{side} says {7 if pair[place] else 6}")])
                for key, pair in pairs.items()
            ]
            for name, pairs in OUTCOMES.items()
        }
    # Three wins to one loss would be tested by the evaluation; here the numbers are given.
    compared = {"name": "shapes", "difference": 0.2, "low": -0.3, "high": 0.6, "p": 0.62, "wins": 2, "losses": 1}
    comparison = {"baseline": "base", "protocol_differences": [], "benchmarks": [compared]}
    after = write_folder(folder / "after", "tuned", sides["after"], comparison=comparison)
    return after, write_folder(folder / "before", "base", sides["before"])


def hostile_folders(folder: Path) -> tuple[Path, Path]:
    """The same with every text hostile: ids, questions, choices, golds, categories, verdicts, names, the model."""

    def poison(side: str) -> dict[str, list[dict]]:
        answers = [
            completion(side == "after", HOSTILE, extracted=HOSTILE, verdict=HOSTILE),
            completion(False, LINK, extracted=LINK, verdict="wrong"),
        ]
        changes = {"question": HOSTILE, "choices": [HOSTILE, LINK], "gold": HOSTILE, "kind": HOSTILE}
        changes |= {"images": [], "categories": {"level": HOSTILE}}
        return {"shapes": [row(HOSTILE, answers, **changes), row(LINK, answers, **changes)]}

    folders = []
    for side in ("after", "before"):
        made = write_folder(folder / side, HOSTILE + side, poison(side))
        results = json.loads((made / "results.json").read_text())
        entry = results["benchmarks"][0]
        entry |= {"title": HOSTILE, "citation": LINK, "split": HOSTILE, "deviation": HOSTILE}
        entry |= {"extra": {HOSTILE: 0.5}, "verdicts": {HOSTILE: 1.0}, "overlap": {HOSTILE: HOSTILE}}
        entry["categories"] = {HOSTILE: {HOSTILE: share(1, 2) | {"num_rows": 2}}}
        results["protocol"] = {HOSTILE: HOSTILE}
        results["created_by"] = HOSTILE
        (made / "results.json").write_text(json.dumps(results))
        folders.append(made)
    return folders[0], folders[1]


def large_folders(folder: Path, num_rows: int = 2000, num_pictures: int = 300) -> tuple[Path, Path]:
    """(after, before) of `num_rows` rows whose first `num_pictures` have a photograph-like image of 640 x 480."""
    rng = random.Random(0)
    sides: dict[str, dict[str, list[dict]]] = {"after": {}, "before": {}}
    for rows in sides.values():
        for index in range(num_rows):
            images = [f"pictures/p{index}.jpg"] if index < num_pictures else []
            text = " ".join(rng.choice(("so", "the", "angle", "is", "x = 7", "add", "hence")) for _ in range(150))
            made = row(f"r{index}", [completion(rng.random() < 0.5, text)], images=images, categories={"level": "1"})
            rows.setdefault("shapes" if index % 2 else "words", []).append(made)
    for index in range(num_pictures):
        path = folder / f"after/pictures/p{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.frombytes("RGB", (40, 30), rng.randbytes(3600))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(path)
    return (
        write_folder(folder / "after", "tuned", sides["after"]),
        write_folder(
            folder / "before", "base", {k: [r | {"images": []} for r in v] for k, v in sides["before"].items()}
        ),
    )
