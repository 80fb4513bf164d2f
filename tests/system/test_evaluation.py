"""Whole evaluations: the same report on one and two ranks and after a kill, and what goes wrong in one sentence."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.system.ranks import run_commands, run_ranks
from tests.vlm_mhpo.test_evaluation.judge_server import SERVED, Played, judge_server, says
from tests.vlm_mhpo.test_evaluation.planted import NUM_ROWS, plant_mathverse, plant_mathvista
from vlm_mhpo.records.evaluation import read_results

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

BASE = Path(__file__).with_name("base.yaml")
SAMPLED = ["eval.num_samples=2", "eval.temperature=1.0", "eval.gallery=4", "data.max_prompt_length=512"]
FILES = ("results.json", "results.md", "results.tex", "results.csv", "evaluation.json")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str, Path]:
    """Folders of small benchmarks."""
    root = tmp_path_factory.mktemp("benchmarks")
    return {"mathvista": plant_mathvista(root), "mathverse": plant_mathverse(root)}


def request(planted: dict[str, Path], out: Path, **change: Any) -> dict[str, Any]:
    """What the driver is asked for."""
    benchmarks = [f"{name}={folder}" for name, folder in planted.items()]
    return {"config": str(BASE), "overrides": SAMPLED, "benchmarks": benchmarks, "out": str(out),
            "probes": ["blank", "shuffled"]} | change  # fmt: skip


def drive(
    folder: Path, asked: dict[str, Any], num_ranks: int, expected: int = 0, before: Sequence[dict[str, Any]] = ()
) -> list[int]:
    """Run a request on so many ranks, `before` it others; returns the rows that each rank judged for it."""
    folder.mkdir(exist_ok=True)
    (folder / "requests.json").write_text(json.dumps([*before, asked]))
    arguments = ("-m", "tests.system.drive_evaluation", folder / "requests.json")
    ended = run_ranks(arguments, folder, num_ranks=num_ranks, timeout_s=580)
    assert {one.code for one in ended} == {expected}, "\n".join(one.stderr[-3000:] for one in ended)
    return [] if expected else [int((Path(asked["out"]) / f"judged.{rank}").read_text()) for rank in range(num_ranks)]


def files_of(out: Path) -> dict[str, bytes]:
    """Every file of a report but the page, which may name where it lies."""
    names = [*FILES, *(str(file.relative_to(out)) for part in ("results", "images") for file in (out / part).iterdir())]
    return {name: (out / name).read_bytes() for name in sorted(names)}


def verdict_of(prompt: str) -> str:
    """What the judge says: some answer of every kind, always the same to one prompt."""
    return ("A", "97", "none", "I cannot tell", "1")[zlib.crc32(prompt.encode()) % 5]


def judged(asked: dict[str, Any], played: Played) -> dict[str, Any]:
    """The request with a judge that keeps its answers beside the report."""
    judge = {"url": played.url, "model": "judge", "cache_dir": f"{asked['out']}.answers"}
    return asked | {"overrides": [*asked["overrides"], *(f"eval.judge.{key}={value}" for key, value in judge.items())]}


def check_judged(alone: Path, pair: Path) -> None:
    """A judge that came to a finished report on one rank, and one there from the first on two, say the same."""
    assert files_of(pair) == files_of(alone)
    found = read_results(alone)
    assert found.protocol.benchmarks["mathvista"].judge.served == SERVED
    score = found.benchmarks[0].judge
    lines = [json.loads(line) for line in (alone / "results" / "mathvista.jsonl").read_text().splitlines()]
    said = [c["judge"]["verdict"] for line in lines for c in line["completions"]]
    assert (len(said), said.count("unreadable")) == (2 * NUM_ROWS, score.unreadable)
    assert score.accuracy == pytest.approx(said.count("right") / len(said))
    # What rules alone had judged was not sampled again.
    assert (alone / "judged.0").read_text() == "0"


def test_ranks_and_kills_change_no_byte_of_the_report(planted, tmp_path):
    # MathVerse's two versions share an image, so its problem has nobody to swap with.
    asked = {"mathvista": planted["mathvista"]}
    alone, pair, killed = (tmp_path / name for name in ("alone", "pair", "killed"))
    with judge_server(says(verdict_of)) as played:
        # Sampled, greedy, blank and shuffled, each row once.
        rules = request(asked, tmp_path / "alone-judged", probes=[])
        before = [rules, judged(rules, played)]
        assert drive(tmp_path / "a", request(asked, alone), 1, before=before) == [4 * NUM_ROWS]
        questions = sorted(played.prompts)
        # Four chunks of 3, 3, 3 and 1 rows: rank 0 gets the first and the third.
        before = [judged(rules | {"out": str(tmp_path / "pair-judged")}, played)]
        assert drive(tmp_path / "b", request(asked, pair), 2, before=before) == [4 * 6, 4 * 4]
    check_judged(tmp_path / "alone-judged", tmp_path / "pair-judged")
    # Each question was put once to one of the ranks, and all of them by either evaluation.
    assert len(set(questions)) == len(questions) > 0
    assert sorted(played.prompts) == sorted(questions * 2)
    drive(tmp_path / "c", request(asked, killed, dies_in_chunk=6), 1, expected=-signal.SIGKILL)
    assert not (killed / "results.json").exists()
    # One condition and a chunk of the next were finished, with 10 and 3 rows.
    assert sum(drive(tmp_path / "c", request(asked, killed), 2)) == 4 * NUM_ROWS - 13
    assert files_of(pair) == files_of(alone)
    assert files_of(killed) == files_of(alone)
    assert not (killed / "parts").exists()
    found = read_results(alone).benchmarks[0]
    assert (found.num_rows, found.num_samples, set(found.pass_at)) == (NUM_ROWS, 2, {1, 2})
    assert {name: probe.num_rows for name, probe in found.probes.items()} == {"blank": NUM_ROWS, "shuffled": NUM_ROWS}
    lines = [json.loads(line) for line in (alone / "results" / "mathvista.jsonl").read_text().splitlines()]
    assert [len(line["images"]) for line in lines] == [1] * 4 + [0] * (NUM_ROWS - 4)
    assert all((alone / name).is_file() for line in lines for name in line["images"])


def test_the_command_from_evaluation_to_comparison(planted, tmp_path):
    out, other, more = (tmp_path / name for name in ("one", "other", "more"))
    common = ["evaluate", "--model", "tiny:qwen2_5_vl", "--config", BASE, "data.max_prompt_length=512"]
    both = ["--benchmarks", "mathvista,mathverse"]
    data = [part for name, folder in planted.items() for part in ("--data", f"{name}={folder}")]
    vista = ["--benchmarks", "mathvista", *data[:2]]
    runs = run_commands(
        [
            [*common, *both, "--out", out, *data, "--train", planted["mathvista"]],
            [*common, *vista, "--out", other, "--limit", "5", "--probes", "blank"],
            [*common, *vista, "--out", out, "eval.seed=1"],
            [*common, *vista, "--out", more, "--baseline", out],
            [*common, *vista, "--out", tmp_path / "new", "--baseline", out, "eval.prompt=run"],
            ["report", f"a={out}", f"b={other}", "--out", tmp_path / "compared"],
            ["report", f"a={out}", f"b={other}", "--out", tmp_path / "compared", "--allow-protocol-difference"],
            [*common, "--benchmarks", "mathvist", "--out", tmp_path / "none"],
            [*common, "--benchmarks", "mathvista", "--out", tmp_path / "none", "--data", "mathvista=/nowhere"],
            [*common, *vista, "--out", tmp_path / "none", "--probes", "upside-down"],
            [*common, *vista, "--out", tmp_path / "none", "--train", "/nowhere/train.jsonl"],
            ["evaluate", BASE, f"output_dir={tmp_path / 'run'}"],
            [
                *common,
                *vista,
                "--out",
                tmp_path / "none",
                "eval.judge.url=http://127.0.0.1:9",
                "eval.judge.model=m",
                "eval.judge.max_tries=1",
                f"eval.judge.cache_dir={tmp_path / 'answers'}",
            ],
        ],
        tmp_path,
        timeout_s=580,
    )
    assert [run["code"] for run in runs] == [0, 0, 2, 0, 2, 2, 0, 2, 2, 2, 2, 0, 7], [
        run["stderr"][-500:] for run in runs
    ]
    found = {result.name: result for result in read_results(out).benchmarks}
    assert found["mathvista"].overlap.same_picture == NUM_ROWS
    assert found["mathverse"].num_problems < found["mathverse"].num_rows
    assert read_results(out).protocol_hash in runs[0]["stdout"]
    assert read_results(other).benchmarks[0].num_rows == 5
    assert "seed: 0 and 1" in runs[2]["stderr"] and "choose another --out" in runs[2]["stderr"]
    compared = read_results(more).comparison.benchmarks[0]
    assert (compared.num_rows, compared.difference, compared.p) == (NUM_ROWS, 0.0, 1.0)
    assert 'prompt: "run" and "official"' in runs[4]["stderr"]
    assert "benchmarks.mathvista.num_rows: 10 and 5" in runs[5]["stderr"]
    assert "num_rows" in (tmp_path / "compared" / "comparison.md").read_text()
    assert "did you mean mathvista" in runs[7]["stderr"]
    assert "download" in runs[8]["stderr"] and "Traceback" not in runs[8]["stderr"]
    assert "blank or shuffled" in runs[9]["stderr"]
    assert "/nowhere/train.jsonl" in runs[10]["stderr"]
    assert not (tmp_path / "none").exists()
    assert "6 rows" in runs[11]["stdout"]
    # A judge who is not there is known before anything is sampled.
    assert "http://127.0.0.1:9/chat/completions cannot be reached" in runs[12]["stderr"]
    assert "Traceback" not in runs[12]["stderr"]


def test_benchmarks_while_training_and_an_early_stop(planted, tmp_path):
    run = tmp_path / "run"
    command = [
        "train", BASE, f"output_dir={run}", f"eval.benchmarks=[mathvista={planted['mathvista']}]", "eval.every=1",
        "eval.max_benchmark_rows=4", "eval.early_stop.metric=eval/mathvista/our_accuracy", "eval.early_stop.patience=2",
        "data.max_prompt_length=512",
    ]  # fmt: skip
    first, second = run_commands([command, command], tmp_path, timeout_s=580)
    assert (first["code"], second["code"]) == (0, 0), first["stderr"][-3000:] + second["stderr"][-3000:]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [row["eval/mathvista/our_accuracy"] for row in rows]
    # The random model never improves on what it had before training, so the second evaluation after that ends the run.
    assert values == [values[0]] * 3
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(0 <= row["eval/mathvista/accuracy"] <= 1 for row in rows)
    assert json.loads((run / "eval" / "after.json").read_text())["step"] == 2
    assert "no new best in 2 evaluations" in first["stderr"] + first["stdout"]
    assert any((run / "checkpoints").iterdir())
    # Started again it is still over.
    assert (run / "metrics.jsonl").read_text().count("\n") == 3
