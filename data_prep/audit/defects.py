"""The checks that compare rows: copies and shared images inside a split, overlap between splits and benchmarks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from data_prep.audit.types import Defect, Offence, Record
from data_prep.images.hashes import NUM_BITS, nearest

# "Find x." is the question of hundreds of images; a text this long with the same gold is hardly a coincidence.
_MIN_TELLING_WORDS = 12


def by_split(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each split, the largest split first."""
    groups = defaultdict(list)
    for record in records:
        groups[record.split].append(record)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def inside(splits: Iterable[Sequence[Record]], near_limit: int) -> Iterator[Defect]:
    """Copies, contradictions and common images among the rows of the same split."""
    splits = list(splits)
    num_rows = sum(map(len, splits))
    copies, conflicts, shared, near = [], [], [], []
    near_rows = 0
    for records in splits:
        found_copies, found_conflicts = _copies(records)
        copies += found_copies
        conflicts += found_conflicts
        shared += _shared_pictures(records)
        found_near, num_near = _near_pictures(records, near_limit)
        near += found_near
        near_rows += num_near
    for check, title, severity, offences in (
        ("contradictions", "same question and images as another row, other gold", "defect", conflicts),
        ("duplicates", "same question, images and gold as an earlier row", "defect", copies),
        ("shared_pictures", "other question on the image of an earlier row", "look", shared),
    ):
        yield Defect(check, title, severity, len(offences), num_rows, tuple(offences))
    yield Defect("near_pictures", "nearly the same image as another row", "look", near_rows, num_rows, tuple(near))


def overlap(
    records: Sequence[Record], others: Sequence[Record], *, check: str, what: str, near_limit: int
) -> Iterator[Defect]:
    """Rows of `records` that are also in `others`: by exact image, else by near image, else by question.

    Args:
        check: start of the names of the checks.
        what: start of the titles; names both sides, as in "test also in train".
    """
    same = list(_same_picture(records, others))
    hit = {offence.row.place for offence in same}
    near = list(_near_picture([r for r in records if r.place not in hit], others, near_limit))
    hit |= {offence.row.place for offence in near}
    text = list(_same_question([r for r in records if r.place not in hit], others))
    # With an image of its own, a row with a known question may be another problem of the same pattern.
    text_severity = "look" if all(offence.row.pictures for offence in text) else "defect"
    for name, title, severity, offences in (
        ("same_picture", f"{what}: the same image", "defect", same),
        ("near_picture", f"{what}: nearly the same image", "defect", near),
        ("same_question", f"{what}: the same question", text_severity, text),
    ):
        yield Defect(f"{check}_{name}", title, severity, len(offences), len(records), tuple(offences))


def _copies(records: Sequence[Record]) -> tuple[list[Offence], list[Offence]]:
    """(later copies of a row, rows that ask the same and have another gold)."""
    first: dict[tuple, Record] = {}
    copies, conflicts = [], []
    for record in records:
        earlier = first.setdefault(_content(record), record)
        if earlier is record:
            continue
        if record.agrees(earlier):
            copies.append(Offence(record, earlier, f"gold {record.gold}"))
        else:
            conflicts.append(Offence(record, earlier, f"gold {record.gold} here, {earlier.gold} there"))
    return copies, conflicts


def _content(record: Record) -> tuple:
    return (record.content, *sorted(picture.pixels for picture in record.pictures))


def _shared_pictures(records: Sequence[Record]) -> Iterator[Offence]:
    users: dict[str, Record] = {}
    for record in records:
        earlier = [users.setdefault(picture.pixels, record) for picture in record.pictures]
        other = next((user for user in earlier if _content(user) != _content(record)), None)
        if other:
            yield Offence(record, other, "")


def _near_pictures(records: Sequence[Record], limit: int) -> tuple[list[Offence], int]:
    """(pairs of nearest different images, rows that have an image of such a pair)."""
    users = _users(records)
    if len(users) < 2:
        return [], 0
    names, forms = list(users), [form for form, _ in users.values()]
    places, distances = nearest(forms, forms, same=True)
    close = {name for name, distance in zip(names, distances, strict=True) if distance <= limit}
    pairs = {
        (min(index, place), max(index, place)): distance
        for index, (place, distance) in enumerate(zip(places.tolist(), distances.tolist(), strict=True))
        if distance <= limit
    }
    offences = [
        Offence(users[names[b]][1], users[names[a]][1], _apart(distance))
        for (a, b), distance in sorted(pairs.items(), key=lambda item: item[1])
    ]
    return offences, sum(any(picture.pixels in close for picture in record.pictures) for record in records)


def _users(records: Iterable[Record]) -> dict[str, tuple[bytes, Record]]:
    """Each different image with its perceptual hash and the first row that has it."""
    users: dict[str, tuple[bytes, Record]] = {}
    for record in records:
        for picture in record.pictures:
            users.setdefault(picture.pixels, (picture.form, record))
    return users


def _same_picture(records: Iterable[Record], others: Iterable[Record]) -> Iterator[Offence]:
    users = _users(others)
    for record in records:
        other = next((users[picture.pixels][1] for picture in record.pictures if picture.pixels in users), None)
        if other:
            yield Offence(record, other, "same question" if record.questions.keys() & other.questions else "")


def _near_picture(records: Sequence[Record], others: Iterable[Record], limit: int) -> Iterator[Offence]:
    users = _users(others)
    mine = [(record, picture.form) for record in records for picture in record.pictures]
    if not users or not mine:
        return
    forms, owners = zip(*users.values(), strict=True)
    places, distances = nearest([form for _, form in mine], list(forms))
    best: dict[tuple[int, int], Offence] = {}
    for (record, _), place, distance in zip(mine, places, distances, strict=True):
        if distance <= limit:
            best.setdefault(record.place, Offence(record, owners[place], _apart(distance)))
    yield from best.values()


def _same_question(records: Iterable[Record], others: Iterable[Record]) -> Iterator[Offence]:
    askers = defaultdict(list)
    for other in others:
        for question in other.questions:
            askers[question].append(other)
    for record in records:
        same = ((asker, question) for question in record.questions for asker in askers.get(question, ()))
        other = next((asker for asker, question in same if _is_telling(record, asker, question)), None)
        if other:
            yield Offence(record, other, "" if record.agrees(other) else f"gold {record.gold}, there {other.gold}")


def _is_telling(record: Record, other: Record, question: str) -> bool:
    """Whether the same words mean the same problem: a part of two longer chats may be about what came before it."""
    wholes = [next(iter(each.questions), None) for each in (record, other)]
    if question in wholes and not record.pictures and not other.pictures:
        return True
    return record.questions[question] >= _MIN_TELLING_WORDS and record.agrees(other)


def _apart(distance: int) -> str:
    return f"{distance} of {NUM_BITS} bits apart"
