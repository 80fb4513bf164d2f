"""What differs between families: positions, banned tokens, frozen parts, and the refusals of loading."""

import copy
import json
import shutil

import pytest
import torch

from tests.builders import (
    FAMILIES,
    GRID_FAMILIES,
    PLACEHOLDER_TOKENS,
    VISION_FAMILIES,
    allowed_ids,
    grid_of,
    prompts_of,
)
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import family_of
from vlm_mhpo.models.families.base import banned_tokens, freeze, parameter_table
from vlm_mhpo.models.loading import load_policy


@pytest.mark.parametrize("name", ["gpt2", "llava", "", "qwen2_audio"])
def test_an_unsupported_architecture_is_refused_with_the_list(name):
    with pytest.raises(ModelError, match=rf"{name!r} are not supported; supported: .*qwen2_5_vl"):
        family_of(name)


# ---- positions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", GRID_FAMILIES)
def test_positions_of_a_picture_by_hand(tiny, family):
    """Text counts up on all axes; an image of h x w tokens starts at p and spans time p, rows p.., columns p..; the
    text after it goes on at the largest position plus one (arXiv:2409.12191, figure 3)."""
    model = tiny(family)
    prompt = prompts_of(model)[0]
    ids = prompt.input_ids_S.tolist()
    image_id = model.codec.tokenizer.convert_tokens_to_ids(model.image_token)
    shapes = [(int(h) // 2, int(w) // 2) for _, h, w in grid_of(prompt)]
    expected, position, index = [], 0, 0
    while index < len(ids):
        if ids[index] != image_id:
            expected.append((position, position, position))
            position, index = position + 1, index + 1
            continue
        rows, columns = shapes.pop(0)
        expected += [(position, position + y, position + x) for y in range(rows) for x in range(columns)]
        position, index = position + max(rows, columns), index + rows * columns
    assert shapes == []
    found = model.policy.family.positions(model.policy.model, prompt)
    assert found.dtype == torch.int64
    assert list(zip(*found.tolist(), strict=True)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_of_text_count_up(tiny, family):
    model = tiny(family)
    prompt = prompts_of(model)[-1]
    found = model.policy.family.positions(model.policy.model, prompt)
    assert found.tolist() == [list(range(prompt.num_tokens))] * (3 if family in GRID_FAMILIES else 1)


# ---- banned tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_banned_are_the_placeholders_and_nothing_else(tiny, family):
    model = tiny(family)
    banned = model.policy.banned_V.nonzero().flatten().tolist()
    assert sorted(set(range(model.policy.banned_V.shape[0])) - set(banned)) == allowed_ids(model)
    names = set(model.codec.tokenizer.convert_ids_to_tokens(banned))
    assert names == set(model.placeholders)
    assert not set(model.codec.end_ids) & set(banned)


def test_padding_of_the_embedding_matrix_is_banned(tiny):
    tokenizer = tiny("qwen2").codec.tokenizer
    banned = banned_tokens(tokenizer, len(tokenizer) + 7)
    assert banned.shape == (len(tokenizer) + 7,)
    assert banned[len(tokenizer) :].all()
    assert int(banned.sum()) == 7 + len(PLACEHOLDER_TOKENS)


def test_what_configuration_and_processor_name_is_banned_though_its_text_tells_nothing(tiny):
    """Gemma's configuration names <start_of_image> by boi_token_index, and counts 256 tokens per image beside it."""
    from types import SimpleNamespace

    from transformers import Gemma3Config

    tokenizer = copy.deepcopy(tiny("qwen2").codec.tokenizer)
    tokenizer.add_tokens(["<|audio_pad|>", "[IMG_BREAK]", "<imagine", "a", "b", "<|object_ref|>"])
    ids = dict(boi_token_index=11, eoi_token_index=12, image_token_index=len(tokenizer) + 4, mm_tokens_per_image=13)
    names = dict(video_token="a", audio_token_id=14, image_token=None, image_seq_length=15, eos_token="b")
    banned = banned_tokens(tokenizer, len(tokenizer) + 7, Gemma3Config(**ids), SimpleNamespace(**names))
    found = set(banned[: len(tokenizer)].nonzero().flatten().tolist())
    named = tokenizer.convert_tokens_to_ids([*PLACEHOLDER_TOKENS, "<|audio_pad|>", "[IMG_BREAK]", "a"])
    assert found == {11, 12, 14, *named}


def test_the_ban_is_no_weight(tiny):
    policy = tiny("qwen2_5_vl").policy
    assert not [name for name in policy.state_dict() if "banned" in name]


# ---- freezing --------------------------------------------------------------------------------------------------


def parts_of(model, policy) -> dict[str, set[bool]]:
    """requires_grad by part, told apart by the words in the weights' names."""
    found: dict[str, set[bool]] = {"tower": set(), "projector": set(), "language": set()}
    for name, weight in policy.model.named_parameters():
        found[model.part_of(name)].add(weight.requires_grad)
    return found


@pytest.mark.parametrize("tower", [True, False])
@pytest.mark.parametrize("projector", [True, False])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_freezing_holds_exactly_the_named_parts(tiny, family, tower, projector):
    policy, _ = load_policy(str(tiny(family).folder), freeze_vision_tower=tower, freeze_projector=projector)
    assert parts_of(tiny(family), policy) == {"tower": {not tower}, "projector": {not projector}, "language": {True}}
    # The same call with other choices undoes it.
    freeze(policy.model, policy.family, vision_tower_frozen=False, projector_frozen=False)
    assert parts_of(tiny(family), policy) == {"tower": {True}, "projector": {True}, "language": {True}}


@pytest.mark.parametrize("key", ["freeze_vision_tower", "freeze_projector"])
def test_freezing_the_vision_of_a_text_model_is_refused(tiny, key):
    with pytest.raises(ModelError, match="a qwen2 model has no vision tower"):
        load_policy(str(tiny("qwen2").folder), **{key: True})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_counts_every_weight_once(tiny, family):
    model = tiny(family)
    frozen = {"freeze_vision_tower": True} if model.has_vision else {}
    policy, _ = load_policy(str(model.folder), **frozen)
    table = parameter_table(policy.model, policy.family)
    assert sum(total for _, total, _ in table) == sum(weight.numel() for weight in policy.parameters())
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    assert sum(trainable for _, _, trainable in table) == trained
    names = [part for part, _, _ in table]
    assert names == (["vision tower", "projector", "language model"] if model.has_vision else ["language model"])
    if model.has_vision:
        mergers = sum(
            weight.numel() for name, weight in policy.named_parameters() if model.part_of(name) == "projector"
        )
        assert table[1] == ("projector", mergers, mergers)
        assert table[0][2] == 0


# ---- loading ---------------------------------------------------------------------------------------------------


def test_nothing_at_a_path_ends_in_one_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"no model at .*nowhere") as caught:
        load_policy(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_a_folder_of_an_unsupported_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelError, match="'clip' are not supported"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no_such_model"}'])
def test_a_broken_config_file_ends_in_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="no model at"):
        load_policy(str(tmp_path))


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of a tiny model's folder, to be broken."""
    return shutil.copytree(tiny("qwen2_5_vl").folder, tmp_path / "copy")


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut"])
def test_damaged_weights_end_in_one_sentence(folder, damage):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "emptied" else content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"the weights at .* cannot be loaded"):
        load_policy(str(folder))


def test_weights_in_pickles_are_not_loaded(folder):
    canary = folder / "canary"

    class Bomb:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    (folder / "model.safetensors").unlink()
    torch.save(Bomb(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_policy(str(folder))
    assert not canary.exists()


def test_a_folder_without_a_processor_is_refused(folder):
    for file in folder.iterdir():
        if file.name.startswith(
            ("tokenizer", "preprocessor", "processor", "video_preprocessor", "vocab", "merges", "chat")
        ):
            file.unlink()
    with pytest.raises(ModelError, match=r"the processor at .* cannot be loaded"):
        load_policy(str(folder))


def test_pixel_limits_that_cross_the_processors_own_are_refused(folder):
    with pytest.raises(ModelError, match=r"set both model\.min_pixels and model\.max_pixels"):
        load_policy(str(folder), max_pixels=10)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_dtype_is_the_one_asked_for(folder, dtype, expected):
    policy, _ = load_policy(str(folder), dtype=dtype)
    assert {weight.dtype for weight in policy.parameters()} == {expected}


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(folder):
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    policy, codec = load_policy(str(folder))
    pad, end = codec.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert codec.end_ids == (end,)
    file.write_text(json.dumps({**settings, "eos_token_id": [pad]}))
    assert load_policy(str(folder))[1].end_ids == tuple(sorted((pad, end)))
    assert codec.pad_id == pad
    assert codec.max_context == policy.model.config.text_config.max_position_embeddings


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "abc123", "A" * 40, "0" * 41, "", "../main"])
def test_a_revision_that_is_no_commit_hash_is_refused_before_anything_is_read(revision, tmp_path):
    with pytest.raises(ModelError, match="is not a commit hash"):
        load_policy(str(tmp_path / "nowhere"), revision=revision)


def test_a_commit_hash_is_a_revision(folder):
    load_policy(str(folder), revision="0123456789abcdef0123456789abcdef01234567")
