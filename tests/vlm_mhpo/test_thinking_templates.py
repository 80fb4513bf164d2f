"""What a chat template opens is part of the response, and tags that a tokenizer calls special are text all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_prep.schema import make_row
from rewards import RewardSpec, Sample, Verifier, build_scorer
from rewards.response.response import ANSWER_CLOSE, ANSWER_OPEN, BOX_CLOSE, BOX_OPEN, THINK_CLOSE, THINK_OPEN
from tests.builders import VISION_FAMILIES, Tiny, picture, problem_row
from tests.model_folders import change_json, copy_of
from vlm_mhpo.errors import TrainingError
from vlm_mhpo.evaluation.tasks import verify_groups
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.scoring.scorer import score_groups
from vlm_mhpo.training.warm_start import _check_solutions, target_ids
from vlm_mhpo.types import BOX, TAGS, Completion, Group, Prompt

PERFECT = "<think>3 + 4 is 7.</think><answer>7</answer>"
REWARDS = (RewardSpec("accuracy", 1.0), RewardSpec("format", 0.1))
LIMITS = {"num_workers": 1, "timeout_s": 5.0, "memory_limit_bytes": 2**30}
OPENED, EMPTY = "<think>\n", "<think>\n\n</think>\n\n"


def test_the_tags_are_those_that_the_rewards_read():
    assert TAGS == (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
    assert BOX == (BOX_OPEN, BOX_CLOSE)


def load(folder: Path) -> Tiny:
    policy, codec = load_policy(str(folder))
    return Tiny(policy.family.model_type, folder, policy, codec)


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl", "qwen2"])
def special_tags(request, tiny, tmp_path) -> Tiny:
    """A tiny model whose tokenizer calls all four tags special, as some releases do."""
    folder = copy_of(tiny(request.param).folder, tmp_path / "model")

    def declare(values: dict) -> None:
        for token in values["added_tokens"]:
            token["special"] = token["special"] or token["content"] in TAGS

    change_json(folder, "tokenizer.json", declare)
    model = load(folder)
    tokenizer = model.codec.tokenizer
    assert all(tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids(tag)].special for tag in TAGS)
    return model


def with_opening(model: Tiny, folder: Path, opening: str) -> Tiny:
    """The model with a template that puts `opening` before each response."""
    copy_of(model.folder, folder)
    file = folder / "chat_template.jinja"
    text = file.read_text()
    assert text.count("<|im_start|>assistant\n") == 1
    file.write_text(text.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n" + opening))
    return load(folder)


def totals(prompt: Prompt, *texts: str, template: str = "think_answer") -> list[float]:
    """Weighted rewards of completions with these texts."""
    group = Group(prompt, tuple(Completion((1,), torch.zeros(1), text, False) for text in texts))
    with build_scorer(REWARDS, **LIMITS) as scorer:
        return list(score_groups(scorer, [group], template)[0].rewards)


# Tags that are special.


def test_a_perfect_response_earns_everything_when_its_tags_are_special(special_tags):
    codec = special_tags.codec
    ids = [*codec.tokenizer(PERFECT, add_special_tokens=False)["input_ids"], codec.tokenizer.eos_token_id]
    assert {codec.tokenizer.convert_tokens_to_ids(tag) for tag in TAGS} <= set(ids)
    (text,) = codec.texts_of([ids])
    assert text == PERFECT
    assert totals(special_tags.builder()(problem_row("r", "3 + 4 ?")), text) == [pytest.approx(1.1)]


def test_other_special_tokens_stay_out_of_the_text(special_tags):
    codec = special_tags.codec
    ids = codec.tokenizer(f"<|im_start|>{PERFECT}<|im_end|><|endoftext|>", add_special_tokens=False)["input_ids"]
    assert codec.texts_of([ids, ids[:1]]) == [PERFECT, ""]


def test_text_without_special_tags_is_what_transformers_decodes(tiny):
    codec = tiny("qwen2_5_vl").codec
    ids = codec.tokenizer(f"<|im_start|> {PERFECT} é|>\n<|im_end|>", add_special_tokens=False)["input_ids"]
    assert codec.texts_of([ids]) == codec.tokenizer.batch_decode([ids], skip_special_tokens=True)


def test_the_sampler_keeps_special_tags_in_the_text(special_tags):
    """Of a policy that can say nothing but tags."""
    model = special_tags.copy()
    tags = model.codec.tokenizer.convert_tokens_to_ids(list(TAGS))
    model.policy.banned_V[:] = True
    model.policy.banned_V[tags] = False
    prompt = model.builder()(problem_row("r", "3 + 4 ?"))
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=4096)
    (group,) = sampler.sample([prompt], SamplingParams(2, 5), (0,))
    for one in group.completions:
        assert one.text == "".join(TAGS[tags.index(index)] for index in one.token_ids) and len(one.token_ids) == 5


def test_the_warm_start_teaches_special_tags_whole(special_tags):
    codec = special_tags.codec
    prompt = special_tags.builder()(problem_row("r", "3 + 4 ?", solution=PERFECT))
    ids = target_ids(prompt, codec)
    assert codec.texts_of([ids]) == [PERFECT] and ids[-1] == codec.tokenizer.eos_token_id
    assert {codec.tokenizer.convert_tokens_to_ids(tag) for tag in TAGS} <= set(ids)


def test_the_instruction_may_show_the_tags_and_a_problem_may_not(special_tags):
    tags = special_tags.codec.tokenizer.convert_tokens_to_ids(list(TAGS))
    row = problem_row("r", "Is <think> a tag? <answer>")

    def shown(instruction: str) -> list[int]:
        ids = special_tags.builder(instruction=instruction)(row).input_ids_S.tolist()
        return [ids.count(tag) for tag in tags]

    assert shown("") == [0, 0, 0, 0]
    assert shown(" Write <think></think><answer></answer>.") == [1, 1, 1, 1]


# Templates that open a thought.


@pytest.mark.parametrize("family", [*VISION_FAMILIES, "qwen2"])
@pytest.mark.parametrize("opening", ["", OPENED, EMPTY])
def test_what_a_template_opens_is_known_to_every_prompt(tiny, tmp_path, family, opening):
    model = with_opening(tiny(family), tmp_path / "model", opening)
    builder = model.builder()
    images = [picture(2 * model.token_side, model.token_side)] if model.has_vision else []
    rows = [problem_row("a", "3 + 4 ?"), problem_row("b", "<image>3 + 4 ?" if images else "?", images)]
    assert builder.opens == opening
    for prompt in builder.build(rows):
        assert prompt.opens == opening and prompt.text.endswith(f"<|im_start|>assistant\n{opening}")


def test_a_response_is_judged_with_what_the_template_opened(tiny, tmp_path):
    prompt = with_opening(tiny("qwen2_5_vl"), tmp_path / "model", OPENED).builder()(problem_row("r", "3 + 4 ?"))
    whole = "3 + 4 is 7.\n</think>\n<answer>7</answer>"
    cut = "3 + 4 is \\boxed{7}, or not"
    assert totals(prompt, whole, PERFECT, cut) == [pytest.approx(1.1), 0.0, 0.0]
    assert totals(prompt, "so \\boxed{7}</think> \\boxed{7}", cut, template="think_boxed") == [pytest.approx(1.1), 0.0]
    for template in ("boxed", "bare", "auto"):
        group = Group(
            prompt, (Completion((1,), torch.zeros(1), cut, True), Completion((1,), torch.zeros(1), whole, False))
        )
        with Verifier(1) as verifier:
            cut_off, right = verify_groups([prompt.row], [group], verifier, template)[0]
        assert not cut_off.correct and cut_off.reason == "the think block is not closed"
        assert right.correct or template != "auto"


def test_without_an_opening_template_nothing_changes(tiny):
    prompt = tiny("qwen2_5_vl").builder()(problem_row("r", "3 + 4 ?"))
    assert totals(prompt, PERFECT, "3 + 4 is 7.</think><answer>7</answer>") == [pytest.approx(1.1), 1.0]


def test_a_users_reward_sees_what_was_sampled(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    sample = Sample("?", "seven", "7", "auto", "auto", None, None, None, 1, False, opened=OPENED)
    with build_scorer([RewardSpec("mine", 1.0, f"{file}:mine")], **LIMITS) as scorer:
        assert scorer.score([sample]).totals == (5.0,)


@pytest.mark.parametrize(
    "opening,solution,taught",
    [
        ("", PERFECT, PERFECT),
        (OPENED, PERFECT, "3 + 4 is 7.</think><answer>7</answer>"),
        (OPENED, "<think>\n 3 + 4 is 7.</think>7", "3 + 4 is 7.</think>7"),
        ("<think>", "<think>\n3 + 4</think>7", "\n3 + 4</think>7"),
        (OPENED, "3 + 4 is 7.</think>7", "3 + 4 is 7.</think>7"),
        (EMPTY, "<answer>7</answer>", "<answer>7</answer>"),
    ],
)
def test_the_warm_start_goes_on_from_what_the_template_opened(tiny, tmp_path, opening, solution, taught):
    model = with_opening(tiny("qwen2_5_vl"), tmp_path / "model", opening)
    row = make_row(id="r", problem="3 + 4 ?", answer="7", source="made", solution=solution)
    _check_solutions([row], opening)
    ids = target_ids(model.builder()(row), model.codec)
    assert model.codec.texts_of([ids]) == [taught]


@pytest.mark.parametrize("opening,solution", [(OPENED, "\\boxed{7}"), (EMPTY, PERFECT)])
def test_a_solution_that_cannot_go_on_from_the_template_is_refused(opening, solution):
    row = make_row(id="r", problem="3 + 4 ?", answer="7", source="made", solution=solution)
    with pytest.raises(TrainingError, match=r"1 of 1 solutions do not go on from '<think>.*first: row r"):
        _check_solutions([row], opening)
    _check_solutions([replace(row, solution="<answer>7</answer></think>")], "")
