"""Filters: the form of a gold, and bounds that hold at the bound itself."""

import io

import pytest
from PIL import Image

from data_prep import DataError
from data_prep.prepare.filters import answer_form, answer_form_filter, image_filters, kind_filter, prompt_token_filter
from data_prep.schema import make_row


def row(answer="2", **columns):
    return make_row(id="a", problem="?", answer=answer, **columns)


def picture(width, height):
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "golds"),
    {
        "integer": ["12", "-3", "1,234", "$12$", "60^\\circ", "60°", " 7 "],
        "decimal": ["2.50", ".5", "1,234.5", "-0.1"],
        "fraction": ["27/5", r"\frac{27}{5}", r"-\dfrac { 1 } { 2 }"],
        "percent": ["25%", r"12.5\%"],
        "list": ["(3, 4)", "3,4", r"\{1,2\}", r"\left(a, b\right]"],
        "expression": [r"5\sqrt{3}", r"9\pi", "x=5", "2x+1", "√2", "50 cm", r"\frac{\sqrt{2}}{2}", "9:17"],
        "text": ["yes", "equal to", "A", "Nov", "12 apples"],
    }.items(),
)
def test_a_gold_has_the_form_it_looks_like(form, golds):
    assert {gold: answer_form(row(gold)) for gold in golds} == dict.fromkeys(golds, form)


def test_a_choice_is_a_choice_whatever_its_text():
    assert answer_form(row("2", kind="choice", choices=["2", "3"])) == "choice"


@pytest.mark.parametrize(
    "gold", ["9" * 200_000 + "x", "\\pi" * 60_000 + "abc", "1," * 100_000 + "x", "\\frac{" * 40_000]
)
def test_the_form_of_a_long_gold_is_found_in_linear_time(gold):
    # A pattern that backtracks would run past the time limit of the suite.
    assert answer_form(row(gold)) in ("text", "expression", "list")


def test_bounds_of_pictures_include_the_bound_and_hold_for_every_picture():
    def reasons(sizes, **bounds):
        pictures = row(images=[picture(*size) for size in sizes])
        return [filter.name for filter in image_filters(**bounds) if filter.reason(pictures)]

    at_bounds = {"min_side": 10, "max_side": 40, "min_pixels": 400, "max_pixels": 400}
    assert reasons([(40, 10), (10, 40)], **at_bounds) == []
    assert reasons([(40, 10), (41, 9)], **at_bounds) == ["min_side", "max_side", "min_pixels"]
    assert reasons([(40, 11)], **at_bounds) == ["max_pixels"]
    assert reasons([], **at_bounds) == [] and image_filters() == []


def test_a_prompt_may_have_as_many_tokens_as_the_bound():
    filter = prompt_token_filter(lambda row: len(row.answer), 3, "some-model")
    assert filter.reason(row("123")) is None and filter.reason(row("1234")) == "its prompt has 4 tokens"
    assert "some-model" in filter.setting and "3" in filter.setting


def test_unknown_kinds_and_forms_are_refused_by_name():
    with pytest.raises(DataError, match="'colour' is no kind; use auto"):
        kind_filter(["math", "colour"])
    with pytest.raises(DataError, match="'colour' is no answer form; use choice"):
        answer_form_filter(["colour"])
