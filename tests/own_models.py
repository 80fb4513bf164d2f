"""Tiny models of image-text classes that have no family here: transformers' own classes, configurations, processors.

Each is written to a folder as a hub model would lie there. The tokenizer is ours with the names of special tokens that
a processor asks for; images are small, so that prompts stay short.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.builders import Tiny
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import CHAT_TEMPLATE, build_tokenizer, draw_weights

TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
)
SIGHT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=14)
SIDE = 28
Built = tuple[Any, Any]
MODELS: dict[str, Callable[[], Built]] = {}


def tokenizer_with(image: str, *others: str, **named: str) -> Any:
    """Our tokenizer with these special tokens, a template that shows `image` for an image, and named tokens."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [image, *others]}, replace_extra_special_tokens=False)
    if named:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            tokenizer = hf.AutoTokenizer.from_pretrained(folder, extra_special_tokens=named)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("IMAGE", image)
    return tokenizer


def sizes(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Sizes of a text part around a tokenizer."""
    ids = tokenizer.convert_tokens_to_ids
    return dict(
        TEXT,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"),
        **more,
    )


def images(name: str, side: int = SIDE, **more: Any) -> Any:
    """An image processor that makes squares of this side."""
    return getattr(hf, name)(size={"height": side, "width": side}, **more)


def build_own(folder: Path, name: str, *, seed: int = 0) -> Path:
    """Write a tiny model of MODELS and its processor."""
    config, processor = MODELS[name]()
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(config).float()
    draw_weights(model)
    for label, weight in model.named_parameters():
        if label.endswith("_gate"):
            nn.init.normal_(weight, std=weight.shape[0] ** -0.5 if weight.dim() > 1 else 0.5)
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(folder)
    processor.chat_template = tokenizer.chat_template
    processor.save_pretrained(folder)
    return folder


def model(function: Callable[[], Built]) -> Callable[[], Built]:
    """Register a builder under its name."""
    MODELS[function.__name__] = function
    return function


@model
def llava() -> Built:
    tokenizer = tokenizer_with("<image>")
    image = hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = hf.LlavaProcessor(
        image, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    vision = hf.CLIPVisionConfig(**SIGHT, image_size=SIDE, projection_dim=32)
    text = hf.LlamaConfig(**sizes(tokenizer))
    return hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    ), processor


@model
def llava_next() -> Built:
    tokenizer = tokenizer_with("<image>")
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    image = hf.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints
    )
    processor = hf.LlavaNextProcessor(
        image, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    vision = hf.CLIPVisionConfig(**SIGHT, image_size=SIDE, projection_dim=32)
    text = hf.MistralConfig(**sizes(tokenizer), sliding_window=None)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    return hf.LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_id=image_id, image_grid_pinpoints=pinpoints
    ), processor


@model
def paligemma() -> Built:
    tokenizer = tokenizer_with("<image>", image_token="<image>")
    tokenizer.bos_token = "<|im_start|>"
    processor = hf.PaliGemmaProcessor(images("SiglipImageProcessor", image_seq_length=4), tokenizer)
    vision = hf.SiglipVisionConfig(**SIGHT, image_size=SIDE, projection_dim=64)
    text = hf.GemmaConfig(**sizes(tokenizer))
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    return hf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, projection_dim=64
    ), processor


@model
def aya_vision() -> Built:
    tokenizer = tokenizer_with(
        "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE"
    )
    image = images("GotOcr2ImageProcessor", crop_to_patches=True, min_patches=1, max_patches=2)
    processor = hf.AyaVisionProcessor(image, tokenizer, patch_size=14, img_size=SIDE, downsample_factor=2)
    vision = hf.SiglipVisionConfig(**SIGHT, image_size=SIDE)
    text = hf.Cohere2Config(**sizes(tokenizer), sliding_window=12, logit_scale=0.3)
    image_id = tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>")
    return hf.AyaVisionConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, downsample_factor=2
    ), processor


@model
def mistral3() -> Built:
    tokenizer = tokenizer_with("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    image = hf.PixtralImageProcessor(size={"longest_edge": 4 * SIDE}, patch_size={"height": 28, "width": 28})
    processor = hf.PixtralProcessor(image, tokenizer, patch_size=14, spatial_merge_size=2)
    vision = hf.PixtralVisionConfig(**SIGHT, image_size=4 * SIDE, head_dim=16)
    text = hf.MistralConfig(**sizes(tokenizer), sliding_window=None)
    image_id = tokenizer.convert_tokens_to_ids("[IMG]")
    return hf.Mistral3Config(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    ), processor


@model
def ovis2() -> Built:
    tokenizer = tokenizer_with(
        "<image>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", image_token="<IMG_ATOM>"
    )
    ids = tokenizer.convert_tokens_to_ids
    processor = hf.Ovis2Processor(images("Ovis2ImageProcessor", crop_to_patches=False), tokenizer, image_seq_length=1)
    vision = hf.Ovis2VisionConfig(
        **SIGHT, image_size=SIDE, hidden_stride=2, vocab_size=24, num_visual_indicator_tokens=5
    )
    text = hf.Qwen2Config(**sizes(tokenizer))
    indicators = [ids(name) for name in ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")]
    config = hf.Ovis2Config(
        vision_config=vision,
        text_config=text,
        image_token_id=ids("<IMG_ATOM>"),
        visual_indicator_token_ids=indicators,
        hidden_size=64,
        vocab_size=len(tokenizer),
    )
    return config, processor


@model
def mllama() -> Built:
    tokenizer = tokenizer_with("<|image|>")
    tokenizer.bos_token = "<|im_start|>"
    image = images("MllamaImageProcessor", max_image_tiles=2)
    processor = hf.MllamaProcessor(image, tokenizer)
    more = {name: value for name, value in sizes(tokenizer).items() if name != "head_dim"}
    text = hf.MllamaTextConfig(**more | dict(num_hidden_layers=3, bos_token_id=1), cross_attention_layers=[1])
    vision = hf.MllamaVisionConfig(
        hidden_size=32,
        attention_heads=2,
        intermediate_size=48,
        num_hidden_layers=2,
        num_global_layers=1,
        intermediate_layers_indices=[0],
        patch_size=14,
        image_size=SIDE,
        vision_output_dim=64,
        max_num_tiles=2,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )
    image_id = tokenizer.convert_tokens_to_ids("<|image|>")
    return hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_id), processor


@model
def janus() -> Built:
    tokenizer = tokenizer_with(
        "<image_placeholder>",
        image_token="<image_placeholder>",
        boi_token="<begin_of_image>",
        eoi_token="<end_of_image>",
    )
    image = hf.JanusImageProcessor(size={"height": SIDE, "width": SIDE}, min_size=14)
    processor = hf.JanusProcessor(image, tokenizer, num_image_tokens=4)
    text = hf.LlamaConfig(**sizes(tokenizer))
    vision = hf.JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=14,
        image_size=SIDE,
        projection_dim=64,
        mlp_ratio=1.5,
        depth=2,
    )
    vq = hf.JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=16,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=64,
        num_patches=4,
        image_token_embed_dim=64,
    )
    image_id = tokenizer.convert_tokens_to_ids("<image_placeholder>")
    return hf.JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=image_id), processor


class Own(Tiny):
    """A tiny model of MODELS."""

    @property
    def has_vision(self) -> bool:
        return True


def load_own(folder: Path, name: str, **options: Any) -> Tiny:
    """The model in a folder, loaded as any other."""
    return Own(name, folder, *load_policy(str(folder), **options))


@model
def got_ocr2() -> Built:
    tokenizer = tokenizer_with("<imgpad>", image_token="<imgpad>")
    processor = hf.GotOcr2Processor(images("GotOcr2ImageProcessor"), tokenizer)
    vision = hf.GotOcr2Config().vision_config.__class__(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        output_channels=16,
        global_attn_indexes=[1],
        mlp_dim=48,
        window_size=0,
    )
    text = hf.Qwen2Config(**sizes(tokenizer))
    image_id = tokenizer.convert_tokens_to_ids("<imgpad>")
    return hf.GotOcr2Config(vision_config=vision, text_config=text, image_token_index=image_id), processor


@model
def blip2() -> Built:
    tokenizer = tokenizer_with("<image>", image_token="<image>")
    processor = hf.Blip2Processor(images("BlipImageProcessor"), tokenizer, num_query_tokens=4)
    vision = hf.Blip2VisionConfig(**SIGHT, image_size=SIDE)
    qformer = hf.Blip2QFormerConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        encoder_hidden_size=32,
        vocab_size=len(tokenizer),
    )
    text = hf.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=64,
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=image_id,
    )
    return config, processor


@model
def lfm2_vl() -> Built:
    tokenizer = tokenizer_with(
        "<image>",
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail="<|img_thumbnail|>",
    )
    image = hf.Lfm2VlImageProcessor(
        do_image_splitting=False,
        tile_size=32,
        max_num_patches=16,
        min_image_tokens=1,
        max_image_tokens=4,
        encoder_patch_size=14,
        downsample_factor=2,
    )
    processor = hf.Lfm2VlProcessor(image, tokenizer)
    vision = hf.Siglip2VisionConfig(**SIGHT, num_patches=16)
    more = {name: value for name, value in sizes(tokenizer).items() if name not in ("head_dim", "rms_norm_eps")}
    text = hf.Lfm2Config(**more, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    return hf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=image_id, downsample_factor=2
    ), processor
