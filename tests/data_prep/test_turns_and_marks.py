"""Chats keep all their turns, images stand where the marks of the text say, and what does not fit is refused."""

from __future__ import annotations

import json

import pytest

from data_prep import DataError, RowError, Turn, load_rows, read_image
from data_prep.audit import audit
from data_prep.formats.marks import place_images
from data_prep.loading import scan_rows
from data_prep.prepare.prepare import prepare
from data_prep.schema import make_row
from tests.builders import picture

FIRST, SECOND, THIRD = (picture(56, 56, seed=seed) for seed in range(3))


@pytest.fixture
def folder(tmp_path):
    for name, image in zip("abc", (FIRST, SECOND, THIRD), strict=True):
        (tmp_path / f"{name}.png").write_bytes(image)
    return tmp_path


def table(folder, *records):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def said(role: str, content) -> dict:
    return {"role": role, "content": content}


CHAT = [said("system", "Be brief."), said("user", "What is <image>?"), said("assistant", "A bar."),
        said("user", "And <image>?")]  # fmt: skip


# Turns


def test_images_inside_messages_count_through_all_turns(folder):
    def shown(name: str) -> dict:
        return {"type": "image", "image": name}

    messages = [
        said("user", [shown("b.png"), {"type": "text", "text": "What?"}]),
        said("assistant", [{"type": "text", "text": "A bar."}]),
        said("user", [{"type": "text", "text": "And "}, shown("a.png"), shown("c.png"), {"type": "text", "text": "?"}]),
    ]
    (row,) = load_rows(table(folder, {"messages": messages, "solution": "7"}))
    assert [read_image(image) for image in row.images] == [SECOND, FIRST, THIRD]
    assert row.earlier_turns == (Turn("user", "<image>What?"), Turn("assistant", "A bar."))
    assert row.problem == "And <image><image>?"


@pytest.mark.parametrize("column", ["prompt", "messages", "conversations"])
def test_a_chat_beside_the_question_is_read_or_refused_but_no_turn_is_lost(folder, column):
    record = {"problem": "And <image>?", "images": ["a.png"], "answer": "7"}
    for messages in (
        [CHAT[0], said("user", "And?")],
        [said("user", "1?"), said("assistant", "1"), said("user", "2?")],
    ):
        source = table(folder, record | {column: messages})
        with pytest.raises(RowError, match=rf"'{column}'.*data\.ignore_columns"):
            list(load_rows(source))
        (row,) = load_rows(source, ignore_columns=["problem"])
        assert len(row.earlier_turns) == len(messages) - 1
        (row,) = load_rows(source, ignore_columns=[column])
        assert (row.earlier_turns, row.problem) == ((), "And <image>?")
    # A chat of the question alone says nothing more.
    (row,) = load_rows(table(folder, record | {column: [said("user", "And <image>?")]}))
    assert row.problem == "And <image>?"


def test_a_column_that_a_user_names_may_hold_a_chat(folder):
    source = table(folder, {"ask": CHAT, "final": "7", "pics": ["a.png", "b.png"]})
    (row,) = load_rows(source, columns={"problem": "ask", "answer": "final", "images": "pics"})
    assert (row.earlier_turns[0], row.problem, row.answer) == (Turn("system", "Be brief."), "And <image>?", "7")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([said("user", "a"), said("system", "b"), said("user", "c")], "turns user, system, user"),
        ([said("assistant", "a"), said("user", "b")], "turns assistant, user"),
        ([said("user", "a"), said("user", "b")], "turns user, user"),
        ([said("user", "a"), said("assistant", "b"), said("assistant", "c")], "turns user, assistant, assistant"),
        ([said("system", "a")], "turns system"),
        ([said("user", "a"), said("assistant", [{"type": "image"}]), said("user", "b")], "only a user shows images"),
        ([said("system", [{"type": "image"}]), said("user", "b")], "only a user shows images"),
    ],
)
def test_turns_that_are_no_questions_and_answers_are_refused_in_words(folder, messages, words):
    (error,) = scan_rows(table(folder, {"messages": messages, "solution": "7", "images": ["a.png"]}))
    assert isinstance(error, RowError) and (error.field, words in str(error)) == ("messages", True)


