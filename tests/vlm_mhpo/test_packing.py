"""Packed rows give the log-probs and gradients of separate plain rows, however the groups are cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import (
    FAMILIES,
    VISION_FAMILIES,
    Tiny,
    allowed_ids,
    build_and_load,
    gradients,
    picture,
    plain_log_probs,
    problem_row,
    prompts_of,
    random_completions,
    relative_gap,
)
from vlm_mhpo.models.packing import plan_micro_batches, segment_mask
from vlm_mhpo.training.micro_batches import micro_batches


@pytest.fixture(autouse=True, params=["whole rows", "pieces"])
def attention(request, monkeypatch):
    """Both ways in which attention of packed rows is computed: a mask of the whole row, and piece by piece."""
    width = {"whole rows": 10**9, "pieces": 1}[request.param]
    monkeypatch.setattr("vlm_mhpo.models.policy.SPLIT_WIDTH", width)


# Ragged on purpose: one token, equal lengths, and a group of one completion.
LENGTHS = ((5, 1, 9, 5), (3,), (2, 7, 4))
# A budget that holds everything in one forward, one that cuts groups, one that leaves a completion a row.
BUDGETS = {"all together": 100_000, "groups cut": 56, "one completion a row": 1}


def groups_of(model: Tiny, lengths=LENGTHS) -> list[list[tuple[int, ...]]]:
    return [random_completions(model, group, seed=7 + index) for index, group in enumerate(lengths)]


def packed(model: Tiny, prompts, groups, *, max_tokens: int, temperature: float = 1.0, chunk_size: int = 4096):
    """Log-probs by (completion, time) and the number of micro-batches; leaves the gradient of a weighted sum behind."""
    values, count = {}, 0
    for batch in micro_batches(model.policy, prompts, groups, max_tokens=max_tokens, pad_id=model.codec.pad_id):
        log_probs_N, _ = model.policy(batch.rows, temperature=temperature, chunk_size=chunk_size)
        keys = list(zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True))
        (log_probs_N * torch.tensor([weight_of(*key) for key in keys])).sum().backward()
        values |= dict(zip(keys, log_probs_N.tolist(), strict=True))
        count += 1
    return values, count


def plain(model: Tiny, prompts, groups, *, temperature: float = 1.0) -> dict[tuple[int, int], float]:
    """The same from the stock model, a sequence at a time."""
    values, flat = {}, 0
    for prompt, group in zip(prompts, groups, strict=True):
        for ids in group:
            log_probs_T = plain_log_probs(model, prompt, ids, temperature)
            (log_probs_T * torch.tensor([weight_of(flat, time) for time in range(len(ids))])).sum().backward()
            values |= {(flat, time): value for time, value in enumerate(log_probs_T.tolist())}
            flat += 1
    return values


def weight_of(flat: int, time: int) -> float:
    """A different weight for every token, so that a swap of two shows in the gradient."""
    return 1.0 + 0.37 * flat - 0.21 * time


def assert_same(model: Tiny, prompts, groups, *, max_tokens: int, temperature: float = 1.0) -> int:
    """Values within 1e-5 nats and the gradient of every weight within 1e-5 of its norm; returns the micro-batches."""
    expected = plain(model, prompts, groups, temperature=temperature)
    expected_gradients = gradients(model)
    found, count = packed(model, prompts, groups, max_tokens=max_tokens, temperature=temperature)
    found_gradients = gradients(model)
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - expected[key]) for key in expected) <= 1e-5
    gap, name = relative_gap(found_gradients, expected_gradients)
    assert gap <= 1e-5, name
    return count


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_plain_rows_in_values_and_gradients(tiny, family, budget):
    model = tiny(family)
    count = assert_same(model, prompts_of(model), groups_of(model), max_tokens=BUDGETS[budget], temperature=0.7)
    num_completions = sum(len(group) for group in LENGTHS)
    if budget == "all together":
        assert count == 1
    elif budget == "one completion a row":
        assert count == num_completions
    else:
        assert 1 < count < num_completions


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_batch_without_images_trains_the_language_model_only_and_still_runs_the_vision_tower(tiny, family):
    model = tiny(family)
    prompts = prompts_of(model, [problem_row("a", "What is 3 + 4 ?"), problem_row("b", "red plus blue times 9")])
    groups = groups_of(model, ((4, 2), (3, 6)))
    assert_same(model, prompts, groups, max_tokens=10_000)
    packed(model, prompts, groups, max_tokens=10_000)
    towers = {
        name: weight.grad for name, weight in model.policy.named_parameters() if model.part_of(name) != "language"
    }
    gradients(model)
    assert len(towers) > 10
    # Other ranks wait for these gradients, so they must exist; and they must be zero.
    missing = [name for name, gradient in towers.items() if gradient is None]
    assert not missing
    assert all(bool((gradient == 0).all()) for gradient in towers.values())


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_same_picture_in_two_prompts_and_one_prompt_cut_into_two_rows(tiny, family):
    model = tiny(family)
    side = model.token_side
    image = picture(3 * side, 2 * side, seed=9)
    rows = [
        problem_row("a", "<image>What is red?", [image]),
        problem_row("b", "Look: <image> and again <image>", [image, image]),
    ]
    prompts = prompts_of(model, rows)
    groups = groups_of(model, ((6, 6, 6, 6), (2, 2)))
    # 2 completions of 6 fit beside the first prompt, so its image appears in two rows of one micro-batch.
    budget = 2 * (prompts[1].num_tokens + 4)
    assert_same(model, prompts, groups, max_tokens=budget)


def test_eager_attention_gives_the_same_as_plain_rows(tmp_path):
    model = build_and_load(tmp_path / "eager", "qwen2_5_vl", attn_implementation="eager")
    assert_same(model, prompts_of(model), groups_of(model), max_tokens=100_000)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_gradient_checkpointing_changes_neither_values_nor_gradients(tmp_path, tiny, family):
    saving = build_and_load(tmp_path / "saving", family, gradient_checkpointing=True)
    saving.policy.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.policy.model.modules())
    model = tiny(family)
    prompts, groups = prompts_of(model), groups_of(model)
    values, _ = packed(model, prompts, groups, max_tokens=100_000)
    expected = gradients(model)
    found, _ = packed(saving, prompts, groups, max_tokens=100_000)
    assert found == pytest.approx(values, abs=1e-6)
    gap, name = relative_gap(gradients(saving), expected)
    assert gap <= 1e-6, name


def test_a_completion_does_not_see_its_neighbours(tiny):
    model = tiny("qwen2_5_vl")
    prompt = prompts_of(model)[1]
    ours = random_completions(model, (6,), seed=1)[0]
    values = []
    for seed in (2, 3):
        neighbours = random_completions(model, (4, 8), seed=seed)
        group = [[neighbours[0], ours, neighbours[1]]]
        found, _ = packed(model, [prompt], group, max_tokens=10_000)
        gradients(model)
        values.append([found[1, time] for time in range(6)])
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_the_padding_token_between_rows_is_never_read(tiny):
    model = tiny("qwen2")
    prompts, groups = prompts_of(model), groups_of(model)
    found = []
    for pad_id in (model.codec.pad_id, allowed_ids(model)[5]):
        (batch,) = micro_batches(model.policy, prompts, groups, max_tokens=10_000, pad_id=pad_id)
        with torch.no_grad():
            found.append(model.policy(batch.rows, temperature=1.0, chunk_size=4096)[0])
    assert torch.equal(found[0], found[1])


def test_a_row_mask_by_hand():
    # Prompt of 2, completion 1 of 2, completion 2 of 1, one padding place.
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
    ]
    allowed = segment_mask(segments)[0, 0]
    assert allowed[:5].int().tolist() == expected
    # Nobody sees padding; what padding itself sees does not matter as long as it sees something.
    assert not allowed[:5, 5].any()
    assert allowed[5].any()


@given(
    prompt_lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    data=st.data(),
    max_tokens=st.integers(1, 120),
)
def test_a_plan_holds_every_completion_once_and_keeps_the_budget(prompt_lengths, data, max_tokens):
    lengths = [data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=6)) for _ in prompt_lengths]
    owner = [index for index, group in enumerate(lengths) for _ in group]
    flat_lengths = [length for group in lengths for length in group]
    plan = plan_micro_batches(prompt_lengths, lengths, max_tokens=max_tokens)
    seen = [flat for items in plan for item in items for flat in item.completion_indices]
    assert sorted(seen) == list(range(len(flat_lengths)))
    for items in plan:
        sizes = []
        for item in items:
            assert {owner[flat] for flat in item.completion_indices} == {item.prompt_index}
            sizes.append(
                prompt_lengths[item.prompt_index] + sum(flat_lengths[flat] for flat in item.completion_indices)
            )
        fits = len(items) * max(sizes) <= max_tokens
        alone = len(items) == 1 and len(items[0].completion_indices) == 1
        assert fits or alone


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(1, 60))
def test_a_plan_is_the_same_every_time(lengths, max_tokens):
    prompts = [4] * len(lengths)
    assert plan_micro_batches(prompts, lengths, max_tokens=max_tokens) == plan_micro_batches(
        prompts, lengths, max_tokens=max_tokens
    )
