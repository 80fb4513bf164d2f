"""What is particular to GLM-V, InternVL and MiMo-VL: pixel limits, tiles, answers in marks, names of weights."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
import transformers

from rewards import RewardSpec, build_scorer
from tests.builders import (
    Tiny,
    picture,
    plain_log_probs,
    problem_row,
    prompts_of,
    random_completions,
    tensors_of,
    with_media,
)
from tests.model_folders import change_json, change_tensors, copy_of, listing
from vlm_mhpo.commands.doctor.shapes import shapes_of
from vlm_mhpo.config.model import ModelConfig
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import family_of
from vlm_mhpo.models.loading import counting_codec, load_policy
from vlm_mhpo.models.tiny import build_tiny, build_tokenizer
from vlm_mhpo.prompts import checked
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.scoring.scorer import score_groups
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.types import Completion, Group

LIMITS = {"num_workers": 1, "timeout_s": 5.0, "memory_limit_bytes": 2**30}


def image_tokens(builder: PromptBuilder, width: int, height: int) -> int:
    """Placeholders of an image of this size in a prompt."""
    ids = builder(problem_row("r", "<image>?", [picture(width, height)])).input_ids_S.tolist()
    return ids.count(builder.codec.tokenizer.convert_tokens_to_ids(builder.codec.processor.image_token))


# ---- pixel limits ----------------------------------------------------------------------------------------------


def builder_of(family: str, processor, **limits) -> PromptBuilder:
    return PromptBuilder(counting_codec(processor, family_of(family), **limits), family_of(family))


def published_glm():
    """GLM-4.1V's processor with its own defaults around a tiny tokenizer."""
    tokenizer = build_tokenizer("glm4v")
    parts = transformers.Glm4vImageProcessor(), tokenizer, transformers.Glm4vVideoProcessor()
    return transformers.Glm4vProcessor(*parts, chat_template=tokenizer.chat_template)


def test_limits_of_glm_are_areas_of_an_image_though_its_processor_counts_two_frames():
    # 28 x 28 pixels per token.
    assert image_tokens(builder_of("glm4v", published_glm()), 560, 280) == 20 * 10
    assert image_tokens(builder_of("glm4v", published_glm(), max_pixels=280 * 280), 560, 560) == 10 * 10
    assert image_tokens(builder_of("glm4v", published_glm(), min_pixels=280 * 280), 56, 56) == 10 * 10
    assert family_of("glm4v").vision.pixels_per_token(published_glm()) == 28 * 28


def published_internvl():
    """InternVL3's processor with tiles of 448 pixels, up to 12 of them, and 256 tokens per tile."""
    tokenizer = build_tokenizer("internvl")
    images = transformers.GotOcr2ImageProcessor(size={"height": 448, "width": 448}, min_patches=1, max_patches=12)
    videos = transformers.InternVLVideoProcessor(size={"height": 448, "width": 448})
    return transformers.InternVLProcessor(images, tokenizer, videos, 256, chat_template=tokenizer.chat_template)


@pytest.mark.parametrize(
    ("size", "limits", "tiles"),
    [
        # One tile of a square; several, as the sides are to each other, and one more for the whole image. Of grids that
        # fit equally well the one with more tiles, unless the image is too small for it.
        ((448, 448), {}, 1),
        ((100, 100), {}, 1),
        ((896, 448), {}, 2 + 1),
        ((448, 1344), {}, 3 + 1),
        ((1344, 896), {}, 6 + 1),
        ((1344, 896), {"max_pixels": 5 * 448**2}, 4 + 1),
        ((1344, 896), {"max_pixels": 2 * 448**2}, 1),
        ((448, 448), {"min_pixels": 3 * 448**2}, 4 + 1),
    ],
)
def test_an_image_of_internvl_has_256_tokens_per_tile(size, limits, tiles):
    assert image_tokens(builder_of("internvl", published_internvl(), **limits), *size) == 256 * tiles


def test_limits_that_no_tile_keeps_are_refused():
    with pytest.raises(ModelError, match=r"max_pixels=200000 is less than one tile of this model: 200704 pixels"):
        builder_of("internvl", published_internvl(), max_pixels=200_000)
    with pytest.raises(ModelError, match=r"13 to 12 tiles .* set both model.min_pixels and model.max_pixels"):
        builder_of("internvl", published_internvl(), min_pixels=13 * 448**2)
    assert family_of("internvl").vision.pixels_per_token(published_internvl()) == 28 * 28


# ---- tiles -----------------------------------------------------------------------------------------------------


