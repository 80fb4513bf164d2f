"""Qwen2.5-VL of real sizes, built from a config with random weights: for timings on a GPU that need no download.

"3b" has the published shapes of Qwen2.5-VL-3B. "0.5b" has the text layers of Qwen2.5-0.5B and a vision tower in
proportion, since no Qwen2.5-VL of that size was published. Weights are drawn as transformers draws them; the vocabulary
is of full size, filled up with words that no text contains. For a trial a model keeps its widths and a few layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY, TRIAL_VOCABULARY = 151_936, 1024
TEXT = {
    "0.5b": dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
    ),
    "3b": dict(
        hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2
    ),
}
VISION = {
    "0.5b": dict(depth=12, hidden_size=640, intermediate_size=1712, num_heads=8, fullatt_block_indexes=[2, 5, 8, 11]),
    "3b": dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31]),
}
# Rotary axes share the 32 frequencies of a head of width 64, or the 64 of one of width 128.
MROPE = {"0.5b": [8, 12, 12], "3b": [16, 24, 24]}


def build_large(size: str, tokenizer: Any, layers: int | None = None) -> Any:
    """A bfloat16 model on the GPU if there is one; its vocabulary is that of the tokenizer.

    Args:
        size: "0.5b" or "3b".
        tokenizer: of `full_tokenizer`.
        layers: that are left of text and vision; None = all.
    """
    import torch
    import transformers

    from vlm_mhpo.models.families.qwen_vl import qwen_config

    ids = tokenizer.convert_tokens_to_ids
    text, vision = dict(TEXT[size]), dict(VISION[size])
    assert 2 * sum(MROPE[size]) == text["hidden_size"] // text["num_attention_heads"]
    if layers:
        text |= dict(num_hidden_layers=layers)
        vision |= dict(depth=layers, fullatt_block_indexes=[layers - 1])
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE[size]}
    text |= dict(vocab_size=len(tokenizer), max_position_embeddings=32768, rope_parameters=rope)
    text |= dict(bos_token_id=None, eos_token_id=ids("<|im_end|>"), pad_token_id=ids("<|endoftext|>"))
    vision |= dict(out_hidden_size=text["hidden_size"], window_size=112)
    config = qwen_config("Qwen2_5_VLConfig", tokenizer, text, vision, tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model


def full_tokenizer(tokenizer: Any, folder: Path, layers: int | None = None) -> Any:
    """The tokenizer with words up to `VOCABULARY`, so that every id that a model may sample is one of its own.

    Special tokens move to the end, where transformers puts them behind the words that it reads; `folder` is for its
    files. With `layers`, for a trial, up to `TRIAL_VOCABULARY`.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    known = saved["model"]["vocab"]
    size = TRIAL_VOCABULARY if layers else VOCABULARY
    # A word of the vocabulary that is also a special token keeps its place.
    num_added = sum(each["content"] not in known for each in saved["added_tokens"])
    known |= {f"filler{index}": index for index in range(len(known), size - num_added)}
    file.write_text(json.dumps(saved, ensure_ascii=False))
    full = AutoTokenizer.from_pretrained(folder)
    assert sorted(full.get_vocab().values()) == list(range(size))
    return full
