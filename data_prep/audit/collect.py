"""One pass over a source: what the checks need of each row, and what is wrong with rows taken alone."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from data_prep.audit.types import Offence, Picture, Record
from data_prep.images.hashes import perceptual_hash, pixel_hash
from data_prep.prepare.asked import normalised, questions_of
from data_prep.prepare.checks import check_gold, is_compared_by_letters, open_pictures
from data_prep.prepare.filters import answer_form
from data_prep.schema import IMAGE_PLACEHOLDER, DataError, Row, RowError

_MAX_SHOWN = 300  # characters of a question


@dataclass(slots=True)
class Collected:
    """The rows of one set, and the offences of single rows by check.

    `records` holds every row that became one, also with a bad image or gold; `comparable` those whose images open.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    unreadable: list[Offence] = field(default_factory=list)
    placeholders: list[Offence] = field(default_factory=list)
    pictures: list[Offence] = field(default_factory=list)
    golds: list[Offence] = field(default_factory=list)
    letters: list[Offence] = field(default_factory=list)
    tokens: list[Offence] = field(default_factory=list)

    @property
    def comparable(self) -> list[Record]:
        """Rows whose content is known: without its image "Find x." would equal every other "Find x."."""
        broken = {offence.row.place for offence in self.pictures}
        return [record for record in self.records if record.place not in broken]


def collect(
    rows: Iterable[Row | RowError],
    name: str,
    number: int,
    *,
    gold_is_checked: bool,
    count_tokens: Callable[[Row], int] | None = None,
) -> Collected:
    """Read set `number` of an audit; shows a progress bar.

    Args:
        count_tokens: length of a row's prompt; may raise DataError.
    """
    from tqdm import tqdm

    found = Collected(name)
    for index, row in enumerate(tqdm(rows, desc=f"audit {name}"[:60], unit=" rows", disable=None)):
        place = (number, index)
        if isinstance(row, RowError):
            _sort_in(found, row, Record(place, id=f"{row.file}:{row.row}"))
            continue
        record, problem = _record(row, place)
        if problem:
            found.pictures.append(Offence(record, None, problem))
        elif count_tokens:
            record = _counted(found, record, row, count_tokens)
        if gold_is_checked:
            try:
                check_gold(row)
            except RowError as error:
                found.golds.append(Offence(record, None, error.message))
            else:
                if is_compared_by_letters(row):
                    found.letters.append(Offence(record, None, row.answer))
        found.records.append(record)
    return found


def _sort_in(found: Collected, error: RowError, record: Record) -> None:
    # Readers name a field as its data set does: images, image, image_path, decoded_image, ...
    if f"{IMAGE_PLACEHOLDER} placeholder" in error.message:
        place = found.placeholders
    elif error.field is not None and "image" in error.field:
        place = found.pictures
    else:
        place = found.unreadable
    place.append(Offence(record, None, error.message if error.field is None else f"{error.field}: {error.message}"))


def _record(row: Row, place: tuple[int, int]) -> tuple[Record, str | None]:
    """What to keep of the row, and what is wrong with its images."""
    pictures, problem = [], None
    try:
        pictures = [Picture(pixel_hash(image), perceptual_hash(image), image.size) for image in open_pictures(row)]
    except DataError as error:
        problem = str(error)
    return Record(
        place,
        id=row.id,
        split=row.split,
        source=row.source,
        kind=row.kind,
        problem=row.conversation[:_MAX_SHOWN],
        content=_hash(normalised(row)),
        questions={_hash(text): len(text.split()) for text in questions_of(row)},
        num_chars=len(row.conversation),
        golds=tuple(gold.strip() for gold in row.golds),
        form=answer_form(row),
        pictures=tuple(pictures),
    ), problem


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _counted(found: Collected, record: Record, row: Row, count_tokens: Callable[[Row], int]) -> Record:
    try:
        return replace(record, num_tokens=count_tokens(row))
    except DataError as error:
        found.tokens.append(Offence(record, None, str(error)))
        return record
