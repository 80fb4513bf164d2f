"""Videos in prompts: what the processor and qwen-vl-utils make of them, and what the stock model makes of that.

The reference is transformers' AutoProcessor fed by `qwen_vl_utils.process_vision_info`, and the stock model on one
[prompt, completion] sequence with videos as videos; ours shows them to the model as images with rows in time.
"""

import io
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info, vision_process
from transformers import AutoProcessor

from data_prep.schema import make_row
from tests.builders import (
    allowed_ids,
    build_and_load,
    completion,
    gradients,
    grid_of,
    picture,
    pixels_of,
    problem_row,
    prompts_of,
    random_completions,
    relative_gap,
    scored,
)
from tests.video_files import noisy_frames, video
from tests.vlm_mhpo.test_packing import packed, weight_of
from vlm_mhpo.config.data import VideoConfig
from vlm_mhpo.errors import PromptError
from vlm_mhpo.faults.dump import dump_folder, read_dump, write_dump
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.prompts import checked
from vlm_mhpo.prompts.builder import OverlongPrompt, PromptBuilder
from vlm_mhpo.prompts.videos import open_clip
from vlm_mhpo.records.recorder import sample_rows
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.scoring.samples import to_samples
from vlm_mhpo.types import Minibatch

CLIP = video(noisy_frames(12, width=96, height=64), fps=5)
FRAMES = noisy_frames(5, 64, 96, seed=4)
MEDIA = {"pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"}
PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16, "qwen3_5": 16, "qwen3_vl_moe": 16, "qwen3_5_moe": 16}


def png(frame) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    return stream.getvalue()


def config_of(patch: int, **more) -> VideoConfig:
    """Frames of 2 to 12 tokens."""
    return VideoConfig(min_pixels=2 * (2 * patch) ** 2, max_pixels=12 * (2 * patch) ** 2, frames_fps=1.0, **more)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    built = {}

    def get(family: str):
        if family not in built:
            built[family] = build_and_load(tmp_path_factory.mktemp("videos") / family, family)
        return built[family]

    return get


def rows(model):
    """An image between two videos, frames alone, a video file alone, an image, text."""
    side = model.token_side
    frames = tuple(map(png, FRAMES))
    image = picture(2 * side, 3 * side, seed=1)
    return [
        make_row(
            id="all", problem="<video>Then <image> and <video>?", answer="7", images=[image], videos=[CLIP, frames]
        ),
        make_row(id="frames", problem="What is red?", answer="7", videos=[frames[:4]]),
        make_row(id="file", problem="<video>What is 1 + 2?", answer="7", videos=[CLIP]),
        problem_row("image", "<image>What is red plus blue?", [image]),
        problem_row("text", "What is 3 + 4 ?"),
    ]


def built(model):
    return model.builder(video=config_of(PATCH[model.family])).build(rows(model))


@pytest.fixture
def plain_reader(monkeypatch):
    """qwen-vl-utils with a reader of video files that decodes everything: its own needs a torchvision that is gone."""

    def read(wish):
        with av.open(io.BytesIO(wish["bytes"])) as container:
            fps = float(container.streams.video[0].average_rate)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        count = vision_process.smart_nframes(wish, total_frames=len(frames), video_fps=fps)
        places = torch.linspace(0, len(frames) - 1, count).round().long()
        shown = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[places]
        metadata = {"fps": fps, "frames_indices": places, "total_num_frames": len(frames), "video_backend": "ours"}
        return shown, metadata, count / len(frames) * fps

    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "torchvision", read)


def wish_of(video, config: VideoConfig) -> dict:
    """A video as qwen-vl-utils is asked for it."""
    budgets = config.model_dump(include={"min_pixels", "max_pixels", "total_pixels"}, exclude_none=True)
    if isinstance(video, tuple):
        frames = [Image.open(io.BytesIO(frame)) for frame in video]
        return {"type": "video", "video": frames, "sample_fps": config.frames_fps, **budgets}
    sampling = config.model_dump(include={"fps", "min_frames", "max_frames"})
    return {"type": "video", "video": "a.mp4", "bytes": video, **sampling, **budgets}


