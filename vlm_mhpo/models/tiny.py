"""Tiny models and processors of every supported family, built from a config: real classes, about a million weights.

They go through the same loading, prompts, sampling and training as a real model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import FAMILIES, family_of
from vlm_mhpo.models.families.base import VIDEO_TEXT
from vlm_mhpo.runtime import ranks

SCHEME = "tiny:"

# Those of every tiny tokenizer; the family's placeholders stand behind them.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# What the merges are learned from: the wording of the procedural tasks and of geometry problems.
CORPUS = (
    "user assistant system",
    "What is red plus blue? What is red minus blue? What is red times blue?",
    "How many red circles are there? How many blue squares are there? How many green triangles are there?",
    "What is the value of bar A? What is the total of all bars? What is the difference between bar A and bar B?",
    "Find the third angle of the triangle. Find the length of the hypotenuse. Find the missing side.",
    "Find the measure of the angle. Find the area of the figure. Find the perimeter. \\frac \\sqrt \\angle \\odot",
    " + - * = ( ) . , ? 0 1 2 3 4 5 6 7 8 9",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}IMAGE{{% elif part['type'] == 'video' %}}{VIDEO_TEXT}{{% else %}}"
    "{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_families() -> list[str]:
    """The families that have a tiny model."""
    return [name for name, family in FAMILIES.items() if family.tiny_config]


def build_tiny(folder: Path, family: str = "qwen2_5_vl", *, seed: int = 0, hidden_size: int = 128) -> Path:
    """Write a tiny model and its processor in the layout that `from_pretrained` reads.

    Args:
        folder: created; files in it are replaced.
        family: architecture.
        seed: of the weights.
        hidden_size: width of text and vision, a multiple of 32.

    Returns:
        `folder`.
    """
    tokenizer = build_tokenizer(family)
    model = build_model(family, tokenizer, seed=seed, hidden_size=hidden_size)
    model.save_pretrained(folder)
    build_processor(family, tokenizer).save_pretrained(folder)
    return folder


def tiny_family(path: str) -> str | None:
    """The FAMILY of a path `tiny:FAMILY`; None for another path, ModelError for an unknown family."""
    if not path.startswith(SCHEME):
        return None
    family = path.removeprefix(SCHEME)
    if family not in tiny_families():
        raise ModelError(f"model.path={path}: tiny models exist of {', '.join(tiny_families())}")
    return family


def resolve_model(path: str, run_dir: Path) -> str:
    """The folder or hub name that `path` means; `tiny:FAMILY` builds such a model in `run_dir/tiny_model` (once).

    Raises:
        ModelError: an unknown family.
    """
    family = tiny_family(path)
    if family is None:
        return path
    folder = run_dir / "tiny_model"
    if ranks.is_main() and not (folder / "config.json").exists():
        build_tiny(folder, family)
    ranks.barrier()
    return str(folder)


def build_tokenizer(family: str = "qwen2_5_vl") -> Any:
    """A Qwen2 byte-level tokenizer with the family's special tokens and a few hundred merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    words = family_of(family).tiny_words
    # Qwen2Tokenizer's own pre-tokenizer cuts the corpus, so that the merges fit what it will be asked to cut.
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[]).backend_tokenizer.pre_tokenizer
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=448, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    )
    learned = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        **words.names,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS, *words.placeholders]})
    tokenizer.add_tokens(list(words.tags))
    tokenizer.chat_template = CHAT_TEMPLATE.replace("IMAGE", words.image)
    return tokenizer


def build_processor(family: str, tokenizer: Any) -> Any:
    """The family's real processor around `tokenizer`; for a text family the tokenizer itself."""
    vision = family_of(family).vision
    return vision.tiny_processor(tokenizer) if vision else tokenizer


def build_model(family: str, tokenizer: Any, *, seed: int = 0, hidden_size: int = 128) -> nn.Module:
    """A float32 model whose weights are drawn so that a narrow network can learn to see."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = model_config(family, tokenizer, hidden_size)
        model = family_of(family).auto_classes[0].from_config(config, dtype=torch.float32)
        draw_weights(model)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return model


def draw_weights(model: nn.Module) -> None:
    """Normal weights of std 1/sqrt(fan_in), embeddings and positions of std 0.5, zero biases.

    transformers' default of 0.02 is meant for wide models; a network of width 128 drawn so never learns to see. Gated
    delta nets drawn by transformers forget at once, where those that are trained begin with time steps of 0.001 to 0.1
    (arXiv:2405.21060) and remember; so they do here.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif type(module).__name__.endswith(("Experts", "Router")):
            # A layer's experts are one tensor [experts, out, in].
            for weight in module.parameters():
                nn.init.normal_(weight, std=1.0 / math.sqrt(weight.shape[-1]))
        elif hasattr(module, "dt_bias"):
            steps = torch.exp(torch.empty_like(module.dt_bias).uniform_(math.log(0.001), math.log(0.1)))
            # Softplus makes them of it again.
            module.dt_bias.data.copy_(steps.expm1().log())
        elif (projection := getattr(module, "mm_input_projection_weight", None)) is not None:
            # Gemma 3's, which transformers leaves at zero.
            nn.init.normal_(projection, std=1.0 / math.sqrt(projection.shape[0]))
        elif isinstance(getattr(module, "position_embeddings", None), nn.Parameter):
            for vectors in module.parameters(recurse=False):
                nn.init.normal_(vectors, std=0.5)


def model_config(family: str, tokenizer: Any, hidden_size: int) -> Any:
    """The transformers configuration of a tiny model."""
    ids = tokenizer.convert_tokens_to_ids
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=3,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 64,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"),
    )
    return family_of(family).tiny_config(tokenizer, text)
