"""From a row to chat messages; text can never forge structure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from data_prep import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Row, Turn
from vlm_mhpo.errors import PromptError
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.types import READ


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
    """Chat messages of a row in transformers' multimodal form; images and videos stand where their placeholders stood.

    A row's own system message stands in the place of `system_prompt`.
    """
    asked = [turn.text for turn in row.earlier_turns if turn.role == "user"] + [row.problem]
    for placeholder, shown, what in (
        (IMAGE_PLACEHOLDER, row.images, "images"),
        (VIDEO_PLACEHOLDER, row.videos, "videos"),
    ):
        num_placeholders = sum(text.count(placeholder) for text in asked)
        if num_placeholders != len(shown) and (shown or placeholder == IMAGE_PLACEHOLDER):
            raise PromptError(
                f"row {row.id}: the problem has {num_placeholders} {placeholder} placeholders for {len(shown)} {what}"
            )
    # Without videos their placeholder is text.
    marks = re.compile(f"({IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER})" if row.videos else f"({IMAGE_PLACEHOLDER})")
    messages = [_message("system", [system_prompt])] if system_prompt and not has_system(row) else []
    messages += [_earlier_message(turn, special_tokens, marks) for turn in row.earlier_turns]
    pieces = marks.split(row.problem)
    pieces[-1] += _choices_text(row)
    pieces = [piece if place % 2 else neutralise(piece, special_tokens) for place, piece in enumerate(pieces)]
    # The instruction is the user's own and may show the tags that a response shall have.
    pieces[-1] = neutralise(f"{pieces[-1]}{instruction}", without_tags(special_tokens))
    return [*messages, _message("user", pieces)]


def has_system(row: Row) -> bool:
    """Whether a row brings a system message of its own."""
    return any(turn.role == "system" for turn in row.earlier_turns)


def _earlier_message(turn: Turn, special_tokens: Sequence[str], marks: re.Pattern[str]) -> dict:
    """A turn before the last question: only a user's shows images, only the others may show the tags of a response."""
    if turn.role == "user":
        pieces = enumerate(marks.split(turn.text))
        return _message("user", [piece if place % 2 else neutralise(piece, special_tokens) for place, piece in pieces])
    return _message(turn.role, [neutralise(turn.text, without_tags(special_tokens))])


def _message(role: str, pieces: Sequence[str]) -> dict:
    """A message of texts, each two with a placeholder between them."""
    content: list[dict] = []
    for place, piece in enumerate(pieces):
        if place % 2:
            content.append({"type": "image" if piece == IMAGE_PLACEHOLDER else "video"})
        elif piece:
            content.append({"type": "text", "text": piece})
    return {"role": role, "content": content}


def _choices_text(row: Row) -> str:
    """The choices of a multiple-choice row, one a line behind its letter; empty for other rows."""
    if row.kind != "choice" or not row.choices:
        return ""
    return "\nChoices:\n" + "\n".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(row.choices)) + "\n"
