"""What there is to know of a chat template, found out by rendering it: how a turn ends, what a response begins with."""

from __future__ import annotations

import re
from typing import Any

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.weights import first_line
from vlm_mhpo.types import TAGS

# A word that no template has.
_MARK = "Quince7"
_TAG = re.compile("|".join(map(re.escape, TAGS)))


def render(processor: Any, messages: list[dict[str, Any]], *, prompts: bool = True) -> str:
    """Messages as text, with what a response goes on from if it `prompts` for one.

    Raises:
        ModelError: the template refuses them.
    """
    from jinja2 import TemplateError

    try:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompts)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the model's chat template refuses messages of {roles}: {first_line(error)}; where it has no place for a "
            "system message, leave out data.system_prompt and those of the rows"
        ) from error


def give_template(path: str, processor: Any, tokenizer: Any) -> None:
    """See to it that `processor` has a chat template; that of the tokenizer where it has none of its own.

    Raises:
        ModelError: neither has one.
    """
    if not getattr(processor, "chat_template", None):
        processor.chat_template = tokenizer.chat_template
    if not processor.chat_template:
        raise ModelError(
            f"the model at {path!r} has no chat template, so it is not known how a question is put to it: take "
            "chat_template.jinja (or tokenizer_config.json) from its instruct model"
        )


def opened_response(processor: Any) -> str:
    """What a template puts before each response that belongs to it, such as "<think>\\n"; "" = nothing."""
    prompt = render(processor, [_turn("user")])
    behind = prompt[prompt.rfind(_MARK) + len(_MARK) :]
    tag = _TAG.search(behind)
    return behind[tag.start() :] if tag else ""


def turn_end(processor: Any, tokenizer: Any) -> int | None:
    """The special token that a template puts behind a response; None where it puts none."""
    try:
        text = render(processor, [_turn("user"), _turn("assistant")], prompts=False)
    except ModelError:
        return None
    if _MARK not in text:
        return None
    behind = tokenizer(text[text.rfind(_MARK) + len(_MARK) :], add_special_tokens=False)["input_ids"]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((index for index in behind if index in special), None)


def _turn(role: str) -> dict[str, Any]:
    return {"role": role, "content": _MARK}
