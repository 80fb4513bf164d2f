"""`audit`: read a source and the benchmarks it must not hold, run every check, count and measure."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from data_prep.audit.collect import Collected, collect
from data_prep.audit.defects import by_split, inside, overlap
from data_prep.audit.types import Audit, Defect, Histogram, Record
from data_prep.images.hashes import NEAR_LIMIT
from data_prep.loading import none_has_an_image, scan_rows
from data_prep.schema import DataError, Row, RowError

_NUM_BINS = 12
_TALLIES = {"split": "split", "kind": "kind", "answer form": "form", "source": "source"}


def audit(
    source: str | Path,
    *,
    against: Sequence[str | Path] = (),
    open_benchmark: Callable[[str], Iterable[Row | RowError]] = scan_rows,
    format: str = "auto",
    split: str | None = None,
    image_root: Path | None = None,
    answer_lists: str | None = None,
    columns: Mapping[str, str] | None = None,
    ignore_columns: Collection[str] = (),
    count_tokens: Callable[[Row], int] | None = None,
    near_limit: int = NEAR_LIMIT,
) -> Audit:
    """Every check of `data_prep.audit` on one source.

    Args:
        source: as for `load_rows`; several splits of it are compared with each other.
        against: benchmarks whose images and questions must not be in the source.
        open_benchmark: rows of one of those; the layout of a place is recognised.
        format, split, image_root, answer_lists, columns, ignore_columns: of the source, as for `load_rows`.
        count_tokens: length of a row's prompt under some processor; may raise DataError.
        near_limit: bits of the perceptual hash, of 256, up to which images count as nearly the same.
    Raises:
        DataError: a source does not exist or has no rows at all.
    """
    seen: set[str] = set()
    names = {"columns": columns, "ignore_columns": ignore_columns, "answer_lists": answer_lists, "seen": seen}
    rows = scan_rows(source, format=format, split=split, image_root=image_root, **names)
    # All sources are looked for before the first is read.
    benchmarks = [(str(name), open_benchmark(str(name))) for name in against]
    mine = collect(rows, str(source), 0, gold_is_checked=True, count_tokens=count_tokens)
    if not mine.records and not any((mine.unreadable, mine.placeholders, mine.pictures)):
        raise DataError(f"{source} has no rows to audit; check its split")
    theirs = [
        collect(rows, name, number, gold_is_checked=False) for number, (name, rows) in enumerate(benchmarks, start=1)
    ]
    defects = [*_alone(mine, count_tokens is not None)]
    splits = by_split(mine.comparable)
    defects += inside(splits.values(), near_limit)
    defects += _between_splits(splits, near_limit)
    for benchmark in theirs:
        what = f"also in {benchmark.name}"
        defects += overlap(mine.comparable, benchmark.comparable, check="benchmark", what=what, near_limit=near_limit)
    return Audit(
        sources=(mine.name, *(benchmark.name for benchmark in theirs)),
        num_rows=tuple(len(found.records) for found in (mine, *theirs)),
        near_limit=near_limit,
        defects=tuple(defects),
        tallies={name: _tally(mine.records, attribute) for name, attribute in _TALLIES.items()},
        histograms=tuple(_histograms(mine.records)),
        unchecked=(*_without_images(mine, seen), *_unchecked(theirs)),
    )


def _alone(found: Collected, tokens_counted: bool) -> Iterator[Defect]:
    """The defects about single rows."""
    rejected = found.unreadable, found.placeholders, found.pictures
    num_seen = len({record.place for record in found.records} | {o.row.place for part in rejected for o in part})
    for check, title, offences in (
        ("unreadable", "a field is missing or not usable", found.unreadable),
        ("placeholders", "<image> placeholders and images differ in number", found.placeholders),
        ("pictures", "an image is missing or does not open", found.pictures),
        ("golds", "the gold does not verify against itself", found.golds),
        ("letters", "no reader reads the gold: it is compared letter by letter", found.letters),
        *([("prompts", "no prompt can be made for the model", found.tokens)] if tokens_counted else []),
    ):
        severity = "look" if check == "letters" else "defect"
        yield Defect(check, title, severity, len(offences), num_seen, tuple(offences))


def _between_splits(splits: dict[str, list[Record]], near_limit: int) -> Iterator[Defect]:
    """Overlap of each pair, as rows of the smaller split; one line if no pair overlaps."""
    if len(splits) < 2:
        return
    found: list[Defect] = []
    for (large, theirs), (small, mine) in combinations(splits.items(), 2):
        what = f"{small or 'no split'} also in {large or 'no split'}"
        found += overlap(mine, theirs, check="splits", what=what, near_limit=near_limit)
    num_rows = sum(map(len, splits.values()))
    none = Defect("splits", "shared by two splits: image, near image or question", "defect", 0, num_rows, ())
    yield from [defect for defect in found if defect.num_rows] or [none]


def _without_images(found: Collected, seen: Collection[str]) -> Iterator[str]:
    if found.records and not found.pictures and not any(record.pictures for record in found.records):
        yield none_has_an_image(len(found.records), seen)


def _unchecked(benchmarks: Sequence[Collected]) -> Iterator[str]:
    for found in benchmarks:
        if num_bad := len(found.unreadable) + len(found.placeholders) + len(found.pictures):
            yield f"{num_bad} rows of {found.name} cannot be read and were not compared"


def _tally(records: Sequence[Record], attribute: str) -> dict[str, int]:
    return dict(Counter(getattr(record, attribute) for record in records).most_common())


def _histograms(records: Sequence[Record]) -> Iterator[Histogram]:
    sizes = [picture.size for record in records for picture in record.pictures]
    for name, values in (
        ("characters of a question", [record.num_chars for record in records]),
        ("characters of a gold", [len(gold) for record in records for gold in record.golds]),
        ("tokens of a prompt", [record.num_tokens for record in records if record.num_tokens is not None]),
        ("pictures of a row", [len(record.pictures) for record in records]),
        ("longer side of an image, pixels", [max(size) for size in sizes]),
        ("shorter side of an image, pixels", [min(size) for size in sizes]),
        ("pixels of an image", [width * height for width, height in sizes]),
    ):
        if values:
            yield histogram(name, values)


def histogram(name: str, values: Sequence[int]) -> Histogram:
    """Bins of 1, 2 or 5 times a power of ten that reach the 99th percentile; what lies above is in the last."""
    numbers = np.sort(np.asarray(values))
    lowest, median, p95, p99, highest = np.quantile(numbers, [0, 0.5, 0.95, 0.99, 1]).tolist()
    width = _round_up((p99 - lowest) / (_NUM_BINS - 2))
    start = int(lowest // width) * width
    edges = [start]
    while edges[-1] + width <= p99:
        edges.append(edges[-1] + width)
    places = np.minimum((numbers - start) // width, len(edges) - 1).astype(int)
    counts = np.bincount(places, minlength=len(edges)).tolist()
    return Histogram(name, len(numbers), lowest, median, p95, highest, tuple(zip(edges, counts, strict=True)))


def _round_up(width: float) -> int:
    """The least of 1, 2, 5, 10, 20, ... that is not below `width`."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= width:
                return digit * power
        power *= 10
