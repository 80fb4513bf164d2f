"""Text models of many families: with shared rows or separate ones, exactly, or refused; never wrongly."""

from dataclasses import replace

import pytest
import torch
import transformers

from tests.builders import (
    Tiny,
    allowed_ids,
    gradients,
    plain_log_probs,
    problem_row,
    prompts_of,
    random_completions,
    relative_gap,
)
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import family_for
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import build_tokenizer, draw_weights
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.micro_batches import micro_batches

LENGTHS = ((5, 1, 9), (3,), (2, 7, 4))
# Shorter than prompt and completion together, so that a token behind the window is really out of sight.
WINDOW = 6
KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
CASES = {
    "mistral": {"sliding_window": None},
    "mistral with windows": {"sliding_window": WINDOW},
    "cohere": {"logit_scale": 0.3},
    "gemma3_text": KINDS | {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},
    "qwen2 with windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    # Their attention is code of their own.
    "stablelm": {},
    "nemotron": {},
}
SEPARATE = ("stablelm", "nemotron")
OTHERS = {
    **{name: {} for name in ("gemma", "phi", "olmo", "olmo2", "smollm3", "arcee", "ernie4_5", "nanochat")},
    **{name: {"head_dim": 16} for name in ("glm", "glm4", "helium", "seed_oss", "hunyuan_v1_dense")},
    "granite": {"logits_scaling": 4.0},
    "cohere2": KINDS | {"logit_scale": 0.3},
    "olmo3": KINDS,
    "exaone4": KINDS,
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "head_dim": 16},
    "phi3": {"sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW},
}


def build(folder, model_type: str, **options) -> str:
    """A tiny text model with the tiny tokenizer, in a folder."""
    tokenizer = build_tokenizer()
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        **sizes | options,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    draw_weights(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=CASES)
def model(request, tmp_path_factory) -> Tiny:
    name = request.param.split()[0]
    folder = build(tmp_path_factory.mktemp("other"), name, **CASES[request.param])
    policy, codec = load_policy(folder)
    # Many end tokens, so that completions have every length and rows leave the batch.
    ends = tuple(allowed_ids(Tiny(name, folder, policy, codec))[:100])
    return Tiny(name, folder, policy, replace(codec, end_ids=ends))


def prompts_and_completions(model: Tiny):
    problems = ("What is 3 + 4 ?", "How many red circles are there in the image now ?", "7 - 2 ?")
    rows = [problem_row(str(index), problem) for index, problem in enumerate(problems)]
    groups = [random_completions(model, group, seed=7 + index) for index, group in enumerate(LENGTHS)]
    return prompts_of(model, rows), groups


