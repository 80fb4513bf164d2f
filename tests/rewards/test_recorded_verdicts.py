"""Our verdicts against those that authors of benchmarks recorded for real responses; who is right was read by hand.

`recorded_disagreements.jsonl` holds every response on which we and the recorded verdict differ, with the reader's
decision: "ours", "theirs", or "open" where the response can be read both ways. It names responses by file and id and
quotes none of them (MathVista's are CC BY-SA and for evaluation only).
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rewards import Item, Verifier

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("VLM_MHPO_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
TABLE = [json.loads(line) for line in Path(__file__).with_name("recorded_disagreements.jsonl").read_text().splitlines()]
# Of each source: recorded verdicts, ours that agree at least, and disagreements at most that a reader decides against
# us or leaves open. MathVista's own rule calls refusals and empty responses right: most of its disagreements.
MEASURED = {"mathvision": (300, 294, 0), "mathvista": (534, 461, 12), "olympiadbench": (23, 20, 2)}


def _mathvision():
    lines = (SHARED / "mathvision" / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    problems = {row["id"]: row for row in map(json.loads, lines)}
    for file in sorted((SHARED / "mathvision" / "outputs").rglob("*.jsonl")):
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            problem = problems[row["id"]]
            item = Item(row["response"], problem["answer"], choices=tuple(problem["options"]) or None)
            yield f"{file.stem}/{row['id']}", item, row["correct"]


def _mathvista():
    for file in sorted((SHARED / "mathvista_extraction" / "results").rglob("*.json")):
        for row in json.loads(file.read_text(encoding="utf-8")).values():
            precision = None if row["precision"] is None else int(row["precision"])
            choices = tuple(row["choices"] or ()) or None
            item = Item(row["response"], row["answer"], choices=choices, precision=precision, unit=row["unit"])
            yield f"{file.stem}/{row['pid']}", item, row["true_false"]


def _olympiadbench():
    file = SHARED / "olympiadbench_scoring" / "eval" / "scoring_examples.json"
    for number, case in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        for index, answer in enumerate(case["Ans"]):
            item = Item(f"<answer>{answer['answer']}</answer>", case["GT"], template="think_answer")
            yield f"{number}/{index}", item, answer["equal"]


READERS = {"mathvision": _mathvision, "mathvista": _mathvista, "olympiadbench": _olympiadbench}
FOLDERS = {"mathvision": "mathvision", "mathvista": "mathvista_extraction", "olympiadbench": "olympiadbench_scoring"}


@pytest.fixture(scope="module")
def verdicts():
    """`verdicts(source)`: {id: (ours, theirs)} of a source, computed once; skips where its folder is not there."""
    done = {}

    def get(source):
        if not (SHARED / FOLDERS[source]).is_dir():
            pytest.skip(f"the recorded responses are not here: {FOLDERS[source]} (set VLM_MHPO_SHARED_DATA)")
        if source not in done:
            ids, items, theirs = zip(*READERS[source](), strict=True)
            # A formula goes to a worker, which a busy machine slows: here the rules are tested, not the machine.
            with Verifier(timeout_s=10.0) as verifier:
                ours = [score.correct for score in verifier.score(items)]
            done[source] = dict(zip(ids, zip(ours, theirs, strict=True), strict=True))
            assert len(done[source]) == len(ids)
        return done[source]

    return get


def _decisions(source):
    return {row["id"]: row for row in TABLE if row["source"] == source}


@pytest.mark.parametrize("source", MEASURED)
def test_we_agree_with_recorded_verdicts_as_often_as_measured(verdicts, source):
    pairs = verdicts(source).values()
    total, agreeing, _ = MEASURED[source]
    assert len(pairs) == total
    assert sum(ours == theirs for ours, theirs in pairs) >= agreeing


@pytest.mark.parametrize("source", MEASURED)
def test_every_disagreement_was_read_and_decided(verdicts, source):
    found = {key: pair for key, pair in verdicts(source).items() if pair[0] != pair[1]}
    decided = {key: (row["ours"], row["theirs"]) for key, row in _decisions(source).items()}
    assert {key: pair for key, pair in found.items() if decided.get(key) != pair} == {}


@pytest.mark.parametrize("source", MEASURED)
def test_where_the_reader_sides_with_us_we_still_say_so(verdicts, source):
    sided = {key: row for key, row in _decisions(source).items() if row["who_is_right"] == "ours"}
    assert {key: row["why"] for key, row in sided.items() if verdicts(source)[key][0] != row["ours"]} == {}


@pytest.mark.parametrize("source", MEASURED)
def test_the_reader_decides_few_disagreements_against_us_and_none_that_we_would_pay(verdicts, source):
    decisions = {key: row["who_is_right"] for key, row in _decisions(source).items()}
    against = [
        (key, ours)
        for key, (ours, theirs) in verdicts(source).items()
        if ours != theirs and decisions.get(key) != "ours"
    ]
    assert len(against) <= MEASURED[source][2]
    assert [key for key, ours in against if ours] == []


def test_the_table_is_well_formed():
    assert len({(row["source"], row["id"]) for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert set(row) == {"source", "id", "ours", "theirs", "who_is_right", "why"}
        assert row["ours"] != row["theirs"] and row["why"] and row["who_is_right"] in ("ours", "theirs", "open")
    assert Counter(row["who_is_right"] for row in TABLE) == {"ours": 68, "theirs": 11, "open": 3}
