"""Keep passwords and tokens out of what a run writes and prints."""

import os
import re
from collections.abc import Iterable
from typing import Any

MASK = "***"
_NAME = re.compile(
    r"(?:^|_)(?:token|(?:api|access|secret|private)_?key|secret|passw(?:or)?d|passphrase|credentials?)$", re.IGNORECASE
)
# The second form is a URL that went through a path, which keeps one slash of two.
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)|(?<=:/)[^/\s@:'\"]+:[^/\s@'\"]+(?=@)")
_IN_QUERY = re.compile(
    r"(?<=[?&])([^=&\s]*(?:token|key|secret|password|signature|credential)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE
)
# Shorter values are words such as "true" that stand elsewhere by chance.
_MIN_LENGTH = 8


def without_secrets(value: Any) -> Any:
    """A nested value with secrets replaced by ***, nothing else changed.

    Secrets are: text under a key such as `api_key` or `token`, what stands before the @ of a URL or behind such a name
    in its query, and the values of environment variables with such a name wherever they stand.
    """
    if isinstance(value, dict):
        return {
            key: MASK if isinstance(inner, str) and inner and _NAME.search(str(key)) else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(inner) for inner in value)
    if not isinstance(value, str):
        return value
    for name, secret in os.environ.items():
        if len(secret) >= _MIN_LENGTH and _NAME.search(name):
            value = value.replace(secret, MASK)
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_URL.sub(MASK, value))


def overrides_without_secrets(overrides: Iterable[str]) -> str:
    """Valid overrides KEY.SUB=VALUE on one line; a value that holds a secret is shown without it."""
    return " ".join(map(_shown, overrides))


def _shown(override: str) -> str:
    from omegaconf import OmegaConf

    nested = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    safe = without_secrets(nested)
    if safe == nested:
        return override
    key = override.partition("=")[0]
    for part in key.split("."):
        safe = safe[part]
    return f"{key}={safe}"