@pytest.mark.parametrize("other", ["Be verbose.", 5, ["x"]])
def test_two_system_messages_that_differ_are_refused(folder, other):
    record = {"messages": CHAT, "solution": "7", "images": ["a.png", "b.png"]}
    (error,) = scan_rows(table(folder, record | {"system": other}))
    assert error.field == "system"
    rows = scan_rows(table(folder, record | {"system": "Be brief."}, record | {"system": ""}, record))
    assert [row.earlier_turns[0] for row in rows] == [Turn("system", "Be brief.")] * 3


@pytest.mark.parametrize("history", ["x", [["a"]], [["a", "b", "c"]], [5], {"a": "b"}])
def test_a_history_that_is_no_pairs_is_refused(folder, history):
    (error,) = scan_rows(table(folder, {"query": "q", "history": history, "answer": "7"}))
    assert error.field == "history"


def test_a_chat_survives_prepare_and_an_audit_reads_all_of_it(folder):
    record = {"prompt": CHAT, "solution": "7", "images": ["a.png", "b.png"]}
    other = [*CHAT[:2], said("assistant", "A bar of 3."), CHAT[3]]
    source = table(folder, record, record | {"prompt": other})
    rows = list(load_rows(source))
    prepare(rows, folder / "out")
    again = list(load_rows(folder / "out"))
    assert [(row.earlier_turns, row.problem) for row in again] == [(row.earlier_turns, row.problem) for row in rows]
    assert [[read_image(image) for image in row.images] for row in again] == [[FIRST, SECOND]] * 2
    # The last question and the images are the same; what was said before is not.
    defects = {defect.check: defect.num_rows for defect in audit(source).defects}
    assert defects["duplicates"] == 0
    defects = {defect.check: defect.num_rows for defect in audit(table(folder, record, record)).defects}
    assert defects["duplicates"] == 1


def test_rows_of_an_earlier_version_are_read_as_they_were(folder):
    import pyarrow.parquet

    prepare([make_row(id="r", problem="Q", answer="So \\boxed{7}", kind="text")], folder / "out", check_gold=False)
    file = folder / "out" / "all.parquet"
    whole = pyarrow.parquet.read_table(file)
    (folder / "out" / "manifest.json").unlink()
    old = whole.drop_columns("earlier_turns").replace_schema_metadata({b"vlm_mhpo.schema_version": b"2"})
    pyarrow.parquet.write_table(old, file)
    (row,) = load_rows(file)
    assert (row.answer, row.earlier_turns) == ("So \\boxed{7}", ())


# Marks


@pytest.mark.parametrize(
    ("text", "num_images", "expected", "order"),
    [
        ("<image 1> and <image 2>", 2, "<image> and <image>", [0, 1]),
        ("<image_1> and <image_2>", 2, "<image> and <image>", [0, 1]),
        ("<image1> and <Image2>", 2, "<image> and <image>", [0, 1]),
        ("<|image_1|> and <|image_2|>", 2, "<image> and <image>", [0, 1]),
        ("[IMAGE_1] and [IMAGE 2]", 2, "<image> and <image>", [0, 1]),
        ("<img1> and <img_2>", 2, "<image> and <image>", [0, 1]),
        ("<image_0> and <image_1>", 2, "<image> and <image>", [0, 1]),
        ("<image 2> or <image 1>, <image 2>?", 2, "<image> or <image>, image 1?", [1, 0]),
        # What no mark names stands where its number says.
        ("See <image 2>.", 2, "<image>See <image>.", [0, 1]),
        ("See <image 1>.", 3, "See <image>.<image><image>", [0, 1, 2]),
        ("See <image 2>.", 3, "<image>See <image>.<image>", [0, 1, 2]),
        ("<|vision_start|><|image_pad|><|vision_end|>What?", 1, "<image>What?", [0]),
        ("a<|image_pad|><|image_pad|>b<|image_pad|>", 2, "a<image>b<image>", [0, 1]),
        ("<|vision_start|><image><|vision_end|>What?", 1, "<image>What?", [0]),
        ("<img>a<img>", 2, "<image>a<image>", [0, 1]),
        ("[IMAGE]a", 1, "<image>a", [0]),
        ("a<image_placeholder>", 1, "a<image>", [0]),
        # Text, as it does not fit the images or `<image>` says where they stand.
        ("The tag <img> and the token <|image_pad|>", 0, "The tag <img> and the token <|image_pad|>", []),
        ("<img>a<img>", 1, "<img>a<img>", [0]),
        ("<image>In <image 1> ...", 1, "<image>In <image 1> ...", [0]),
        ("<image>a<|image_pad|>", 1, "<image>a<|image_pad|>", [0]),
    ],
)
def test_marks_become_placeholders_in_the_order_of_the_images(text, num_images, expected, order):
    assert place_images([text], [], num_images) == ([expected], [], order)