def processed(model, row, prompt):
    """What AutoProcessor makes of the row, with `process_vision_info` in front of it."""
    processor, patch = AutoProcessor.from_pretrained(model.folder), PATCH[model.family]
    size = processor.image_processor.size
    limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    images, videos, content = iter(row.images), iter(row.videos), []
    for token in ("<video>", "<image>", "<video>"):
        if token in row.problem and (token == "<image>" or len(content) < len(row.videos) + len(row.images)):
            shown = {"image": Image.open(io.BytesIO(next(images))), **limits} if token == "<image>" else None
            content.append(shown or wish_of(next(videos), config_of(patch)))
    pictures, clips = process_vision_info(
        [{"role": "user", "content": content}], image_patch_size=patch, return_video_metadata=True
    )
    text = prompt.text
    if PATCH[model.family] == 16:
        text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    return processor(
        text=[text],
        images=pictures,
        videos=[frames for frames, _ in clips],
        video_metadata=[metadata for _, metadata in clips],
        do_sample_frames=False,
        videos_kwargs={"do_resize": False},
        return_tensors="pt",
        return_mm_token_type_ids=True,
        add_special_tokens=False,
    )


@pytest.mark.parametrize("family", PATCH)
def test_a_prompt_is_what_the_processor_makes_of_process_vision_info(models, plain_reader, family):
    model = models(family)
    for row, prompt in list(zip(rows(model), built(model), strict=True))[:3]:
        inputs = processed(model, row, prompt)
        ids, types = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]
        vocabulary = model.codec.tokenizer.get_vocab()
        assert prompt.token_types_S.equal(types.long())
        shown = torch.where(types == 2, vocabulary["<|image_pad|>"], ids)
        assert prompt.input_ids_S.equal(shown)
        assert (ids[types == 2] == vocabulary["<|video_pad|>"]).all() and 2 in types
        # Patches of images and videos as they stand in the prompt.
        clips = list(inputs["pixel_values_videos"].split(inputs["video_grid_thw"].prod(dim=1).tolist()))
        grids = list(inputs["video_grid_thw"])
        if row.images:
            clips.insert(1, inputs["pixel_values"])
            grids.insert(1, inputs["image_grid_thw"][0])
        assert grid_of(prompt).equal(torch.stack(grids))
        assert pixels_of(prompt).equal(torch.cat(clips))


def plain_log_probs(model, inputs, ids, temperature):
    """[T] log-probs of a completion under the stock model, with gradient; videos are videos.

    The completion stands where `generate` puts it, behind the largest position (`rope_deltas`). The forward of a whole
    sequence would go on from the last token, which lies before that where a video of Qwen2.5-VL lasts longer than wide.
    """
    stock, tokens = model.policy.model, inputs["input_ids"]
    media = {name: inputs[name] for name in MEDIA & inputs.keys()}
    types, places = inputs["mm_token_type_ids"], torch.arange(tokens.shape[1] + len(ids))
    if media:
        grids = {name: value for name, value in media.items() if "grid" in name}
        seconds = inputs.get("second_per_grid_ts")
        grids |= {} if seconds is None else {"second_per_grid_ts": torch.as_tensor(seconds)}
        positions, delta = stock.model.get_rope_index(tokens, mm_token_type_ids=types, **grids)
        behind = (places[tokens.shape[1] :] + delta).expand(3, 1, -1)
        media["position_ids"] = torch.cat([positions, behind], dim=2)
    tokens = torch.cat([tokens, torch.tensor([ids])], dim=1)
    types = torch.nn.functional.pad(types, (0, len(ids)))
    logits = stock(input_ids=tokens, mm_token_type_ids=types, use_cache=False, **media).logits[0, -len(ids) - 1 : -1]
    allowed = allowed_ids(model)
    targets = torch.tensor([allowed.index(index) for index in ids])
    return -torch.nn.functional.cross_entropy(logits[:, allowed] / temperature, targets, reduction="none")