def test_tiles_of_many_rows_go_to_the_right_images(tiny):
    model = tiny("internvl")
    # Two images without a word between them, images of one tile, of three and of seven.
    wide, high, square = picture(112, 56, seed=1), picture(112, 168, seed=2), picture(56, 56, seed=3)
    rows = [
        problem_row("a", "<image><image>?", [wide, square]),
        problem_row("b", "?"),
        problem_row("c", "<image>?", [high]),
    ]
    first, _, last = model.builder().build(rows)
    assert first.media.tensors["num_tiles"].tolist() == [3, 1] and last.media.tensors["num_tiles"].tolist() == [7]
    for prompt, alone in ((first, prompts_of(model, rows[:1])[0]), (last, prompts_of(model, rows[2:])[0])):
        both = tensors_of(prompt), tensors_of(alone)
        assert all(torch.equal(both[0][name], both[1][name]) for name in both[1])
    # A square image is one tile, and nothing behind it.
    (alone,) = prompts_of(model, [problem_row("d", "<image>", [square])])
    assert torch.equal(first.media.tensors["pixel_values"][3:], alone.media.tensors["pixel_values"])


def test_rows_are_checked_again_for_a_processor_of_other_tiles(tiny):
    model, names = tiny("internvl"), set()
    rows = [problem_row("a", "<image>?", [picture(56, 56)])]
    for attribute, value in ((None, None), ("image_seq_length", 16)):
        processor = copy.deepcopy(model.codec.processor)
        if attribute:
            setattr(processor, attribute, value)
        builder = PromptBuilder(replace(model.codec, processor=processor), model.policy.family)
        names.add(checked.name_of(rows, builder))
    assert len(names) == 2


def test_tiles_in_another_order_give_other_log_probs(tiny):
    """The comparisons with the stock model could fail."""
    model = tiny("internvl")
    (prompt,) = prompts_of(model, [problem_row("a", "<image>?", [picture(112, 56, seed=1)])])
    groups = [random_completions(model, (6,), seed=1)]

    def values(pixels):
        changed = with_media(prompt, pixel_values=pixels)
        (batch,) = micro_batches(model.policy, [changed], groups, max_tokens=4096, pad_id=0)
        with torch.no_grad():
            return model.policy(batch.rows, temperature=1.0, chunk_size=4096)[0]

    pixels = prompt.media.tensors["pixel_values"]
    assert (values(pixels) - values(pixels.flip(0))).abs().max() > 1e-4


def test_the_blank_tile_has_one_token_whatever_the_size_of_real_tiles(tiny):
    model = tiny("internvl")
    ids, media = model.policy.family.vision.blank(model.policy.model, None)
    assert len(ids) == 1 and media.tensors["pixel_values"].shape == (1, 3, 28, 28)
    encoded = model.policy.model.model.get_image_features(media.tensors["pixel_values"], return_dict=True)
    assert encoded.pooler_output.shape == (1, 1, 64)


# ---- names of published weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["qwen2", "qwen3"])
def test_internvl_keeps_older_and_newer_names_and_either_language_model(tmp_path, text):
    folder = build_tiny(tmp_path / "model", "internvl", hidden_size=64)
    if text == "qwen3":
        config = transformers.AutoConfig.from_pretrained(folder)
        values = config.text_config.to_dict() | {"model_type": "qwen3", "head_dim": 32}
        config.text_config = transformers.Qwen3Config(**{n: v for n, v in values.items() if n != "layer_types"})
        torch.manual_seed(0)
        transformers.InternVLForConditionalGeneration(config).save_pretrained(folder)
    newer = {r"^language_model\.model\.": "model.language_model.", r"^language_model\.lm_head": "lm_head"}
    newer |= {r"^(vision_tower|multi_modal_projector)\.": r"model.\1."}

    def rename(held: dict) -> dict:
        for pattern, name in newer.items():
            held = {re.sub(pattern, name, each): value for each, value in held.items()}
        return held

    folders = folder, change_tensors(copy_of(folder, tmp_path / "newer"), rename)
    assert listing(folders[0]).keys() != listing(folders[1]).keys()
    values = []
    for each in folders:
        policy, codec = load_policy(str(each))
        policy.weights.save(policy.model, tmp_path / f"saved_{each.name}")
        assert listing(tmp_path / f"saved_{each.name}") == listing(each)
        model = Tiny("internvl", each, policy, codec)
        prompt = prompts_of(model)[0]
        (ids,) = random_completions(model, (6,))
        (batch,) = micro_batches(policy, [prompt], [[ids]], max_tokens=4096, pad_id=codec.pad_id)
        with torch.no_grad():
            values.append(policy(batch.rows, temperature=1.0, chunk_size=4096)[0])
            torch.testing.assert_close(values[-1], plain_log_probs(model, prompt, ids), atol=1e-5, rtol=0)
    assert torch.equal(*values)


