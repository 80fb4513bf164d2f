"""Model folders as people have them are read where that is possible, else refused in words that name the cause."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.builders import FAMILIES, picture, problem_row
from tests.model_folders import change_json, change_tensors, copy_of, listing
from vlm_mhpo import cli
from vlm_mhpo.commands.doctor.model import examine_folder
from vlm_mhpo.config import ModelConfig
from vlm_mhpo.errors import ModelError, PromptError
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.warm_start import target_ids

BASE = Path(__file__).parents[1] / "system" / "base.yaml"
PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer_config.json"


def remove(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()


def adapter_alone(folder: Path) -> None:
    remove(folder, "*")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')


def quantised(method: str):
    return lambda folder: change_json(
        folder, "config.json", lambda values: values.update(quantization_config={"quant_method": method, "bits": 4})
    )


def of_type(kind: str, **more):
    return lambda folder: change_json(folder, "config.json", lambda values: values.update(model_type=kind, **more))


def without_template(folder: Path) -> None:
    remove(folder, "chat_template*")


def with_tokens(*tokens: str):
    """Tokens that were added to the tokenizer without a row in the model."""

    def change(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(list(tokens))
        tokenizer.save_pretrained(folder)

    return change


def without_any_end(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    change_json(folder, TOKENIZER, lambda values: values.update(eos_token=None))
    change_json(folder, "generation_config.json", lambda values: values.update(eos_token_id=None))
    change_json(folder, "config.json", lambda values: values.get("text_config", values).update(eos_token_id=None))


REFUSED = {
    "adapter alone": (adapter_alone, r"the adapter at .* has no adapter_model.safetensors, and pickles are not read"),
    "adapter beside": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        r"has an adapter beside its weights .*: put the adapter into a folder of its own",
    ),
    "awq": (quantised("awq"), r"is quantised \(awq\), so its weights cannot learn"),
    "gptq": (quantised("gptq"), r"is quantised \(gptq\)"),
    "fp8": (quantised("fp8"), r"is quantised \(fp8\)"),
    "remote code": (of_type("mine", auto_map={"AutoConfig": "a.B"}), r"'mine' is not in .* needs code of its own"),
    "unknown": (of_type("mine"), r"no model at .* its type 'mine' is not in transformers \d"),
    "no tokenizer": (lambda folder: remove(folder, "tokenizer*"), r"the processor at .* there is no tokenizer.json"),
    "no template": (without_template, r"has no chat template"),
    "tokens beyond": (
        with_tokens("<mine>", "<yours>"),
        r"no row, since it has \d+ of them \(<mine>, <yours>\): resize",
    ),
    "no end": (without_any_end, r"names no token that ends a response"),
}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2"])
@pytest.mark.parametrize("kind", REFUSED)
def test_training_and_doctor_refuse_it_in_the_same_words(tiny, tmp_path, kind, family):
    change, sentence = REFUSED[kind]
    folder = copy_of(tiny(family).folder, tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=sentence) as refused:
        load_policy(str(folder))
    assert "\n" not in str(refused.value) and "image" not in str(refused.value)
    (check,) = examine_folder(ModelConfig(path=str(folder)))
    assert (check.state, check.text, check.exit_code) == ("error", str(refused.value), ModelError.exit_code)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_folder_without_its_image_processor_is_refused(tiny, tmp_path, family):
    folder = copy_of(tiny(family).folder, tmp_path / "model")
    remove(folder, PROCESSOR)
    with pytest.raises(ModelError, match=r"the processor at .* cannot be loaded: .*; take the tokenizer's"):
        load_policy(str(folder))


@pytest.mark.parametrize("command", ["doctor", "train"])
@pytest.mark.parametrize("kind", ["awq", "missing tensors", "frozen tower"])
def test_both_commands_end_with_the_same_exit_code(tiny, tmp_path, monkeypatch, capsys, command, kind):
    folder, more = copy_of(tiny("qwen2").folder, tmp_path / "model"), []
    if kind == "awq":
        quantised("awq")(folder)
    elif kind == "frozen tower":
        more = ["model.freeze_vision_tower=true"]
    else:
        change_tensors(folder, lambda held: {name: held[name] for name in held if "norm" not in name})
    overrides = [f"model.path={folder}", f"output_dir={tmp_path}/run", *more]
    monkeypatch.setattr(sys, "argv", ["vlm-mhpo", command, str(BASE), *overrides])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = "".join("".join(capsys.readouterr()).replace("│", "").split())
    with pytest.raises(ModelError) as refused:
        load_policy(str(folder), freeze_vision_tower=bool(more))
    assert ended.value.code == 2
    assert "".join(str(refused.value).split()) in told


# What can be read.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_that_only_the_tokenizers_configuration_has_is_used(tiny, tmp_path, family):
    model = tiny(family)
    folder = copy_of(model.folder, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    remove(folder, "chat_template*")
    change_json(folder, TOKENIZER, lambda values: values.update(chat_template=template))
    policy, codec = load_policy(str(folder))
    images = [picture(2 * model.token_side, model.token_side)] if model.has_vision else []
    row = problem_row("r", "<image>3 + 4 ?" if images else "3 + 4 ?", images)
    assert PromptBuilder(codec, policy.family)(row).text == model.builder()(row).text


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_to_pad_with_is_needed(tiny, tmp_path, family):
    """Nor is one in the model's matrix: padding is masked, whatever it is."""
    model = tiny(family)
    texts = ["<image>?", "<image>?"] if model.has_vision else ["?", "What is red plus blue?"]
    images = [[picture(side, side)] if model.has_vision else [] for side in (model.token_side, 3 * model.token_side)]
    rows = [problem_row(str(number), *each) for number, each in enumerate(zip(texts, images, strict=True))]

    def remove_it(folder: Path) -> None:
        change_json(folder, TOKENIZER, lambda values: values.pop("pad_token"))

    def put_it_beyond(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(folder)

    params = SamplingParams(2, 6)
    expected = HfSampler(model.policy, model.codec, max_batch_tokens=4096).sample(
        model.builder().build(rows), params, (0,)
    )
    for number, change in enumerate((remove_it, put_it_beyond)):
        folder = copy_of(model.folder, tmp_path / f"model{number}")
        change(folder)
        policy, codec = load_policy(str(folder))
        prompts = PromptBuilder(codec, policy.family).build(rows)
        assert codec.pad_id < policy.model.get_input_embeddings().num_embeddings
        found = HfSampler(policy, codec, max_batch_tokens=4096).sample(prompts, params, (0,))
        for mine, its in zip(found, expected, strict=True):
            assert mine.prompt.input_ids_S.tolist() == its.prompt.input_ids_S.tolist()
            assert [one.token_ids for one in mine.completions] == [one.token_ids for one in its.completions]


def test_a_response_ends_with_the_turn_of_the_template_whatever_the_configurations_name(tiny, tmp_path):
    folder = copy_of(tiny("qwen2_5_vl").folder, tmp_path / "model")
    end_of_text = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|endoftext|>")
    change_json(folder, TOKENIZER, lambda values: values.update(eos_token="<|endoftext|>"))
    for name in ("generation_config.json", "config.json"):
        change_json(folder, name, lambda values: values.update(eos_token_id=end_of_text))
    policy, codec = load_policy(str(folder))
    turn_end = codec.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert codec.end_ids == tuple(sorted((end_of_text, turn_end)))
    # A policy that says nothing but the end of a turn: one token each, none of them cut.
    policy.banned_V[:] = True
    policy.banned_V[turn_end] = False
    prompt = PromptBuilder(codec, policy.family)(problem_row("r", "3 + 4 ?", solution="7"))
    (group,) = HfSampler(policy, codec, max_batch_tokens=4096).sample([prompt], SamplingParams(2, 5), (0,))
    assert [(one.token_ids, one.truncated) for one in group.completions] == [((turn_end,), False)] * 2
    # And that is what the warm start teaches.
    assert target_ids(prompt, codec)[-1] == turn_end


# Nobody but an image is blamed for an image.


def test_a_template_that_refuses_a_system_message_is_named(tiny, tmp_path):
    folder = copy_of(tiny("qwen2").folder, tmp_path / "model")
    file = folder / "chat_template.jinja"
    file.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + file.read_text()
    )
    policy, codec = load_policy(str(folder))
    PromptBuilder(codec, policy.family)(problem_row("r", "?"))
    with pytest.raises(ModelError, match=r"refuses messages of system, user: System role not .*system_prompt"):
        PromptBuilder(codec, policy.family, system_prompt="Be brief.")(problem_row("r", "?"))