def test_numbers_count_through_turns_and_choices():
    texts, choices, order = place_images(
        ["Is it <image 2>?", "Which is like <image 2>?"], ["<image 1>", "<image 3>", "<image 2>"], 3
    )
    assert texts == ["Is it <image>?", "Which is like image 1?\nimage 2: <image>\nimage 3: <image>"]
    assert (choices, order) == (["image 2", "image 3", "image 1"], [1, 0, 2])


@pytest.mark.parametrize(
    ("text", "images"), [("<image 3>?", ["a.png", "b.png"]), ("<image_1>?", []), ("<image_0> <image_2>", ["a.png"] * 2)]
)
def test_a_mark_of_an_image_that_is_not_there_is_refused(folder, text, images):
    (error,) = scan_rows(table(folder, {"problem": text, "answer": "7", "images": images}))
    assert (error.field, "names image" in str(error)) == ("problem", True)


# What is ignored on purpose, and what is said of sets without images


def test_answers_and_system_messages_call_images_by_the_place_at_which_they_are_shown(folder):
    chat = [
        said("system", "<image 1> is a map."),
        said("user", "What is <image 2>?"),
        said("assistant", "<image 2> is a bar, unlike <image 1>, and <image 9> is not there."),
        said("user", "And <image 1>?"),
    ]
    (row,) = load_rows(table(folder, {"messages": chat, "answer": "7", "images": ["a.png", "b.png"]}))
    assert [*(turn.text for turn in row.earlier_turns), row.problem] == [
        "image 2 is a map.",
        "What is <image>?",
        "image 1 is a bar, unlike image 2, and <image 9> is not there.",
        "And <image>?",
    ]
    assert [read_image(image) for image in row.images] == [SECOND, FIRST]
    # Beside `<image>` numbered marks are text, in every turn.
    chat[1], chat[3] = said("user", "<image>What is <image>?"), said("user", "And?")
    (row,) = load_rows(table(folder, {"messages": chat, "answer": "7", "images": ["a.png", "b.png"]}))
    assert row.earlier_turns[0].text == "<image 1> is a map."


def test_a_column_that_is_meant_to_be_ignored_is_named_and_left_out(folder):
    source = table(folder, {"problem": "Q", "answer": "7", "image": "a.png", "worked": "b.png", "level": 2})
    with pytest.raises(RowError, match=r"'worked'.*data\.ignore_columns=\[worked\].*--ignore-columns worked"):
        list(load_rows(source))
    (row,) = load_rows(source, ignore_columns=["worked"])
    assert [read_image(image) for image in row.images] == [FIRST] and dict(row.metadata) == {"level": 2}
    # Also one of two columns that show images.
    (row,) = load_rows(table(folder, {"problem": "Q", "answer": "7", "images": "a.png", "image": "b.png"}),
                       ignore_columns=["images"])  # fmt: skip
    assert [read_image(image) for image in row.images] == [SECOND]


def test_columns_of_a_known_layout_cannot_be_ignored(folder):
    (folder / "problems").mkdir()
    (folder / "diagrams").mkdir()
    with pytest.raises(DataError, match=r"formalgeo7k.*leave data\.ignore_columns out"):
        load_rows(folder, ignore_columns=["x"])


@pytest.mark.parametrize("has_image", [False, True])
@pytest.mark.parametrize("command", ["prepare", "audit"])
def test_a_set_without_images_is_said_to_be_one_with_its_columns(folder, command, has_image):
    from typer.testing import CliRunner

    from vlm_mhpo.cli import app

    records = [{"problem": f"What is {n}?", "answer": "7", "shot": "http://x.invalid/a.png", "old": 1} for n in "ab"]
    records[0] |= {"image": "a.png"} if has_image else {}
    out = ["--out", str(folder / "out")]
    options = ["--columns", "problem=problem", "--ignore-columns", "old"]
    done = CliRunner().invoke(app, [command, str(table(folder, *records)), *out, *options])
    assert done.exit_code == 0, done.output
    note = "none of the 2 rows has an image; its columns are answer, problem, shot"
    assert (note in done.output.replace("\n", " ")) is not has_image
