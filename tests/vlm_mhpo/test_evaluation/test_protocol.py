"""Whatever changes a score changes the hash, nothing else does, and unlike reports are not compared in silence."""

import dataclasses

import pytest

from tests.builders import picture
from tests.vlm_mhpo.test_evaluation.cases import protocol, row
from vlm_mhpo.config.reading import known_keys
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.protocol import benchmark_protocol, check_same, differences, protocol_hash, weights_digest
from vlm_mhpo.records.evaluation import JudgeProtocol, Protocol

CHANGES = dict(
    prompt="run",
    system_prompt="Think.",
    min_pixels=1,
    max_pixels=None,
    num_samples=8,
    temperature=0.6,
    top_p=0.9,
    top_k=20,
    max_tokens=65,
    seed=1,
    grader="2",
    split="testmini",
    num_rows=3,
    instruction="Be short.",
    prompts="ab",
    data="cd",
    judge={"model": "m", "served": "m-1", "prompts": "ee", "max_tokens": 9},
)

HAS_NO_KEY = {"grader", "split", "num_rows", "instruction", "prompts", "data", "judge"}


def changed(name) -> Protocol:
    values = protocol().model_dump()
    (values["benchmarks"]["made"] if name in values["benchmarks"]["made"] else values)[name] = CHANGES[name]
    return Protocol.model_validate(values)


def test_every_field_is_tried():
    fields = {*Protocol.model_fields, *type(protocol().benchmarks["made"]).model_fields} - {"benchmarks"}
    assert fields == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_hash_and_is_named(name):
    plain, other = protocol(), changed(name)
    assert protocol_hash(plain) == protocol_hash(protocol())
    assert protocol_hash(plain) != protocol_hash(other)
    assert protocol_hash(plain, "made") != protocol_hash(other, "made")
    (found,) = differences(plain, other)
    key = found.split(":")[0].removeprefix("benchmarks.made.")
    # The key that a user sets, where there is one.
    assert key == name if name in HAS_NO_KEY else key in known_keys()
    assert key.rpartition(".")[2] == {"max_tokens": "max_completion_length"}.get(name, name)
    with pytest.raises(EvaluationError, match=f"{key}.*\n.*--allow-protocol-difference"):
        check_same(plain, other, what="a and b", allowed=False)
    assert check_same(plain, other, what="a and b", allowed=True) == (found,)


@pytest.mark.parametrize(("field", "value"), [("model", "n"), ("served", "m-2"), ("prompts", "ff"),
                                             ("max_tokens", None)])  # fmt: skip
def test_every_field_of_a_judge_changes_the_hash(field, value):
    judge = CHANGES["judge"]
    assert set(judge) == set(JudgeProtocol.model_fields)
    other = protocol(judge=judge | {field: value})
    assert protocol_hash(other) not in (protocol_hash(protocol(judge=judge)), protocol_hash(protocol()))
    (found,) = differences(protocol(judge=judge), other)
    assert found.startswith('benchmarks.made.judge: {"model": "m"')


def test_reports_by_rules_alone_keep_the_hash_that_they_had_before_there_were_judges():
    # As the last version without judges printed them.
    assert (protocol_hash(protocol()), protocol_hash(protocol(), "made")) == ("acb715eb8372",) * 2


def test_all_differences_are_named_at_once():
    other = protocol(seed=3, data="cd").model_copy(update={"top_k": 5})
    with pytest.raises(EvaluationError) as refused:
        check_same(protocol(), other, what="a and b", allowed=False)
    text = str(refused.value)
    assert "a and b have different protocols" in text
    assert all(name in text for name in ("seed: 0 and 3", "top_k: 0 and 5", 'benchmarks.made.data: "bb" and "cd"'))


def test_a_benchmark_that_only_one_side_has_is_no_difference():
    more = protocol()
    more = more.model_copy(update={"benchmarks": more.benchmarks | {"other": more.benchmarks["made"]}})
    assert differences(protocol(), more) == differences(more, protocol()) == []
    assert protocol_hash(more, "made") == protocol_hash(protocol(), "made")


def of(rows, asked=None):
    return benchmark_protocol(rows, asked or rows, split="test", instruction="")


def test_the_digests_follow_questions_golds_and_picture_bytes(tmp_path):
    first, second = picture(28, 28, seed=1), picture(28, 28, seed=2)
    rows = [row("a", images=[first]), row("b")]
    plain = of(rows)
    for name, value in {
        "problem": "<image>Other?",
        "answer": "8",
        "id": "c",
        "images": (second,),
        "unit": "cm",
    }.items():
        assert of([dataclasses.replace(rows[0], **{name: value}), rows[1]]).data != plain.data, name
    assert of(rows[::-1]).data != plain.data
    # The place of the file does not count, its bytes do.
    file = tmp_path / "a.png"
    file.write_bytes(first)
    assert of([dataclasses.replace(rows[0], images=(file,)), rows[1]]) == plain
    reworded = of(rows, [dataclasses.replace(rows[0], problem="<image>Hint: think."), rows[1]])
    assert (reworded.data, reworded.prompts != plain.prompts) == (plain.data, True)


def test_the_digest_of_weights_follows_their_bytes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 1000)
    before = weights_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("no weights")
    assert weights_digest(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"a" * 999 + b"b")
    assert weights_digest(str(tmp_path)) != before
    assert weights_digest("org/name-on-the-hub") is None
