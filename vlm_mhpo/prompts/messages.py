"""From a row to chat messages; text can never forge structure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data_prep import Row
from vlm_mhpo.errors import PromptError
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.types import TAGS

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
    return [token for token in special_tokens if token not in TAGS]


def build_messages(
    row: Row, *, system_prompt: str | None, instruction: str, special_tokens: Sequence[str]
) -> list[dict]:
    """Chat messages of a row in transformers' multimodal form; images stand where `<image>` stood."""
    pieces = row.problem.split(IMAGE_PLACEHOLDER)
    if len(pieces) - 1 != len(row.images):
        raise PromptError(
            f"row {row.id}: the problem has {len(pieces) - 1} {IMAGE_PLACEHOLDER} placeholders for "
            f"{len(row.images)} images"
        )
    pieces = [neutralise(piece, special_tokens) for piece in [*pieces[:-1], f"{pieces[-1]}{_choices_text(row)}"]]
    # The instruction is the user's own and may show the tags that a response shall have.
    pieces[-1] = neutralise(f"{pieces[-1]}{instruction}", without_tags(special_tokens))
    content: list[dict] = []
    for index, piece in enumerate(pieces):
        if index:
            content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    system = [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}] if system_prompt else []
    return [*system, {"role": "user", "content": content}]


def _choices_text(row: Row) -> str:
    """The choices of a multiple-choice row, one a line behind its letter; empty for other rows."""
    if row.kind != "choice" or not row.choices:
        return ""
    return "\nChoices:\n" + "\n".join(f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(row.choices)) + "\n"