# GLM-4.6V has the classes of GLM-4.1V under other names.
def test_glm_4_6v_is_glm_4_1v_under_another_name(tmp_path):
    policy, codec = load_policy(str(build_tiny(tmp_path / "m", "glm46v", hidden_size=64)))
    assert type(policy.model).__name__ == "Glm46VForConditionalGeneration"
    assert type(codec.processor).__name__ == "Glm46VProcessor"
    model = Tiny("glm46v", tmp_path, policy, codec)
    prompts = prompts_of(model)
    groups = [random_completions(model, (5, 3), seed=index) for index, _ in enumerate(prompts)]
    (batch,) = micro_batches(policy, prompts, groups, max_tokens=4096, pad_id=codec.pad_id)
    with torch.no_grad():
        found = policy(batch.rows, temperature=1.0, chunk_size=4096)[0].tolist()
        expected = {}
        for index, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            for number, ids in enumerate(group):
                values = plain_log_probs(model, prompt, ids).tolist()
                expected |= {(2 * index + number, time): value for time, value in enumerate(values)}
    places = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
    assert dict(zip(places, found, strict=True)) == pytest.approx(expected, abs=1e-5)


# ---- answers in marks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [False, True])
def test_an_answer_of_glm_in_its_marks_is_decoded_read_and_rewarded(tiny, tmp_path, special):
    folder = copy_of(tiny("glm4v").folder, tmp_path / "model")

    def declare(values: dict) -> None:
        for token in values["added_tokens"]:
            token["special"] = token["special"] or (special and "_box" in token["content"])

    change_json(folder, "tokenizer.json", declare)
    # GLM's template opens the thought of each response.
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>"))
    policy, codec = load_policy(str(folder))
    prompt = PromptBuilder(codec, policy.family)(problem_row("r", "3 + 4 ?"))
    assert prompt.opens == "<think>"
    texts = {
        "3 + 4 is 7.</think><answer>It is <|begin_of_box|>7<|end_of_box|>.</answer>": 1.1,
        "3 + 4 is 7.</think><answer>It is <|begin_of_box|>8<|end_of_box|>.</answer>": 0.1,
        "3 + 4 is <|begin_of_box|>7<|end_of_box|>.": 0.0,
    }
    ids = codec.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    marks = codec.tokenizer.convert_tokens_to_ids(["<|begin_of_box|>", "<|end_of_box|>"])
    assert all(set(marks) <= set(each) for each in ids) and not policy.banned_V[marks].any()
    decoded = codec.texts_of([[*each, codec.tokenizer.eos_token_id] for each in ids])
    assert decoded == list(texts)
    group = Group(prompt, tuple(Completion((1,), torch.zeros(1), text, False) for text in decoded))
    with build_scorer((RewardSpec("accuracy", 1.0), RewardSpec("format", 0.1)), **LIMITS) as scorer:
        found = score_groups(scorer, [group], "think_answer")[0].rewards
    assert found == pytest.approx(list(texts.values()))


# ---- MiMo-VL ---------------------------------------------------------------------------------------------------

# Its card says that it is Qwen2_5_VLForConditionalGeneration; the language model is MiMo-7B (36 layers of width 4096,
# 32 heads of 128, 8 of them for keys), the tower Qwen2.5-VL's. Written flat, as releases of that time did.
MIMO_VL = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128000,
    "rope_theta": 640000,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "vocab_size": 151680,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3456,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    },
}


def test_mimo_vl_is_read_as_qwen2_5_vl(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MIMO_VL))
    shapes = shapes_of(ModelConfig(path=str(tmp_path)))
    assert (shapes.model_type, shapes.text.hidden, shapes.vision.num_layers) == ("qwen2_5_vl", 4096, 32)
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 4096 + 2 * 1024 + 3 * 4096 * 11008 + 2 * 4096
    text = 36 * layer + 2 * 151680 * 4096 + 4096
    block = 4 * 1280**2 + 4 * 1280 + 3 * 1280 * 3456 + 2 * 3456 + 1280 + 2 * 1280
    merged = 4 * 1280
    merger = 1280 + merged**2 + merged + merged * 4096 + 4096
    vision = 3 * 2 * 14 * 14 * 1280 + 32 * block + merger
    assert shapes.num_parameters == text + vision
    assert family_of(shapes.model_type).shares_prompt
