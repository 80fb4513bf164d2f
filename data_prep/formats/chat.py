"""The questions of chat messages: the prompts of TRL, verl, VLM-R1, ms-swift, MM-Eureka and LMM-R1."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.schema import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, RowError, Turn

_MAX_CHARACTERS = 2**20
_MARKS = {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}
# OpenAI's role names and those of LLaVA's conversations.
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat asks.

    Attributes:
        problem: the text of the last user turn, with its placeholders.
        images: the images that stand inside the messages, in order, as they were written.
        reply: the assistant turn after it, or None.
        earlier_turns: those before it, the system message first.
        videos: those that stand inside the messages, in order, as they were written.
    """

    problem: str
    images: tuple[Any, ...]
    reply: str | None
    earlier_turns: tuple[Turn, ...]
    videos: tuple[Any, ...] = ()


def read_chat(messages: Any, field: str) -> Chat:
    """The turns of a list of messages, or of its JSON text; a blank system message says nothing and is left out.

    A message has `role` and `content` (text or a list of parts) or `from` and `value`.

    Raises:
        RowError: naming `field`: no messages, turns that do not alternate, a part that is neither text, image nor
            video, an image that no user shows.
    """
    turns, shown = [], {"image": [], "video": []}
    for role, content in (_turn(message, field) for message in _as_list(messages, field)):
        if role == "system" and content is None:
            continue
        text, media, has_parts = _content(content, field)
        if role == "system" and not has_parts and not text.strip():
            continue
        if role != "user" and (
            has_parts or (isinstance(content, list) and any(mark in text for mark in _MARKS.values()))
        ):
            raise RowError(f"shows an image in a turn of the {role}: only a user shows images", field=field)
        turns.append(Turn(role, text))
        for kind, given in media.items():
            shown[kind] += given
    roles = [turn.role for turn in turns]
    reply = turns.pop().text if roles[-1:] == ["assistant"] else None
    spoken = [role for role in roles if role != "system"]
    if "user" not in roles or "system" in roles[1:] or spoken != (["user", "assistant"] * len(spoken))[: len(spoken)]:
        raise RowError(
            f"has the turns {', '.join(roles) or 'none'}; a row is a system message or none, questions of a user, each "
            "but the last with its answer, and perhaps the answer to the last",
            field=field,
        )
    return Chat(turns[-1].text, tuple(shown["image"]), reply, tuple(turns[:-1]), tuple(shown["video"]))


def read_turns(messages: Any, field: str) -> tuple[Turn, ...]:
    """Turns of plain texts, as `prepare` writes those before the last question; None or nothing: none.

    Raises:
        RowError: naming `field`.
    """
    said = [_turn(message, field) for message in _as_list(messages, field)] if messages else []
    turns = [Turn(role, _content(content, field)[0]) for role, content in said]
    return tuple(turn for turn in turns if turn.role != "system" or turn.text.strip())


def with_system(turns: tuple[Turn, ...], system: Any) -> tuple[Turn, ...]:
    """The turns behind the system message that a column of its own holds, as ms-swift and LLaMA-Factory have it.

    Raises:
        RowError: it is no text, or not that of the turns.
    """
    if system is None or (isinstance(system, str) and not system.strip()):
        return turns
    if not isinstance(system, str) or (turns and turns[0].role == "system" and turns[0].text != system):
        raise RowError("is no text, or another than the system message of the chat; keep one of them", field="system")
    return turns if turns and turns[0].role == "system" else (Turn("system", system), *turns)


def is_chat(value: Any) -> bool:
    """Whether a prompt is a list of messages, or JSON text that looks like one."""
    return isinstance(value, list) or (isinstance(value, str) and value.startswith("[{") and '"role"' in value)


def _as_list(messages: Any, field: str) -> list[Any]:
    if isinstance(messages, str):
        if len(messages) > _MAX_CHARACTERS:
            raise RowError(f"is longer than {_MAX_CHARACTERS:,} characters", field=field)
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise RowError(f"is text but no JSON list of messages: {error}", field=field) from error
    if not isinstance(messages, list | tuple):
        raise RowError(f"holds a {type(messages).__name__}, not a list of messages", field=field)
    return messages


def _turn(message: Any, field: str) -> tuple[str, Any]:
    if isinstance(message, Turn):
        return message
    if not isinstance(message, Mapping):
        raise RowError(f"holds a {type(message).__name__} where a message should be", field=field)
    role, content = (message.get("role"), message.get("content"))
    if role is None:
        role, content = (message.get("from"), message.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(f"has a message of {role!r}; the roles are {', '.join(_ROLES)}", field=field)
    return _ROLES[role], content


def _content(content: Any, field: str) -> tuple[str, dict[str, list[Any]], bool]:
    """(text with placeholders, images and videos, whether there are any).

    A text that has placeholders already says where those of that kind stand.
    """
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    pieces = [_part(part, field) for part in parts]
    texts = "".join(value for kind, value in pieces if kind == "text")
    marks = {kind: "" if mark in texts else mark for kind, mark in _MARKS.items()}
    given = {kind: [value for own, value in pieces if own == kind and value is not None] for kind in _MARKS}
    text = "".join(value if kind == "text" else marks[kind] for kind, value in pieces)
    return text, given, any(given.values())


def _part(part: Any, field: str) -> tuple[str, Any]:
    """What kind of part it is, and what it holds; None for an image or video that a column of the row holds."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return kind, part["text"]
    if kind in _MARKS:
        return kind, part.get(kind)
    if kind in ("image_url", "video_url"):
        address = part.get(kind)
        return kind.removesuffix("_url"), address.get("url") if isinstance(address, Mapping) else address
    raise RowError("has a part that is neither {'type': 'text', 'text': ...} nor an image or a video", field=field)
