"""The sampler draws from the stock model's distribution, and the trainer finds the same log-probs again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.builders import (
    FAMILIES,
    VISION_FAMILIES,
    Tiny,
    allowed_ids,
    plain_log_probs,
    plain_logits,
    problem_row,
    prompts_of,
    scored,
    stock_media,
)
from tests.vlm_mhpo.update_cases import settings_of
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.rollout.base import SamplingParams, Watched
from vlm_mhpo.rollout.choosing import choose_tokens, keep_likely
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.forwards import log_probs_of
from vlm_mhpo.training.micro_batches import micro_batches

SEED = (5, "rollout", 0)
SIDES = ("left", "right")
# An untrained model hardly ever ends; with a quarter of the vocabulary as end tokens completions have every length.
NUM_END_IDS = 100


def early_ending(model: Tiny) -> Tiny:
    """The same model with many end tokens, the true one among them."""
    ends = tuple(sorted({*model.codec.end_ids, *allowed_ids(model)[:NUM_END_IDS]}))
    return replace(model, codec=replace(model.codec, end_ids=ends))


def sample(model: Tiny, prompts, params: SamplingParams, *, side="left", max_batch_tokens=100_000, seed_parts=SEED):
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=max_batch_tokens, padding_side=side)
    return sampler.sample(prompts, params, seed_parts)


def ids_of(groups) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group.completions] for group in groups]


# ---- log-probs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainer_finds_the_samplers_log_probs_again(tiny, family, side):
    model = early_ending(tiny(family))
    prompts = prompts_of(model)
    # top-p and top-k narrow the choice and must not enter the recorded log-probs.
    params = SamplingParams(num_samples=4, max_tokens=12, temperature=0.7, top_p=0.95, top_k=300)
    groups = sample(model, prompts, params, side=side)
    lengths = {len(ids) for group in ids_of(groups) for ids in group}
    assert len(lengths) > 3
    recorded = [completion.log_probs for group in groups for completion in group.completions]
    (batch,) = micro_batches(model.policy, prompts, ids_of(groups), max_tokens=100_000, pad_id=model.codec.pad_id)
    with torch.no_grad():
        recomputed, _ = model.policy(batch.rows, temperature=0.7, chunk_size=64)
    pairs = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), recomputed.tolist(), strict=True)
    gaps = [abs(recorded[flat][time] - value) for flat, time, value in pairs]
    assert len(gaps) == sum(len(values) for values in recorded)
    assert max(gaps) <= 1e-4
    # And both are the stock model's.
    for group in groups:
        for completion in group.completions[:2]:
            with torch.no_grad():
                expected = plain_log_probs(model, group.prompt, completion.token_ids, 0.7)
            assert completion.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_paddings_give_the_same_completions(tiny, family):
    model = early_ending(tiny(family))
    params = SamplingParams(num_samples=4, max_tokens=10)
    left, right = (ids_of(sample(model, prompts_of(model), params, side=side)) for side in SIDES)
    assert left == right


# ---- greedy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_of_the_stock_model(tiny, family, side):
    model = early_ending(tiny(family))
    # The first choices of all prompts end nothing, so that several tokens are compared.
    firsts = {int(plain_logits(model, prompt, [0])[0].argmax()) for prompt in prompts_of(model)}
    ends = tuple(sorted(set(model.codec.end_ids) - firsts))
    model = replace(model, codec=replace(model.codec, end_ids=ends))
    prompts = prompts_of(model)
    groups = sample(model, prompts, SamplingParams(num_samples=2, max_tokens=16, temperature=0.0), side=side)
    banned = [index for index in range(model.policy.banned_V.shape[0]) if index not in set(allowed_ids(model))]
    for group, prompt in zip(groups, prompts, strict=True):
        inputs = {
            "input_ids": prompt.input_ids_S[None],
            "attention_mask": torch.ones(1, prompt.num_tokens, dtype=torch.int64),
        }
        inputs |= stock_media(model, prompt)
        with torch.no_grad():
            expected = model.policy.model.generate(
                **inputs,
                do_sample=False,
                num_return_sequences=1,
                max_new_tokens=16,
                eos_token_id=list(ends),
                suppress_tokens=banned,
            )
        expected = tuple(expected[0, prompt.num_tokens :].tolist())
        assert len(expected) > 1
        assert [completion.token_ids for completion in group.completions] == [expected, expected]


# ---- banned tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_placeholders_are_never_sampled_by_a_model_that_wants_nothing_else(tiny, family, temperature):
    model = tiny(family).copy()
    ids = [model.codec.tokenizer.get_vocab()[token] for token in model.placeholders]
    head = model.policy.model.lm_head
    with torch.no_grad():
        # Two opposite huge rows: whatever the state, one of them has the largest logit by far.
        direction = 100.0 * torch.randn(head.weight.shape[1], generator=torch.Generator().manual_seed(0))
        for index, placeholder in enumerate(ids):
            head.weight[placeholder] = direction * (-1.0) ** index
    prompts = prompts_of(model)
    with torch.no_grad():
        wanted = {int(plain_logits(model, prompt, [0])[0].argmax()) for prompt in prompts}
    assert wanted <= set(ids)
    params = SamplingParams(num_samples=8, max_tokens=12, temperature=temperature)
    groups = sample(model, prompts, params)
    drawn = {index for group in ids_of(groups) for completion in group for index in completion}
    assert not drawn & set(ids)
    assert all(torch.isfinite(c.log_probs).all() for group in groups for c in group.completions)


def test_ids_that_the_tokenizer_does_not_know_are_never_sampled(tiny):
    model = tiny("qwen2").copy()
    size = len(model.codec.tokenizer)
    # Real models pad their embedding matrix; here 20 rows of it do not belong to any token.
    model.policy.model.resize_token_embeddings(size + 20)
    with torch.no_grad():
        model.policy.model.lm_head.weight[size:] = 50.0 * torch.randn(
            20, model.policy.model.lm_head.weight.shape[1], generator=torch.Generator().manual_seed(0)
        )
    from vlm_mhpo.models.families.base import banned_tokens

    model.policy.banned_V = banned_tokens(model.codec.tokenizer, size + 20)
    groups = sample(model, prompts_of(model), SamplingParams(num_samples=8, max_tokens=8))
    assert max(index for group in ids_of(groups) for ids in group for index in ids) < size


# ---- distribution ----------------------------------------------------------------------------------------------


def warped_probabilities(logits: torch.Tensor, *, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """float64 probabilities of transformers' own warpers, in the order that generate applies them."""
    scores = TemperatureLogitsWarper(temperature)(None, logits[None].double())
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(dim=-1)[0].numpy()


