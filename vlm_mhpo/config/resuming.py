"""What a continued run may change: the mark of each key, read off its declaration."""

from __future__ import annotations

from typing import Literal

from vlm_mhpo.config.base import Section
from vlm_mhpo.config.run import Config

OnResume = Literal["free", "by content", "allowed", "never"]


def on_resume(key: str) -> OnResume:
    """What a continued run may do with another value of a dotted key.

    Returns:
        "free": take it; "by content": take it where what it leads to is the same; "allowed": take it if
        `checkpoint.allow_change` names it, because it changes what is learnt; "never".
    """
    section: type[Section] = Config
    for name in key.split("."):
        field = section.model_fields.get(name)
        if field is None:
            break
        if isinstance(field.json_schema_extra, dict):
            return field.json_schema_extra["on_resume"]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            break
        section = field.annotation
    return "allowed"