@pytest.mark.parametrize("family", PATCH)
def test_packed_rows_of_videos_equal_separate_rows_of_the_stock_model(models, plain_reader, family):
    """Values and gradients, with shared prompts, in few and in many micro-batches, beside rows of images and text."""
    model = models(family)
    prompts = built(model)
    groups = [random_completions(model, lengths, seed=3) for lengths in ((3, 5), (2,), (4, 1), (3,), (2, 2))]
    for max_tokens in (100_000, 150):
        expected, flat = {}, 0
        for index, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            row = rows(model)[index]
            inputs = processed(model, row, prompt) if row.videos else plain_inputs(prompt)
            for ids in group:
                log_probs_T = plain_log_probs(model, inputs, ids, 0.7)
                (log_probs_T * torch.tensor([weight_of(flat, time) for time in range(len(ids))])).sum().backward()
                expected |= {(flat, time): value for time, value in enumerate(log_probs_T.tolist())}
                flat += 1
        expected_gradients = gradients(model)
        found, count = packed(model, prompts, groups, max_tokens=max_tokens, temperature=0.7)
        found_gradients = gradients(model)
        assert found.keys() == expected.keys() and (count == 1) == (max_tokens > 1000)
        assert max(abs(found[key] - expected[key]) for key in expected) <= 1e-5
        gap, name = relative_gap(found_gradients, expected_gradients)
        # A recurrent state sums over all tokens before, in another order.
        assert gap <= (1e-4 if ".linear_attn." in name else 1e-5), name


def plain_inputs(prompt):
    media = prompt.media.tensors if prompt.media else {}
    return {"input_ids": prompt.input_ids_S[None], "mm_token_type_ids": prompt.token_types_S[None], **media}


@pytest.mark.parametrize("family", PATCH)
def test_the_sampler_and_cached_features_give_what_the_stock_model_gives(models, plain_reader, family):
    model = models(family)
    prompts, own = built(model), rows(model)
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=100_000)
    groups = sampler.sample(prompts, SamplingParams(temperature=0.7, max_tokens=6, num_samples=2), (1,))
    with torch.no_grad():
        for group, row in list(zip(groups, own, strict=True))[:3]:
            inputs = processed(model, row, group.prompt)
            for one in group.completions:
                expected = plain_log_probs(model, inputs, one.token_ids, 0.7)
                assert (one.log_probs - expected).abs().max() <= 1e-5
    frozen, codec = load_policy(str(model.folder), freeze_vision_tower=True)
    cached = frozen.with_image_features(prompts)
    assert all("pixel_values" not in prompt.media.tensors for prompt in cached)
    again = HfSampler(frozen, codec, max_batch_tokens=100_000).sample(
        cached, SamplingParams(temperature=0.7, max_tokens=6, num_samples=2), (1,)
    )
    for found, first in zip(again, groups, strict=True):
        for one, other in zip(found.completions, first.completions, strict=True):
            assert one.token_ids == other.token_ids
            assert (one.log_probs - other.log_probs).abs().max() <= 1e-5


def test_positions_by_hand(models):
    """Two moments of 2 x 4 tokens; a moment of Qwen2.5-VL lies 2 frames / 1 fps x 4 tokens a second = 8 apart."""
    config = config_of(14)
    row = make_row(id="r", problem="1<video>2", answer="7", videos=[tuple(map(png, noisy_frames(4, 112, 56)))])
    for family, step in (("qwen2_vl", 1), ("qwen2_5_vl", 8)):
        model = models(family)
        assert getattr(model.policy.model.config.vision_config, "tokens_per_second", 4) == 4
        prompt = model.builder(video=config).build([row])[0]
        positions = model.policy.family.positions(model.policy.model, prompt)
        start = int((prompt.token_types_S == 2).nonzero()[0])
        grid = [(t, h, w) for t in range(2) for h in range(2) for w in range(4)]
        assert grid_of(prompt).tolist() == [[2, 4, 8]]
        expected = [[start + t * step, start + h, start + w] for t, h, w in grid]
        assert positions[:, start : start + 16].T.tolist() == expected
        assert positions[:, :start].tolist() == [list(range(start))] * 3
        # transformers: the text behind goes on by the larger side, whatever the time.
        behind = prompt.num_tokens - start - 16
        assert positions[:, start + 16 :].tolist() == [list(range(start + 4, start + 4 + behind))] * 3


def test_qwen3_names_the_seconds_of_each_moment_between_marks_of_its_own(models):
    model = models("qwen3_vl")
    row = make_row(id="r", problem="<video>", answer="7", videos=[tuple(map(png, noisy_frames(4, 128, 64)))])
    prompt = model.builder(video=config_of(16)).build([row])[0]
    moment = "<|vision_start|>" + 8 * "<|image_pad|>" + "<|vision_end|>"
    # Frames at 0, 1, 2, 3 seconds, two a moment.
    assert f"user\n<0.5 seconds>{moment}<2.5 seconds>{moment}<|im_end|>" in model.codec.tokenizer.decode(
        prompt.input_ids_S
    )
    positions = model.policy.family.positions(model.policy.model, prompt)
    first, *_ = (prompt.token_types_S == 2).nonzero()[:, 0].tolist()
    assert positions[:, first : first + 8].T.tolist() == [
        [first, first + h, first + w] for h in (0, 1) for w in range(4)
    ]


