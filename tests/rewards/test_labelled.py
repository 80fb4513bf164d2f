"""The labelled sets: right verdicts on the development sets and, by the published goal, on the sets kept for the end.

The `*_test` files are scored here and nowhere else: nobody tunes the rules on them, so only totals are reported.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from rewards import Item, Verdict, Verifier, format_score

FOLDER = Path(__file__).resolve().parents[1] / "data" / "labelled"
DEVELOPMENT = (
    "math_dev",
    "values_dev",
    "reading_dev",
    "choices_dev",
    "text_dev",
    "extraction_dev",
    "equal_dev",
    "neighbours_dev",
    "forms_dev",
    "hacks",
)
# Each by somebody who had seen neither the verifier nor its tests, as models write them; models_* in the mix of five
# sets. The dev sets were opened to mend what they showed. Of models_test only counts were looked at, but for two cases
# that were printed by mistake; unseen_test was scored after the last change. All stay as they were written.
OPENED = {"models_dev": 0.965, "unseen_dev": 0.925}
UNSEEN = {
    "models_test": (0.945, "942eefe3ff921aecd7967d96b5838a965a88185ea203fa94680f049558c807eb"),
    "unseen_test": (0.94, "2b35b3bc4f21fdad165b50610694a842eb6c69a37d80493d63f79512db0e093c"),
}
KEPT = ("math_test", "choices_test", "text_test", "extraction_test")


def _rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _completion(row):
    """The text of a row; a long one is written as (before, part, number of parts, after)."""
    if "completion" in row:
        return row["completion"]
    before, part, number, after = row["repeat"]
    return before + part * number + after


def _item(row):
    choices = tuple(row["choices"]) if row["choices"] else None
    gold, template, kind = row["gold"], row["template"], row["kind"]
    return Item(_completion(row), gold, template, kind, choices, row["precision"], row["unit"])


@pytest.fixture(scope="module")
def verifier():
    """One pool with the default limits: every decision ends within one second."""
    with Verifier(num_workers=2) as pool:
        yield pool


def _tally(verifier, rows):
    """Rows by outcome: "right", "wrong rewarded", "right refused"."""
    scores = verifier.score([_item(row) for row in rows])
    outcomes = {"right": [], "wrong rewarded": [], "right refused": []}
    for row, score in zip(rows, scores, strict=True):
        name = "right" if score.correct == row["correct"] else "wrong rewarded" if score.correct else "right refused"
        outcomes[name].append((row["id"], score))
    return outcomes


@pytest.mark.parametrize("name", DEVELOPMENT)
def test_the_development_sets_are_judged_right_and_no_wrong_answer_is_rewarded(verifier, name):
    rows = _rows(name)
    outcomes = _tally(verifier, rows)
    assert outcomes["wrong rewarded"] == []
    assert len(outcomes["right"]) >= 0.99 * len(rows), outcomes["right refused"]


def test_sentences_that_state_the_gold_are_paid_and_no_other_is(verifier):
    rows = _rows("sentences_dev")
    outcomes = _tally(verifier, rows)
    assert outcomes["wrong rewarded"] == []
    assert len(outcomes["right"]) >= 0.93 * len(rows), outcomes["right refused"]


def test_every_hang_is_decided_right_within_the_verifiers_own_limit(verifier):
    rows = _rows("hangs")
    outcomes = _tally(verifier, rows)
    assert outcomes["wrong rewarded"] == outcomes["right refused"] == []
    # Each comparison ends at the latest when the pool's second is over: it is killed, and counted as a timeout.
    assert verifier.timeout_s <= 1.0
    assert {score.verdict for _, score in outcomes["right"]} <= set(Verdict) - {Verdict.worker_lost, Verdict.bad_gold}


def test_the_format_is_judged_right_in_every_case():
    rows = _rows("format")
    wrong = [row["id"] for row in rows if format_score(row["completion"], row["template"]) != row["format_ok"]]
    assert wrong == []


def test_the_kept_sets_meet_the_published_goal(verifier):
    counts, choices = Counter(), Counter()
    for name in KEPT:
        tally = {outcome: len(found) for outcome, found in _tally(verifier, _rows(name)).items()}
        counts.update(tally)
        if name == "choices_test":
            choices.update(tally)
    # Counts only: a printed case would invite tuning on it.
    assert counts["right"] >= 0.97 * counts.total(), dict(counts)
    assert counts["wrong rewarded"] <= 0.005 * counts.total(), dict(counts)
    assert choices["right"] >= 0.95 * choices.total(), dict(choices)


def test_unseen_responses_are_as_they_were_written():
    for name, (_, digest) in UNSEEN.items():
        assert hashlib.sha256((FOLDER / f"{name}.jsonl").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("name", "least"), [*OPENED.items(), *((name, least) for name, (least, _) in UNSEEN.items())])
def test_responses_as_models_write_them_meet_the_published_figures(verifier, name, least):
    rows = _rows(name)
    # Counts only, as above.
    counts = {outcome: len(found) for outcome, found in _tally(verifier, rows).items()}
    assert counts["right"] >= least * len(rows), counts
    assert counts["wrong rewarded"] <= 0.0025 * len(rows), counts