def test_trained_log_probs_and_gradients_are_the_stock_models(model):
    assert model.policy.family.shares_prompt == (model.family not in SEPARATE)
    prompts, groups = prompts_and_completions(model)
    found = {}
    for batch in micro_batches(model.policy, prompts, groups, max_tokens=10_000, pad_id=model.codec.pad_id):
        log_probs_N, _ = model.policy(batch.rows, temperature=0.7, chunk_size=8)
        (log_probs_N * torch.cos(batch.rows.completion_N + 2.0 * batch.rows.time_N)).sum().backward()
        keys = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
        found |= dict(zip(keys, log_probs_N.tolist(), strict=True))
    found_gradients = gradients(model)
    expected, flat = {}, 0
    for prompt, group in zip(prompts, groups, strict=True):
        for ids in group:
            log_probs_T = plain_log_probs(model, prompt, ids, temperature=0.7)
            (log_probs_T * torch.cos(flat + 2.0 * torch.arange(len(ids)))).sum().backward()
            expected |= {(flat, time): value for time, value in enumerate(log_probs_T.tolist())}
            flat += 1
    assert found == pytest.approx(expected, abs=1e-5)
    gap, name = relative_gap(found_gradients, gradients(model))
    assert gap <= 1e-5, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_sampled_log_probs_are_the_stock_models(model, side):
    prompts, _ = prompts_and_completions(model)
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=10_000, padding_side=side)
    groups = sampler.sample(prompts, SamplingParams(num_samples=4, max_tokens=12, temperature=0.7), (5, "other"))
    lengths = {len(each.token_ids) for group in groups for each in group.completions}
    assert len(lengths) > 3
    with torch.no_grad():
        for prompt, group in zip(prompts, groups, strict=True):
            for each in group.completions:
                expected = plain_log_probs(model, prompt, each.token_ids, temperature=0.7).tolist()
                assert list(each.log_probs) == pytest.approx(expected, abs=1e-4)
    # A budget of three copies of a prompt and a completion, and of none: rows that begin together, again and again.
    for most in (3 * (max(prompt.num_tokens for prompt in prompts) + 12), 1):
        sampler.max_batch_tokens = most
        again = sampler.sample(prompts, SamplingParams(num_samples=4, max_tokens=12, temperature=0.7), (5, "other"))
        ids = [[each.token_ids for group in some for each in group.completions] for some in (groups, again)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("name", OTHERS)
def test_rows_and_sampler_of_other_families_are_the_stock_models(tmp_path, name):
    policy, codec = load_policy(build(tmp_path, name, **OTHERS[name]))
    assert policy.family.shares_prompt
    model = Tiny(name, tmp_path, policy, codec)
    prompts, groups = prompts_and_completions(model)
    (batch,) = micro_batches(policy, prompts, groups, max_tokens=10_000, pad_id=codec.pad_id)
    sampler = HfSampler(policy, codec, max_batch_tokens=10_000)
    drawn = sampler.sample(prompts, SamplingParams(num_samples=2, max_tokens=9), (5, "other"))
    with torch.no_grad():
        found_BT, mask_BT = batch.scatter(policy(batch.rows, temperature=1.0, chunk_size=8)[0])
        places = iter(batch.completion_indices)
        rows = {next(places): row[mask].tolist() for row, mask in zip(found_BT, mask_BT, strict=True)}
        pairs = [(prompt, ids) for prompt, group in zip(prompts, groups, strict=True) for ids in group]
        for flat, (prompt, ids) in enumerate(pairs):
            assert rows[flat] == pytest.approx(plain_log_probs(model, prompt, ids).tolist(), abs=1e-5)
        for prompt, group in zip(prompts, drawn, strict=True):
            for each in group.completions:
                expected = plain_log_probs(model, prompt, each.token_ids).tolist()
                assert list(each.log_probs) == pytest.approx(expected, abs=1e-5)


def test_positions_that_depend_on_the_length_of_a_row_are_not_shared(tmp_path):
    """Phi-3's long context: other frequencies once a row is longer than what it was first trained with."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, **factors}
    config = transformers.Phi3Config(hidden_size=64, num_attention_heads=4, rope_parameters=rope, sliding_window=None)
    assert not family_for(config).shares_prompt


@pytest.mark.parametrize(
    ("model_type", "dropout"),
    [
        ("qwen2", {"attention_dropout": 0.5}),
        ("llama", {"attention_dropout": 0.5}),
        ("mistral", {"attention_dropout": 0.5}),
        ("phi", {"attention_dropout": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    ],
)
def test_a_model_made_with_dropout_drops_nothing_in_training(tmp_path, model_type, dropout):
    """Log-probs in training mode, twice, and the stock model's in evaluation mode."""
    folder = build(tmp_path, model_type, **dropout)
    policy, codec = load_policy(folder)
    model = Tiny(model_type, folder, policy, codec)
    prompts, groups = prompts_and_completions(model)
    expected = [
        value
        for prompt, group in zip(prompts, groups, strict=True)
        for ids in group
        for value in plain_log_probs(model, prompt, ids).tolist()
    ]
    policy.train()
    for _ in range(2):
        found = {}
        for batch in micro_batches(policy, prompts, groups, max_tokens=10_000, pad_id=codec.pad_id):
            log_probs_N, _ = policy(batch.rows, temperature=1.0, chunk_size=8)
            keys = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
            found |= dict(zip(keys, log_probs_N.tolist(), strict=True))
        assert [found[key] for key in sorted(found)] == pytest.approx(expected, abs=1e-5)


def test_a_model_that_changes_its_logits_in_its_own_way_is_refused(tmp_path, monkeypatch):
    """A release of StableLM whose forward halves the logits, which no key of its configuration says."""
    folder, published = build(tmp_path, "stablelm"), transformers.StableLmForCausalLM.forward

    def forward(self, *args, **options):
        output = published(self, *args, **options)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(transformers.StableLmForCausalLM, "forward", forward)
    with pytest.raises(ModelError, match="a stablelm model changes its logits in a way that is not known here"):
        load_policy(folder)


def test_a_model_that_is_built_otherwise_is_refused(tmp_path):
    tokenizer = build_tokenizer()
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a gpt2 model is built in another way"):
        load_policy(str(tmp_path))


def test_capped_attention_scores_need_the_attention_that_caps_them(tmp_path):
    """Gemma 2: its cap is in no fused attention."""
    folder = build(tmp_path, "gemma2", **KINDS, head_dim=16, query_pre_attn_scalar=1, attn_logit_softcapping=2.0)
    with pytest.raises(ModelError, match=r"caps its attention scores.*set model\.attn_implementation to eager"):
        load_policy(folder)
    policy, codec = load_policy(folder, attn_implementation="eager")
    model = Tiny("gemma2", folder, policy, codec)
    prompts, _ = prompts_and_completions(model)
    drawn = HfSampler(policy, codec, max_batch_tokens=10_000).sample(
        prompts, SamplingParams(num_samples=2, max_tokens=9), (5, "other")
    )
    with torch.no_grad():
        for prompt, group in zip(prompts, drawn, strict=True):
            for each in group.completions:
                expected = plain_log_probs(model, prompt, each.token_ids).tolist()
                assert list(each.log_probs) == pytest.approx(expected, abs=1e-5)
