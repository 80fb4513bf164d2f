"""Images that stand in a text, as base64."""

import base64
import re

from data_prep.schema import RowError

# A path is shorter, or has a dot or another character that base64 lacks.
_LEAST_BASE64, _NOT_BASE64 = 100, re.compile(r"[^A-Za-z0-9+/=\s]")


def from_base64(text: str) -> bytes | None:
    """The bytes of a `data:image/...;base64,` URL or of a bare base64 text of an image; None for any other text.

    Raises:
        RowError: a data URL that is no base64 of an image.
    """
    header, comma, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    if not header and (len(text) < _LEAST_BASE64 or _NOT_BASE64.search(text[:_LEAST_BASE64])):
        return None
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        if header:
            raise RowError(f"is a data URL whose base64 is broken: {error}", field="images") from error
        return None
    if header and not (header.startswith("data:image/") and header.endswith(";base64") and comma):
        raise RowError(f"is a data URL of {header[5:60]!r}, not of an image as base64", field="images")
    return data
