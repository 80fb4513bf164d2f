"""Prompt lengths counted without weights are those of the prompts that training builds."""

import pytest

from data_prep import DataError
from tests.builders import mixed_rows, picture, problem_row
from vlm_mhpo.errors import ModelError
from vlm_mhpo.prompts.token_counts import token_counter


def test_tokens_are_those_of_the_prompts_and_pictures_count_by_their_size(tiny):
    model = tiny("qwen2_5_vl")
    count = token_counter(str(model.folder))
    rows = mixed_rows(model)
    assert [count(row) for row in rows] == [model.builder()(row).num_tokens for row in rows]
    # 2 x 3 image tokens against 4 x 5.
    small, large = (problem_row("a", "?", [picture(28 * w, 28 * h)]) for w, h in ((2, 3), (4, 5)))
    assert count(large) - count(small) == 20 - 6


def test_a_row_that_the_model_cannot_read_is_an_unusable_row(tiny):
    count = token_counter(str(tiny("qwen2").folder))
    with pytest.raises(DataError, match="a qwen2 model sees none"):
        count(problem_row("a", "?", [picture(56, 56)]))


def test_a_folder_without_a_processor_is_named(tmp_path):
    with pytest.raises(ModelError, match=f"no processor at '{tmp_path}'"):
        token_counter(str(tmp_path))