# ---- the rules of qwen-vl-utils ----------------------------------------------------------------------------------

SIZES = [(96, 64), (64, 96), (37, 91), (300, 40), (28, 28), (640, 360)]


@pytest.mark.parametrize("patch", [14, 16])
def test_frames_of_files_are_those_of_qwen_vl_utils(plain_reader, patch):
    settings = [{}, {"fps": 1.0}, {"max_frames": 6}, {"min_frames": 10}, {"fps": 30.0}, {"total_pixels": 60_000}]
    for number, ((width, height), sampling) in enumerate(zip(SIZES, settings, strict=True)):
        data = video(noisy_frames(14, width // 2 * 2, height // 2 * 2, seed=number), Fraction(7, 2))
        for limits in ({}, config_of(patch).model_dump(include={"min_pixels", "max_pixels"})):
            # Without limits of ours a frame has at least 128 tokens: one size of those is enough.
            if limits or number == 0:
                config = VideoConfig(**sampling, **limits)
                (frames, metadata), rate = vision_process.fetch_video(
                    wish_of(data, config), patch, return_video_sample_fps=True, return_video_metadata=True
                )
                clip = open_clip(data, config, patch)
                assert clip.frames_TCHW.equal(frames)
                assert clip.metadata["frames_indices"] == metadata["frames_indices"].tolist()
                assert len(clip.frames_TCHW) / clip.metadata["total_num_frames"] * clip.metadata["fps"] == rate


IMAGE_SIZES = [
    *((28, 28), (29, 29), (14, 500), (500, 14), (5, 700), (700, 5), (100, 333), (333, 100), (640, 480), (1, 150)),
    *((150, 1), (56, 56), (64, 64), (97, 101), (224, 224), (320, 20), (20, 320), (813, 77), (450, 451), (33, 1000)),
]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_pixels_of_images_are_those_of_process_vision_info(models, family):
    """20 sizes for each patch size, with the folder's limits and with narrow ones."""
    model, patch = models(family), PATCH[family]
    for min_pixels, max_pixels in ((None, None), (8 * (2 * patch) ** 2, 40 * (2 * patch) ** 2)):
        policy, codec = load_policy(str(model.folder), min_pixels=min_pixels, max_pixels=max_pixels)
        processor = AutoProcessor.from_pretrained(model.folder)
        size = dict(processor.image_processor.size)
        size |= {"shortest_edge": min_pixels, "longest_edge": max_pixels} if min_pixels else {}
        processor.image_processor.size = size
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        build, num_equal = PromptBuilder(codec, policy.family), 0
        for seed, (width, height) in enumerate(IMAGE_SIZES):
            data = picture(width, height, seed)
            prompt = build(problem_row(str(seed), "<image>", [data]))
            wish = [{"type": "image", "image": Image.open(io.BytesIO(data)), **limits}]
            try:
                images, _ = process_vision_info([{"role": "user", "content": wish}], image_patch_size=patch)
            except ValueError:
                # Its rule makes a side of 0 of this one; the processor's own takes it.
                images = [Image.open(io.BytesIO(data)).convert("RGB")]
                num_equal -= 1
            expected = processor.image_processor(images=images, return_tensors="pt")
            assert grid_of(prompt).equal(expected["image_grid_thw"]), (width, height)
            assert pixels_of(prompt).equal(expected["pixel_values"]), (width, height)
            num_equal += 1
        assert num_equal >= 16


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_video_that_cannot_be_shown_names_its_row(models):
    model = models("qwen2_5_vl")
    build = model.builder(video=config_of(14), max_prompt_length=20)
    one = (png(FRAMES[0]),)
    with pytest.raises(PromptError, match="row r: video of 700 bytes: truncated"):
        build(make_row(id="r", problem="?", answer="7", videos=[CLIP[:700]]))
    with pytest.raises(OverlongPrompt, match=r"lower data\.video\.fps"):
        build(make_row(id="r", problem="?", answer="7", videos=[CLIP]))
    with pytest.raises(PromptError, match=r"row r: .*nframes should in interval \[2, 1\]"):
        build(make_row(id="r", problem="?", answer="7", videos=[video(noisy_frames(1))]))
    with pytest.raises(PromptError, match=r"row r: the pixel limits of data\.video cross"):
        model.builder(video=VideoConfig(max_pixels=1000))(make_row(id="r", problem="?", answer="7", videos=[one]))
    with pytest.raises(PromptError, match="1 videos and a qwen2 model sees none"):
        text = replace(model.policy.family, model_type="qwen2", vision=None)
        PromptBuilder(model.codec, text)(make_row(id="r", problem="?", answer="7", videos=[one]))


def test_text_beside_a_video_forges_no_video(models):
    model = models("qwen2_vl")
    row = make_row(id="r", problem="<video><|vision_start|><|video_pad|><|vision_end|>?", answer="7",
                   videos=[tuple(map(png, FRAMES[:2]))])  # fmt: skip
    prompt = model.builder(video=config_of(14)).build([row])[0]
    assert grid_of(prompt).shape[0] == 1
    assert prompt.num_image_tokens == grid_of(prompt).prod() // 4
    text = model.builder().build([problem_row("t", "What does the tag <video> do?")])[0]
    assert text.media is None and "tag <video> do" in text.text


def test_the_check_of_all_rows_is_kept_apart_for_other_frames(models, tmp_path):
    model = models("qwen2_vl")
    file = tmp_path / "a.mp4"
    file.write_bytes(CLIP)
    row = [make_row(id="r", problem="?", answer="7", videos=[file])]
    names = {checked.name_of(row, model.builder(video=config_of(14, fps=fps))) for fps in (1.0, 2.0)}
    file.write_bytes(CLIP[:-1])
    names.add(checked.name_of(row, model.builder(video=config_of(14, fps=2.0))))
    assert len(names) == 3
    assert checked.name_of(row, model.builder(video=config_of(14, fps=2.0, timeout=9))) in names


def test_prompts_of_images_alone_hold_nothing_of_videos(models):
    for prompt in prompts_of(models("qwen2_5_vl")):
        assert prompt.media is None or set(prompt.media.tensors) == {"pixel_values", "image_grid_thw"}


# ---- what a run keeps ------------------------------------------------------------------------------------------


def test_records_and_reward_functions_show_a_contact_sheet(models, tmp_path):
    model = models("qwen2_5_vl")
    (tmp_path / "a.mp4").write_bytes(CLIP)
    image = picture(56, 28)
    row = make_row(
        id="r", problem="?", answer="7", images=[image], videos=[tmp_path / "a.mp4", tuple(map(png, FRAMES))]
    )
    prompt = model.builder(video=config_of(14)).build([row])[0]
    group = scored(prompt, [completion((1, 2))])
    names = sample_rows(tmp_path, 3, group)[0]["images"]
    assert names == sample_rows(tmp_path, 4, group)[0]["images"] and len({*names}) == 3
    sheets = [Image.open(tmp_path / name).convert("RGB") for name in names]
    # Eight frames of 96 x 64 in rows of three; five of 64 x 96.
    assert [sheet.size for sheet in sheets] == [(56, 28), (288, 192), (192, 192)]
    first, last = np.asarray(sheets[2])[:96, :64], np.asarray(sheets[2])[96:, 64:128]
    assert (first == FRAMES[0]).all() and (last == FRAMES[-1]).all()
    (sample,) = to_samples([group.group], "think_answer")
    seen = sample.columns["images"]
    assert [each.size for each in seen] == [(56, 28), (192, 128), (128, 192)]


def test_a_dump_is_read_again_with_what_the_model_saw(models, tmp_path):
    model = models("qwen2_5_vl")
    (tmp_path / "a.mp4").write_bytes(CLIP)
    row = make_row(id="r", problem="?", answer="7", videos=[tmp_path / "a.mp4"])
    prompt = model.builder(video=config_of(14)).build([row])[0]
    batch = Minibatch([scored(prompt, [completion((1, 2))])], (1.0,), (torch.zeros(2),))
    write_dump(tmp_path / "run", 3, batch, {}, "a test")
    (dump,) = read_dump(dump_folder(tmp_path / "run", 3))
    found = dump.batch.groups[0].group.prompt
    assert found.media.tensors.keys() == prompt.media.tensors.keys()
    assert all(found.media.tensors[name].equal(value) for name, value in prompt.media.tensors.items())
    assert found.input_ids_S.equal(prompt.input_ids_S) and found.token_types_S.equal(prompt.token_types_S)
