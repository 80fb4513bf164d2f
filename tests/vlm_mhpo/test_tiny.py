"""Tiny models are real ones in small: transformers loads them, the seed decides them, the tokenizer loses nothing."""

import hashlib
import json
import unicodedata

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import FAMILIES, VISION_FAMILIES
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import SPECIAL_TOKENS, build_tiny, build_tokenizer
from vlm_mhpo.types import READ, TAGS


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_auto_classes_load_the_folder(tiny, family):
    model = tiny(family)
    kind = transformers.AutoModelForImageTextToText if model.has_vision else transformers.AutoModelForCausalLM
    loaded = kind.from_pretrained(model.folder)
    assert loaded.config.model_type == family
    expected = model.policy.model.state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    processor = (transformers.AutoProcessor if model.has_vision else transformers.AutoTokenizer).from_pretrained(
        model.folder
    )
    assert type(processor) is type(model.codec.processor)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_has_about_a_million_weights_in_float32(tmp_path, family):
    policy, _ = load_policy(str(build_tiny(tmp_path / "m", family)))
    assert 0.4e6 < sum(weight.numel() for weight in policy.parameters()) < 2e6
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}


def digest(folder) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_seed_alone_decides_the_weights(tmp_path):
    torch.manual_seed(1)
    one = build_tiny(tmp_path / "one", "qwen2_5_vl", seed=4, hidden_size=64)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = build_tiny(tmp_path / "two", "qwen2_5_vl", seed=4, hidden_size=64)
    assert torch.equal(torch.get_rng_state(), state)
    other = build_tiny(tmp_path / "other", "qwen2_5_vl", seed=5, hidden_size=64)
    assert digest(one) == digest(two) != digest(other)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    texts = [name for name in names if name.endswith((".json", ".txt", ".jinja"))]
    assert [name for name in texts if (one / name).read_bytes() != (two / name).read_bytes()] == []


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_no_weight_is_left_at_transformers_small_default(tiny, family):
    """Matrices are drawn at 1/sqrt(fan_in), well above the default of 0.02, for which the width of 64 is too narrow."""
    small = [
        name
        for name, weight in tiny(family).policy.model.named_parameters()
        if weight.dim() > 1 and float(weight.detach().std()) < 0.5 / weight[0].numel() ** 0.5
    ]
    assert small == []


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_the_tokenizer_gives_every_text_back(tiny, text):
    tokenizer = tiny("qwen2").codec.tokenizer
    # Qwen's tokenizer normalises to NFC.
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == unicodedata.normalize(
        "NFC", text
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_special_token_and_tag_is_one_id_after_loading(tiny, family):
    tokenizer = tiny(family).codec.tokenizer
    tags = READ if family == "glm4v" else TAGS
    for token in (*SPECIAL_TOKENS, *tiny(family).placeholders, *tags):
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        assert tokenizer.decode(ids) == token
    # Tags are text that a completion may show; special tokens are not shown.
    ids = tokenizer("<think>a</think><answer>7</answer><|im_end|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think><answer>7</answer>"


def test_words_of_the_tasks_are_short_in_tokens(tiny):
    tokenizer = tiny("qwen2_5_vl").codec.tokenizer
    question = "What is red plus blue?"
    assert len(tokenizer(question)["input_ids"]) <= 8 < len(question)


def test_the_vocabulary_and_the_embedding_matrix_are_the_same_size(tiny):
    for family in FAMILIES:
        model = tiny(family)
        text = model.policy.model.config.get_text_config()
        assert text.vocab_size == len(model.codec.tokenizer) == model.policy.model.lm_head.weight.shape[0]
        assert sorted(model.codec.tokenizer.get_vocab().values()) == list(range(text.vocab_size))


def test_the_tokenizer_is_the_same_every_time():
    one, two = build_tokenizer(), build_tokenizer()
    assert one.get_vocab() == two.get_vocab()
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()


NAMED = {
    "qwen": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
    "glm4v": {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    },
    "internvl": {"image_token_id": "<IMG_CONTEXT>"},
}


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_config_names_the_tokenizers_own_placeholders(tiny, family):
    model = tiny(family)
    config = json.loads((model.folder / "config.json").read_text())
    id_of = model.codec.tokenizer.convert_tokens_to_ids
    ids = {name: value for name, value in config.items() if name.endswith("_token_id")}
    assert ids == {name: id_of(token) for name, token in NAMED[family if family in NAMED else "qwen"].items()}
