"""What is on disk is what the published schema says."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.vlm_mhpo.test_evaluation.cases import items, results
from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.evaluation import Evaluation, Item, Results, published_schema
from vlm_mhpo.records.reading import parse, tolerant

PUBLISHED = Path(__file__).resolve().parents[3] / "docs" / "evaluation_schema.json"


def test_the_published_schema_is_that_of_the_program():
    # To publish it anew: json.dumps(published_schema(), indent=1) + "\n".
    assert PUBLISHED.read_text() == json.dumps(published_schema(), indent=1) + "\n"


def test_a_written_report_has_every_key_that_was_agreed():
    written = json.loads(results(items({"a": "+-", "b": "nt"})).model_dump_json(by_alias=True))
    assert written["schema"] == 1
    assert set(written) >= {"schema", "model", "created_by", "protocol", "protocol_hash", "benchmarks", "comparison"}
    (benchmark,) = written["benchmarks"]
    assert set(benchmark) >= {"name", "title", "citation", "split", "deviation", "num_problems", "num_rows",
                              "num_samples", "scores", "pass_at", "extra", "verdicts", "mean_tokens", "categories",
                              "probes", "overlap", "items"}  # fmt: skip
    assert set(benchmark["scores"]["official"]) == {"accuracy", "low", "high"}
    assert benchmark["pass_at"] == {"1": 0.25, "2": 0.5}
    assert Results.model_validate(written).model_dump_json(by_alias=True) == json.dumps(
        written, separators=(",", ":"), ensure_ascii=False
    )
    assert {key for key, value in published_schema()["results.json"]["properties"].items()} == set(written)


def test_a_strange_or_missing_key_and_a_nan_are_refused():
    written = json.loads(results(items({"a": "+"})).model_dump_json(by_alias=True))
    for change in ({"more": 1}, {"model": None}, {"schema": 2}):
        with pytest.raises(ValidationError):
            Results.model_validate(written | change)
    line = json.loads(items({"a": "+"})[0].model_dump_json())
    assert set(line) == {"id", "problem", "question", "choices", "gold", "equivalent_answers", "kind", "images",
                         "categories", "completions"}  # fmt: skip
    with pytest.raises(ValidationError):
        Item.model_validate(line | {"completions": [{"text": "no verdict"}]})


def test_a_page_reads_what_older_newer_and_damaged_writers_left():
    line = {"name": "after", "accuracy": float("nan"), "newer": 1, "by_kind": {"choice": {"num_rows": 2}}}
    line |= {"items": [{"id": "bell \x07, half \ud800", "completions": [{"correct": True}]}]}
    with pytest.raises(ValidationError):
        Evaluation.model_validate(line)
    found = parse(tolerant(Evaluation), line, "here")
    assert isinstance(found, Evaluation)
    assert (found.name, found.accuracy, found.step, found.mean_length) == ("after", None, None, None)
    assert (found.by_kind["choice"].num_rows, found.by_kind["choice"].accuracy, found.by_source) == (2, None, {})
    (item,) = found.items
    assert (item.id, item.num_images, item.choices, item.images) == ("bell \ufffd, half ?", None, None, ())
    assert item.right and item.completions[0].text == ""
    with pytest.raises(ReportError, match=r"here: items\.0\.id: Field required"):
        parse(tolerant(Evaluation), line | {"items": [{}]}, "here")
    # What the program itself compares with is read strictly all the same.
    with pytest.raises(ValidationError):
        Evaluation.model_validate(line)