def assert_drawn_from(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square at 0.1 % with cells of fewer than 5 expected draws put together; impossible tokens never drawn."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed_cells = np.append(counts[~rare], counts[rare].sum())
    expected_cells = np.append(expected[~rare], expected[rare].sum())
    keep = expected_cells > 0
    statistic = ((observed_cells[keep] - expected_cells[keep]) ** 2 / expected_cells[keep]).sum()
    assert statistic <= stats.chi2.ppf(0.999, df=max(1, keep.sum() - 1))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.6, 0, 1.0),
        (2.0, 0, 1.0),
        (1.0, 5, 1.0),
        (1.0, 0, 0.7),
        (0.8, 12, 0.9),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-6),
    ],
)
def test_first_tokens_follow_the_exact_probabilities(tiny, temperature, top_k, top_p):
    model = tiny("qwen2_5_vl")
    prompt = prompts_of(model)[1]
    allowed = allowed_ids(model)
    with torch.no_grad():
        logits = plain_logits(model, prompt, [0])[0][allowed]
    probabilities = warped_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    params = SamplingParams(num_samples=4000, max_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k)
    (group,) = sample(model, [prompt], params, max_batch_tokens=10_000_000)
    drawn = [allowed.index(completion.token_ids[0]) for completion in group.completions]
    assert_drawn_from(np.bincount(drawn, minlength=len(allowed)).astype(float), probabilities)


def test_later_tokens_follow_the_exact_probabilities_given_the_first(tiny):
    model = tiny("qwen2")
    prompt = prompts_of(model)[0]
    allowed = allowed_ids(model)
    params = SamplingParams(num_samples=6000, max_tokens=2, temperature=0.4, top_k=3)
    (group,) = sample(model, [prompt], params, max_batch_tokens=10_000_000)
    seconds: dict[int, list[int]] = {}
    for completion in group.completions:
        if len(completion.token_ids) == 2:
            seconds.setdefault(completion.token_ids[0], []).append(allowed.index(completion.token_ids[1]))
    assert len(seconds) > 1
    for first, drawn in seconds.items():
        with torch.no_grad():
            logits = plain_logits(model, prompt, [first, 0])[1][allowed]
        counts = np.bincount(drawn, minlength=len(allowed)).astype(float)
        assert_drawn_from(counts, warped_probabilities(logits, temperature=0.4, top_k=3, top_p=1.0))


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (7, 1.0), (0, 0.1), (0, 0.9), (20, 0.5), (500, 0.999), (0, 1.0)]
)
def test_the_kept_tokens_are_those_of_transformers_warpers(top_k, top_p):
    logits = 3.0 * torch.randn(64, 101, generator=torch.Generator().manual_seed(4))
    logits[:, ::9] = -torch.inf
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(keep_likely(logits, top_k=top_k, top_p=top_p), expected)


