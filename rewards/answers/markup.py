"""Typesetting around an answer that says nothing about it: Markdown, code fences, a JSON object, `equation`."""

from __future__ import annotations

import json
import re

_LANGUAGE = re.compile(r"[\w+-]{0,20}")
# Marks touch their text and stand at its edges, so that 2**3 and a_{1} stay what they are.
_BOLD = re.compile(r"(?<![\w*)}\]])\*\*(?=[^\s*])([^*]*)(?<=[^\s*])\*\*(?![\w*({\[])")
_UNDERLINED = re.compile(r"(?<![\w_)}\]])__(?=[^\s_])([^_]*)(?<=[^\s_])__(?![\w_({\[])")
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_STRUCK = re.compile(r"~~[^~]+~~")
# One "#" is a number sign or a comment as often as a heading.
_HEADING = re.compile(r"^#{2,6}\s*")
_EQUATION = re.compile(r"^\$*\s*\\begin\{(equation|displaymath|math)(\*?)\}(.*)\\end\{\1\2\}\s*\$*$", re.DOTALL)
_MAX_JSON_CHARS = 2000
_ANSWER_KEYS = {"answer", "final_answer", "final answer", "finalanswer"}
_OTHER_KEYS = {"reasoning", "explanation", "thought", "thoughts", "think", "thinking", "steps", "rationale"}


def without_markup(text: str) -> str:
    """The text without emphasis, headings, fences and the like; what is struck out is gone."""
    text = text.strip()
    if text.startswith("```"):
        text = _inside_fence(text)
    if text.startswith("{") and text.endswith("}"):
        text = _answer_of_json(text)
    if "~~" in text:
        text = _STRUCK.sub("", text)
    text = _HEADING.sub("", text)
    if "\\begin" in text:
        text = _EQUATION.sub(r"\3", text).strip()
    return _without_emphasis(text)


def _inside_fence(text: str) -> str:
    """What one code block holds that is the whole text, else the text."""
    language, newline, inside = text[3:-3].partition("\n")
    is_block = text.endswith("```") and newline and _LANGUAGE.fullmatch(language.strip())
    return inside.strip() if is_block else text


def _without_emphasis(text: str) -> str:
    if "**" in text:
        text = _BOLD.sub(r"\1", text)
    if "__" in text:
        text = _UNDERLINED.sub(r"\1", text)
    if "`" in text:
        text = _CODE.sub(r"\1", text)
    for mark in ("**", "__", "`", "*"):
        core = text.rstrip(".")
        if len(core) > 2 * len(mark) and core.startswith(mark) and core.endswith(mark):
            inner = core[len(mark) : -len(mark)]
            text = text if mark in inner else inner.strip()
    return text.strip()


def _answer_of_json(text: str) -> str:
    """The value under "answer" where nothing but its reasoning stands beside it, else the text."""
    if len(text) > _MAX_JSON_CHARS or '"' not in text:
        return text
    try:
        # Numbers stay as they are written.
        read = json.loads(text, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return text
    named = {str(key).strip().lower(): value for key, value in read.items()}
    answers = [value for key, value in named.items() if key in _ANSWER_KEYS]
    if len(answers) != 1 or len(named) != len(read) or not named.keys() <= _ANSWER_KEYS | _OTHER_KEYS:
        return text
    return answers[0].strip() if isinstance(answers[0], str) else text
