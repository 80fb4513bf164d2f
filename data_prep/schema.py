"""The row every reader yields, and the one place that decides whether a row is usable."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from data_prep.images.stored import ImageSource, VideoSource

IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER = "<image>", "<video>"
MAX_PRECISION = 100
KINDS = ("auto", "number", "math", "choice", "text")
ROLES = ("system", "user", "assistant")

# What a row may carry beside the columns we use: plain values, so that they can be saved and printed.
MetadataValue = str | int | float | bool | tuple[str | int | float | bool, ...]

# Splits become file names when rows are prepared, so their alphabet is narrow.
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class DataError(Exception):
    """Data that cannot be used; the text says what was looked for, where, and what to do."""


class RowError(DataError):
    """One unusable row.

    Attributes:
        message: what is wrong, without the place.
        file: where the row came from, or None.
        row: its line (JSON Lines) or row number, counted from 1, or its key in an object of rows, or None.
        field: the column at fault, or None.
    """

    def __init__(
        self, message: str, *, file: Path | str | None = None, row: int | str | None = None, field: str | None = None
    ):
        self.message, self.file, self.row, self.field = message, file, row, field
        super().__init__(message)

    def __str__(self) -> str:
        place = [] if self.file is None else [str(self.file)]
        if self.row is not None:
            name = "key" if isinstance(self.row, str) else "line" if str(self.file).endswith(".jsonl") else "row"
            place.append(f"{name} {self.row!r}")
        if self.field is not None:
            place.append(f"field {self.field!r}")
        return f"{', '.join(place)}: {self.message}" if place else self.message

    def placed(self, file: Path | str, row: int | str | None) -> "RowError":
        """This error with its file and row filled in where they were unknown."""
        return RowError(
            self.message,
            file=self.file if self.file is not None else file,
            row=self.row if self.row is not None else row,
            field=self.field,
        )


class Turn(NamedTuple):
    """One message of a chat: who speaks (of ROLES) and what, with `<image>` where a user shows an image."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One problem with its gold answer.

    Attributes:
        id: unique within one `load_rows` call; seeds are derived from it.
        images: handles, paths or encoded bytes, in the order of their placeholders; empty for a text-only row. What
            needs the bytes calls `data_prep.read_image`, what needs the image `data_prep.open_image`.
        problem: the question, with exactly one `<image>` per image and one `<video>` per video; an image may be the
            whole question. With earlier turns the last question, and the images stand in all questions.
        answer: the gold answer, never blank; of several the first.
        kind: which verifier compares answers: auto, number, math, choice or text.
        choices: the options of a multiple-choice question, in order.
        precision: decimals to which both sides are rounded, 0 to MAX_PRECISION.
        unit: unit of the gold answer; None for none.
        source, split: where the row comes from; for counts and reports.
        solution: a worked answer, the target of the cold-start stage.
        equivalent_answers: other texts that are right as well, each alone.
        earlier_turns: what the chat holds before the problem: a system message or none, questions and their answers.
        videos: in the order of their placeholders, each a file as images are, or a tuple of images, its frames; see
            `data_prep.videos.opening`. Without any, `<video>` is text.
        metadata: columns of the source that scoring or reports need by their own names; read-only, lists as tuples.
    """

    id: str
    images: tuple[ImageSource, ...]
    problem: str
    answer: str
    kind: str = "auto"
    choices: tuple[str, ...] | None = None
    precision: int | None = None
    unit: str | None = None
    source: str = ""
    split: str = ""
    solution: str | None = None
    equivalent_answers: tuple[str, ...] = ()
    earlier_turns: tuple[Turn, ...] = ()
    videos: tuple[VideoSource, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def gold(self) -> str | tuple[str, ...]:
        """What a verifier compares with: the answer, or where several are right, all of them."""
        return self.golds if self.equivalent_answers else self.answer

    @property
    def golds(self) -> tuple[str, ...]:
        """Every text that is right."""
        return (self.answer, *self.equivalent_answers)

    @property
    def conversation(self) -> str:
        """All that is asked, for people and comparisons: the problem, behind the earlier turns where there are any."""
        if not self.earlier_turns:
            return self.problem
        return "\n\n".join(f"{turn.role}: {turn.text}" for turn in (*self.earlier_turns, Turn("user", self.problem)))

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles of a row: its read-only mapping has none of its own."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return _rebuilt, (values | {"metadata": dict(self.metadata)},)


def _rebuilt(values: dict[str, object]) -> Row:
    return Row(**values | {"metadata": MappingProxyType(values["metadata"])})


def make_row(
    *,
    id: str,
    problem: str,
    answer: str,
    images: Iterable[ImageSource] = (),
    kind: str = "auto",
    choices: Iterable[str] | None = None,
    precision: int | None = None,
    unit: str | None = None,
    source: str = "",
    split: str = "",
    solution: str | None = None,
    equivalent_answers: Iterable[str] = (),
    earlier_turns: Iterable[tuple[str, str]] = (),
    videos: Iterable[VideoSource] = (),
    metadata: Mapping[str, object] = MappingProxyType({}),
) -> Row:
    """Build a `Row` that holds every promise of its docstring; puts missing placeholders before the first question.

    Raises:
        RowError: naming the field at fault (file and row are the reader's to add, with `placed`).
    """
    images, videos = tuple(images), tuple(videos)
    if not all(isinstance(image, ImageSource) for image in images):
        raise RowError("an image is neither a handle, a path nor encoded bytes", field="images")
    if not all(map(_is_video, videos)):
        raise RowError("a video is neither a handle, a path, encoded bytes nor some images", field="videos")
    if kind not in KINDS:
        raise RowError(f"{kind!r} is not a kind of answer; use one of {', '.join(KINDS)}", field="kind")
    if precision is not None and (type(precision) is not int or not 0 <= precision <= MAX_PRECISION):
        raise RowError(f"{precision!r} is not a number of decimals (0 to {MAX_PRECISION})", field="precision")
    if split and not _SPLIT_NAME.fullmatch(_text("split", split)):
        raise RowError(f"{split!r} is not a split name (letters, digits, '_', '.', '-')", field="split")
    turns = _turns(earlier_turns)
    problem = _text("problem", problem, required=not (images or videos) or bool(turns))
    if videos:
        turns, problem = _with_placeholders(turns, problem, len(videos), VIDEO_PLACEHOLDER, "video")
    turns, problem = _with_placeholders(turns, problem, len(images), IMAGE_PLACEHOLDER, "image")
    return Row(
        id=_text("id", id, required=True),
        images=images,
        problem=problem,
        answer=_text("answer", answer, required=True),
        kind=kind,
        choices=None if choices is None else _choices(choices),
        precision=precision,
        unit=None if unit is None else _text("unit", unit) or None,
        source=_text("source", source),
        split=split,
        solution=None if solution is None else _text("solution", solution, required=True),
        equivalent_answers=_others(equivalent_answers, answer),
        earlier_turns=turns,
        videos=videos,
        metadata=_metadata(metadata),
    )


def _text(field: str, value: object, required: bool = False) -> str:
    if value is None and required:
        raise RowError("is missing", field=field)
    if not isinstance(value, str):
        raise RowError(f"holds a {type(value).__name__}, not text", field=field)
    if required and not value.strip():
        raise RowError("is blank", field=field)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("holds half of a surrogate pair, which is not valid text", field=field) from error
    return value


def _others(answers: Iterable[str], answer: str) -> tuple[str, ...]:
    """Each other answer once."""
    if isinstance(answers, str):
        raise RowError("is one text, not a list of answers", field="equivalent_answers")
    texts = dict.fromkeys(_text("equivalent_answers", other, required=True) for other in answers)
    return tuple(text for text in texts if text != answer)


def _choices(choices: Iterable[str]) -> tuple[str, ...]:
    if isinstance(choices, str):
        raise RowError("is one text, not a list of options", field="choices")
    choices = tuple(_text("choices", choice, required=True) for choice in choices)
    if not choices:
        raise RowError("is an empty list; leave it out for a free-form question", field="choices")
    return choices


def _metadata(metadata: Mapping[str, object]) -> Mapping[str, MetadataValue]:
    if not isinstance(metadata, Mapping):
        raise RowError(f"holds a {type(metadata).__name__}, not named values", field="metadata")
    return MappingProxyType({_text("metadata", name): _plain(name, value) for name, value in metadata.items()})


def _plain(name: str, value: object) -> MetadataValue:
    if isinstance(value, list | tuple) and not any(isinstance(item, list | tuple) for item in value):
        return tuple(_plain(name, item) for item in value)
    if isinstance(value, str):
        return _text("metadata", value)
    if not isinstance(value, int | float):
        kind = type(value).__name__
        raise RowError(f"{name!r} holds a {kind}, not text, a number or a list of them", field="metadata")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{name!r} is {value}, not a finite number", field="metadata")
    return value


def _turns(turns: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    turns = tuple(Turn(role, _text("earlier_turns", text)) for role, text in turns)
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise RowError(
            f"has the turns {', '.join(map(str, roles))} before the last question: a system message or none, then each "
            "question with its answer",
            field="earlier_turns",
        )
    return turns


def _is_video(value: object) -> bool:
    frames = value if isinstance(value, tuple) else (value,)
    return bool(frames) and all(isinstance(frame, ImageSource) for frame in frames)


def _with_placeholders(
    turns: tuple[Turn, ...], problem: str, num_shown: int, placeholder: str, what: str
) -> tuple[tuple[Turn, ...], str]:
    """The turns and the problem with a placeholder for each that is shown; missing ones precede the first question."""
    asked = [turn.text for turn in turns if turn.role == "user"] + [problem]
    num_placeholders = sum(text.count(placeholder) for text in asked)
    if num_placeholders not in (0, num_shown):
        raise RowError(
            f"has {num_placeholders} {placeholder} placeholder(s) for {num_shown} {what}(s); "
            f"write one per {what}, or none to have them put in front",
            field="problem",
        )
    if num_placeholders == num_shown:
        return turns, problem
    marks = placeholder * num_shown
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return turns, marks + problem
    return (*turns[:first], Turn("user", marks + turns[first].text), *turns[first + 1 :]), problem