def test_the_edges_of_the_draw_never_fall_on_an_impossible_token():
    logits = torch.full((4, 6), -torch.inf)
    logits[:, [1, 3]] = 0.0
    draws = torch.tensor([0.0, np.nextafter(0.5, 0.0), 0.5, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert choose_tokens(logits, draws, SamplingParams(1, 1)).tolist() == [1, 1, 3, 3]


# ---- seeds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_depends_on_its_own_seed_only(tiny, family):
    model = early_ending(tiny(family))
    rows = [problem_row(f"extra-{index}", f"What is {index} plus 4 ?") for index in range(3)]
    prompts = prompts_of(model) + prompts_of(model, rows)
    params = SamplingParams(num_samples=3, max_tokens=10)
    expected = dict(zip([prompt.id for prompt in prompts], ids_of(sample(model, prompts, params)), strict=True))
    assert len({tuple(group) for group in expected.values()}) == len(prompts)
    reverse = prompts[::-1]
    alone = [sample(model, [prompt], params)[0] for prompt in prompts]
    runs = [
        sample(model, reverse, params),
        sample(model, prompts[1:4], params),
        alone,
        sample(model, prompts, params, max_batch_tokens=1),
        sample(model, reverse, params, max_batch_tokens=300),
    ]
    for groups in runs:
        for group, ids in zip(groups, ids_of(groups), strict=True):
            assert ids == expected[group.prompt.id]
    # A smaller group is the beginning of a larger one, and a smaller budget the beginning of each completion.
    shorter = sample(model, prompts, replace(params, num_samples=2, max_tokens=4))
    for group, ids in zip(shorter, ids_of(shorter), strict=True):
        assert ids == [tuple(whole[:4]) for whole in expected[group.prompt.id][:2]]


def test_order_of_groups_and_completions_is_the_order_asked_for(tiny):
    model = tiny("qwen2")
    prompts = prompts_of(model)
    groups = sample(model, [prompts[1], prompts[0], prompts[2]], SamplingParams(num_samples=2, max_tokens=3))
    assert [group.prompt.id for group in groups] == ["middle", "long", "short"]


def test_another_step_or_run_draws_something_else(tiny):
    model = tiny("qwen2")
    prompts, params = prompts_of(model), SamplingParams(num_samples=4, max_tokens=6)
    drawn = [
        ids_of(sample(model, prompts, params, seed_parts=parts))
        for parts in (SEED, (5, "rollout", 1), (6, "rollout", 0))
    ]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[1] != drawn[2]


def test_the_same_question_in_another_row_draws_something_else(tiny):
    model = tiny("qwen2")
    prompts = prompts_of(model, [problem_row("a", "1 + 2 ?"), problem_row("b", "1 + 2 ?")])
    one, other = ids_of(sample(model, prompts, SamplingParams(num_samples=4, max_tokens=6)))
    assert len({*one, *other}) == 8


def test_torchs_random_state_is_neither_read_nor_changed(tiny):
    model = tiny("qwen2")
    params = SamplingParams(num_samples=4, max_tokens=6)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ids_of(sample(model, prompts_of(model), params))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert ids_of(sample(model, prompts_of(model), params)) == first


# ---- ends and budgets ------------------------------------------------------------------------------------------


def test_an_end_token_ends_a_completion_and_a_budget_truncates_it(tiny):
    model = early_ending(tiny("qwen2_5_vl"))
    ends = set(model.codec.end_ids)
    budget = 5
    groups = sample(model, prompts_of(model), SamplingParams(num_samples=40, max_tokens=budget))
    completions = [completion for group in groups for completion in group.completions]
    for completion in completions:
        ids = completion.token_ids
        assert len(ids) == len(completion.log_probs)
        assert not ends & set(ids[:-1])
        assert completion.truncated == (ids[-1] not in ends)
        assert len(ids) == budget or not completion.truncated
        assert 1 <= len(ids) <= budget
    # Each of the three cases occurs: ended early, ended on the last token, truncated.
    kinds = {(len(c.token_ids) == budget, c.truncated) for c in completions}
    assert kinds == {(False, False), (True, False), (True, True)}


def test_a_budget_of_one_token(tiny):
    model = tiny("qwen2_5_vl")
    groups = sample(model, prompts_of(model), SamplingParams(num_samples=3, max_tokens=1))
    assert all(len(c.token_ids) == 1 and c.truncated for group in groups for c in group.completions)


def test_the_text_is_the_tokens_without_special_ones(tiny):
    model = early_ending(tiny("qwen2"))
    groups = sample(model, prompts_of(model), SamplingParams(num_samples=6, max_tokens=8))
    specials = {i for i, token in model.codec.tokenizer.added_tokens_decoder.items() if token.special}
    for group in groups:
        for completion in group.completions:
            plain = [index for index in completion.token_ids if index not in specials]
            assert completion.text == model.codec.tokenizer.decode(plain)


def test_weights_gradients_and_mode_are_left_as_they_were(tiny):
    model = tiny("qwen2").copy()
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    for training in (True, False):
        model.policy.train(training)
        sample(model, prompts_of(model), SamplingParams(num_samples=2, max_tokens=3))
        assert model.policy.training == training
        assert all(module.training == training for module in model.policy.modules())
    assert all(weight.grad is None for weight in model.policy.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.policy.state_dict().items())


def test_weights_are_gathered_once_a_call_and_every_group_is_reported_once(tiny):
    from contextlib import contextmanager

    model = tiny("qwen2")
    entered, heard = [], []

    @contextmanager
    def gather():
        entered.append("in")
        yield
        entered.append("out")

    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=1, whole_weights=gather)
    groups = sampler.sample(prompts_of(model), SamplingParams(num_samples=2, max_tokens=2), SEED, heard.append)
    assert entered == ["in", "out"]
    # One prompt a batch, the shortest first: the order of the report is not that of the result.
    assert [len(batch) for batch in heard] == [1, 1, 1]
    assert [batch[0] for batch in heard] == groups[::-1]


def test_a_rank_without_prompts_samples_nothing(tiny):
    model = tiny("qwen2")
    assert sample(model, [], SamplingParams(num_samples=2, max_tokens=2)) == []


def test_a_rank_without_prompts_takes_part_in_finding_the_budget(tiny, monkeypatch):
    """The ranks agree on it: one that asked at its next call would meet the others in the middle of something else."""
    model, asked = tiny("qwen2"), []
    monkeypatch.setattr(ranks, "largest", lambda number: asked.append(number) or number)
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=None)
    assert sampler.sample([], SamplingParams(num_samples=2, max_tokens=2), SEED) == []
    assert len(asked) == 1 and sampler.max_batch_tokens == -asked[0] > 0
    sampler.sample(prompts_of(model)[:1], SamplingParams(num_samples=2, max_tokens=2), SEED)
    assert len(asked) == 1


