"""Answers of the judge on disk: one file each, named by the digest of the question, whoever answered it where."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_mhpo.errors import JudgeError


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question brought.

    Attributes:
        text: of the answer; None where the server refused this question, for example as too long.
        served: name that the server gives its model.
        refusal: what it said in place of a text.
    """

    text: str | None
    served: str = ""
    refusal: str = ""


def find_answer(folder: Path, body: dict[str, Any]) -> Answer | None:
    """The kept answer to a request; None when there is none, or a damaged one."""
    try:
        kept = json.loads(_file_of(folder, body).read_bytes())
        text, served = kept["text"], kept["served"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Answer(text, served) if isinstance(text, str) and isinstance(served, str) else None


def keep_answer(folder: Path, body: dict[str, Any], answer: Answer) -> None:
    """Keep an answer, whole or not at all.

    Raises:
        JudgeError: the disk refuses it.
    """
    file, replacement = _file_of(folder, body), None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", encoding="utf-8", delete=False) as stream:
            replacement = Path(stream.name)
            json.dump({"text": answer.text, "served": answer.served}, stream)
        replacement.replace(file)
    except OSError as error:
        raise JudgeError(f"eval.judge.cache_dir={folder}: an answer cannot be kept: {error.strerror}") from error
    finally:
        if replacement is not None:
            replacement.unlink(missing_ok=True)


def _file_of(folder: Path, body: dict[str, Any]) -> Path:
    """Where the answer to a request lies: what is asked decides, and of which model, not at which address."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return folder / digest[:2] / f"{digest}.json"
