"""The nouns of an audit: what is kept of each row, defects, histograms."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Picture:
    """Hashes (see `data_prep.images.hashes`) and size in pixels of one image."""

    pixels: str
    form: bytes
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Record:
    """What an audit keeps of a row; images themselves are read again for those that are shown.

    Attributes:
        place: (set, row): set 0 is the audited source, 1 the first benchmark; rows from 0 in order of reading.
        id, split, source, kind: the row's; for an unusable row `id` is its file and line.
        problem: the beginning of the question, to show.
        content: hash of all that the row holds before the answer, earlier turns and choices too.
        questions: {hash: number of words} of what may be asked elsewhere as well (see
            `data_prep.prepare.asked.questions_of`), all questions in one first.
        num_chars: of the whole question.
        golds: the texts that are right, each alone.
        form: what the first gold looks like (see `data_prep.prepare.filters.answer_form`).
        images: those that open.
        num_tokens: of the prompt, if they were counted.
    """

    place: tuple[int, int]
    id: str
    split: str = ""
    source: str = ""
    kind: str = ""
    problem: str = ""
    content: str = ""
    questions: Mapping[str, int] = field(default_factory=dict, hash=False)
    num_chars: int = 0
    golds: tuple[str, ...] = ()
    form: str = ""
    pictures: tuple[Picture, ...] = ()
    num_tokens: int | None = None

    @property
    def gold(self) -> str:
        """Every text that is right, for people."""
        return " or ".join(self.golds)

    def agrees(self, other: "Record") -> bool:
        """Whether some text is right for both."""
        return not {*self.golds}.isdisjoint(other.golds)


@dataclass(frozen=True, slots=True)
class Offence:
    """One case of a defect: the row at fault, the row it clashes with (or None), and what there is to say."""

    row: Record
    other: Record | None
    note: str


@dataclass(frozen=True, slots=True)
class Defect:
    """The result of one check.

    Attributes:
        check: its short name, the same in every audit.
        title: what the rows have in common.
        severity: "defect": training or measuring on these rows goes wrong; "look": it may be meant.
        num_rows: rows at fault; num_checked: rows looked at.
        offences: at least one per row at fault, except for pairs of nearly the same image, which count both rows.
    """

    check: str
    title: str
    severity: Literal["defect", "look"]
    num_rows: int
    num_checked: int
    offences: tuple[Offence, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How a number is spread: quantiles, and (lowest value, count) of each bin; the last bin is open."""

    name: str
    num_values: int
    lowest: float
    median: float
    p95: float
    highest: float
    bins: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """All that an audit found.

    Attributes:
        sources: names of the sets, the audited one first.
        num_rows: usable rows of each set.
        near_limit: bits up to which images count as nearly the same.
        defects: every check, also those that found nothing.
        tallies: {"split" | "kind" | "answer form" | "source": {value: rows}} of the audited source.
        histograms: of the audited source.
        unchecked: what could not be looked at, or is not there to be looked at, one sentence each.
    """

    sources: tuple[str, ...]
    num_rows: tuple[int, ...]
    near_limit: int
    defects: tuple[Defect, ...]
    tallies: dict[str, dict[str, int]]
    histograms: tuple[Histogram, ...]
    unchecked: tuple[str, ...]

    @property
    def num_defects(self) -> int:
        """Checks of severity "defect" that found rows."""
        return sum(defect.severity == "defect" and defect.num_rows > 0 for defect in self.defects)