@pytest.mark.parametrize("bias", [20.0, 60.0, 150.0])
def test_in_bfloat16_the_sampler_is_the_policy_that_is_trained_also_under_large_key_biases(tmp_path, bias):
    """Biases as Qwen2 and Qwen2.5 have them, in the slow dimensions of the rotary embedding; scores of 20 and more."""
    policy, codec = load_policy(str(build_tiny(tmp_path, "qwen2_5_vl")), dtype="bfloat16")
    slow = [14, 15, 30, 31]
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if name.endswith("k_proj.bias"):
                weight.view(-1, 32)[:, slow] = bias
            elif name.endswith("q_proj.bias"):
                weight.view(-1, 32)[:, slow] = min(bias, 20.0) / 2
    model = Tiny("qwen2_5_vl", tmp_path, policy, codec)
    groups = sample(model, prompts_of(model), SamplingParams(num_samples=8, max_tokens=16))
    trained = log_probs_of(
        policy, policy, [scored(group.prompt, group.completions) for group in groups], settings_of(temperature=1.0)
    )
    sampled = [completion.log_probs for group in groups for completion in group.completions]
    gap = (torch.cat(sampled) - torch.cat(trained)).abs()
    # One token may be far off by rounding alone.
    assert float(gap.mean()) < 0.02


def test_a_watched_sampler_tells_its_watcher_and_its_caller_of_every_token(tiny):
    model, heard, called = tiny("qwen2"), [], []
    sampler = Watched(HfSampler(model.policy, model.codec, max_batch_tokens=100_000), lambda: heard.append(1))
    params = SamplingParams(num_samples=2, max_tokens=5)
    groups = sampler.sample(prompts_of(model)[:1], params, SEED, on_token=lambda: called.append(1))
    # All completions of a batch are decoded together, one token of each at a time.
    longest = max(len(completion.token_ids) for group in groups for completion in group.completions)
    assert len(heard) == len(called) == longest
    assert ids_of(groups) == ids_of(sample(model, prompts_of(model)[:1], params))
