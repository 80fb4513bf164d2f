"""What every section of the configuration is, and what a continued run may change of a key."""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict

# Marks of a key, for a run that goes on with another value than the one it began with; a section's mark is that of all
# keys in it. A key without a mark changes what is learnt: its change is refused unless `checkpoint.allow_change` names
# it. It costs time, memory or disk, or only looks on:
FREE: dict[str, Any] = {"on_resume": "free"}
# It says where something is found, or which part of it is used; what comes of it counts, by its digest:
PLACE: dict[str, Any] = {"on_resume": "by content"}
# Which tensors a checkpoint has, and of what type, follows from it, so that no run can go on with another value:
FIXED: dict[str, Any] = {"on_resume": "never"}


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def check_address(url: str, key: str, token_key: str, example: str) -> SplitResult:
    """The parts of a plain http(s) address; what is refused may hold a password, so that it is not shown.

    Args:
        url: the value of `key`.
        token_key: where an access token belongs.
        example: a valid value.

    Raises:
        ValueError: names the key.
    """
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or not url.isascii() or any(sign <= " " or sign == "\x7f" for sign in url):
        raise ValueError(f"{key} is no http:// or https:// address, such as {example}")
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise ValueError(f"{key} is an address without a user, ? or #: put an access token into {token_key}")
    return parts