@pytest.mark.parametrize("part", ["", "<|vision_start|><|image_pad|><|vision_end|><|image_pad|>"])
def test_a_template_that_places_no_image_token_is_not_blamed_on_the_image(tiny, tmp_path, part):
    model = tiny("qwen2_5_vl")
    folder = copy_of(model.folder, tmp_path / "model")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|vision_start|><|image_pad|><|vision_end|>", part))
    policy, codec = load_policy(str(folder))
    row = problem_row("r", "<image>?", [picture(56, 56)])
    with pytest.raises(PromptError, match=r"row r: .*the chat template does not place one image token per image"):
        PromptBuilder(codec, policy.family)(row)


def test_doctor_shows_what_the_template_opens_and_how_a_response_ends(tiny, tmp_path):
    folder = copy_of(tiny("qwen3_vl").folder, tmp_path / "model")
    shown = {check.subject: check.text for check in examine_folder(ModelConfig(path=str(folder)))}
    assert shown["end of a response"] == "<|im_end|>"
    assert shown["chat template"].startswith("opens nothing")
    assert shown["weights"].startswith(f"{len(listing(folder))} tensors")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant\n", "assistant\n<think>\n"))
    shown = {check.subject: check.text for check in examine_folder(ModelConfig(path=str(folder)))}
    assert shown["chat template"].startswith(r"opens '<think>\n', which counts as the beginning of every response")
