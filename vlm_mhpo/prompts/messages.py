"""From a row to chat messages; text can never forge structure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data_prep import Row, Turn
from vlm_mhpo.errors import PromptError
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.types import READ

IMAGE_PLACEHOLDER = "<image>"


def neutralise(text: str, special_tokens: Iterable[str]) -> str:
    """`text` with every special token broken up by a zero-width space, so that the tokenizer reads plain characters."""
    # str.replace steps over what it has just read, so a token that overlaps itself needs another round.
    specials = [token for token in special_tokens if len(token) > 1]
    while found := [token for token in specials if token in text]:
        for token in found:
            text = text.replace(token, token[0] + "\u200b" + token[1:])
    return text


def special_tokens(codec: Codec) -> tuple[str, ...]:
    """The texts that the tokenizer reads as structure."""
    # Llama 3 declares its turn tokens special without listing them among all_special_tokens.
    declared = [token.content for token in codec.tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*codec.tokenizer.all_special_tokens, *declared]))


def without_tags(special_tokens: Iterable[str]) -> list[str]:
    """Those that no text may hold, not even one that shows a response."""
    return [token for token in special_tokens if token not in READ]


def build_messages(
    row: Row, *, system_prompt: str | None, instruction: str, special_tokens: Sequence[str]
) -> list[dict]:
    """Chat messages of a row in transformers' multimodal form; images stand where `<image>` stood.

    A row's own system message stands in the place of `system_prompt`.
    """
    asked = [turn.text for turn in row.earlier_turns if turn.role == "user"] + [row.problem]
    num_placeholders = sum(text.count(IMAGE_PLACEHOLDER) for text in asked)
    if num_placeholders != len(row.images):
        raise PromptError(
            f"row {row.id}: the problem has {num_placeholders} {IMAGE_PLACEHOLDER} placeholders for "
            f"{len(row.images)} images"
        )
    messages = [_message("system", [system_prompt])] if system_prompt and not has_system(row) else []
    messages += [_earlier_message(turn, special_tokens) for turn in row.earlier_turns]
    pieces = row.problem.split(IMAGE_PLACEHOLDER)
    pieces = [neutralise(piece, special_tokens) for piece in [*pieces[:-1], f"{pieces[-1]}{_choices_text(row)}"]]
    # The instruction is the user's own and may show the tags that a response shall have.
    pieces[-1] = neutralise(f"{pieces[-1]}{instruction}", without_tags(special_tokens))
    return [*messages, _message("user", pieces)]


def has_system(row: Row) -> bool:
    """Whether a row brings a system message of its own."""
    return any(turn.role == "system" for turn in row.earlier_turns)


def _earlier_message(turn: Turn, special_tokens: Sequence[str]) -> dict:
    """A turn before the last question: only a user's shows images, only the others may show the tags of a response."""
    if turn.role == "user":
        return _message("user", [neutralise(text, special_tokens) for text in turn.text.split(IMAGE_PLACEHOLDER)])
    return _message(turn.role, [neutralise(turn.text, without_tags(special_tokens))])


def _message(role: str, pieces: Sequence[str]) -> dict:
    """A message with an image between each two texts."""
    content: list[dict] = []
    for index, piece in enumerate(pieces):
        if index:
            content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    return {"role": role, "content": content}


def _choices_text(row: Row) -> str:
    """The choices of a multiple-choice row, one a line behind its letter; empty for other rows."""
    if row.kind != "choice" or not row.choices:
        return ""
    return "\nChoices:\n" + "\n".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(row.choices)) + "\n"
