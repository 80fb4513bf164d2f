"""From rows of any layout to our parquet with a manifest, written aside and renamed, so it is whole or not there."""

import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.formats.parquet import SCHEMA_VERSION
from data_prep.prepare.asked import questions_of
from data_prep.prepare.checks import check_gold as raise_unless_gold_verifies
from data_prep.prepare.checks import is_compared_by_letters, open_pictures, with_bytes
from data_prep.prepare.filters import Filter
from data_prep.prepare.heldout import HELDOUT, TRAIN, sides
from data_prep.prepare.parts import (
    ROWS_A_PART,
    Part,
    Refusal,
    RowWriter,
    digest,
    load_part,
    records_of,
    save_part,
    sha256_of,
    sync,
    write_text,
)
from data_prep.schema import DataError, Row, RowError

LETTERS_FILE = "letter_by_letter.jsonl"
_NUM_EXAMPLES = 5
_VIDEO_BYTES_A_PART = 2**28
_COUNTED = ("split", "kind", "source")


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What `prepare` wrote.

    Attributes:
        out_dir: the folder, ready for `load_rows`.
        num_rows: rows written.
        num_with_images: those of them that have an image.
        num_resumed: rows of the source that an interrupted run had checked already.
        refused: unusable rows, in order of reading.
        dropped: rows that a filter did not want, in order of reading.
        num_dropped: {filter: rows}.
        letters: (id, gold) of each row that was written and whose gold is compared letter by letter (see
            `rewards.how_compared`), in order of reading.
        counts: {"split" | "kind" | "source": {value: rows}}.
        files: {file name: {"sha256", "bytes", "rows"}}, as in manifest.json.
    """

    out_dir: Path
    num_rows: int
    num_with_images: int
    num_resumed: int
    refused: tuple[Refusal, ...]
    dropped: tuple[Refusal, ...]
    num_dropped: dict[str, int]
    letters: tuple[tuple[str, str], ...]
    counts: dict[str, dict[str, int]]
    files: dict[str, dict[str, Any]]


def prepare(
    rows: Iterable[Row | RowError],
    out_dir: Path,
    *,
    check_gold: bool = True,
    max_bad_share: float = 0.01,
    filters: Sequence[Filter] = (),
    heldout: float | None = None,
) -> PrepareReport:
    """Check every row and write `out_dir`: <split>.parquet with the images inside, manifest.json, refused.jsonl, and
    letter_by_letter.jsonl where golds are compared so.

    Rows that were checked are kept in <parent>/.<name>.parts until the output is there: after an interruption the
    same call takes them from there.

    Args:
        rows: as `load_rows` gives them; from `scan_rows`, unusable rows are listed as refused instead of raised.
        out_dir: must not exist yet.
        check_gold: refuse a row whose gold answer our verifier does not accept as its own answer.
        max_bad_share: largest share of refused rows, 0 to 1.
        filters: leave out rows without calling them bad; each row goes to the first that gives a reason. They see
            rows whose images open, before the gold is checked.
        heldout: replace the rows' splits by "train" and "heldout", with about this share of the images held out
            and no image on both sides (see `data_prep.prepare.heldout`).
    Raises:
        DataError: `out_dir` exists, no row is left, or too many are refused (then <out_dir>.refused.jsonl lists
            them). Nothing is left at `out_dir` in any of these cases, nor after a kill.
    """
    out_dir = Path(out_dir)
    if out_dir.exists():
        raise DataError(f"{out_dir} exists already; choose another folder or remove it")
    if heldout is not None and not 0 < heldout < 1:
        raise DataError(f"a held-out share of {heldout} leaves one side empty; give a number between 0 and 1")
    parts_dir = out_dir.with_name(f".{out_dir.name}.parts")
    parts, num_resumed = _check_rows(rows, parts_dir, filters, check_gold, out_dir.name)
    staging = out_dir.with_name(f".{out_dir.name}.staging")
    # Left by a run that was killed; the name is ours.
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        report = _assemble(parts, num_resumed, filters, heldout, staging, out_dir)
        _check_left(report, max_bad_share)
        _check_sides(report, heldout)
        write_text(staging / "refused.jsonl", _as_json_lines(report.refused))
        if filters:
            write_text(staging / "dropped.jsonl", _as_json_lines(report.dropped))
        if report.letters:
            write_text(staging / LETTERS_FILE, "".join(_as_json_line(row_id, gold) for row_id, gold in report.letters))
        write_text(staging / "manifest.json", _manifest(report, filters, heldout))
        sync(staging)
        os.rename(staging, out_dir)
        sync(out_dir.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(parts_dir, ignore_errors=True)
    return report


def _check_rows(
    rows: Iterable[Row | RowError], parts_dir: Path, filters: Sequence[Filter], check_gold: bool, name: str
) -> tuple[list[Part], int]:
    """All parts of the source, and how many of its rows were there already."""
    from tqdm import tqdm

    import rewards

    named = [(filter.name, filter.setting) for filter in filters]
    settings = json.dumps([SCHEMA_VERSION, rewards.grader_version(), check_gold, named])
    parts: list[Part] = []
    num_resumed = 0
    with tqdm(desc=f"prepare {name}", unit=" rows", disable=None) as bar:
        for batch in _batches(rows):
            path = parts_dir / f"{len(parts):06d}.parquet"
            read = [_read(row) for row in batch]
            identity = digest(read, settings)
            part = load_part(path, identity)
            num_resumed += len(batch) if part else 0
            parts.append(part or _make_part(read, path, identity, filters, check_gold))
            bar.update(len(batch))
    return parts, num_resumed


def _batches(rows: Iterable[Row | RowError]) -> Iterator[list[Row | RowError]]:
    """Rows that become a part together: as many as fit, since their videos are held in memory."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += _video_bytes(row) if isinstance(row, Row) else 0
        if len(batch) == ROWS_A_PART or size >= _VIDEO_BYTES_A_PART:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _video_bytes(row: Row) -> int:
    """Bytes of the row's video files, as far as that is known without reading them."""
    return sum(video.stat().st_size for video in row.videos if isinstance(video, Path) and video.exists())


def _read(row: Row | RowError) -> Row | Refusal:
    if isinstance(row, RowError):
        return Refusal(f"{row.file}:{row.row}", str(row))
    try:
        return with_bytes(row)
    except DataError as error:
        return Refusal(row.id, str(error))


def _make_part(
    read: Sequence[Row | Refusal], path: Path, identity: str, filters: Sequence[Filter], check_gold: bool
) -> Part:
    checked = [row if isinstance(row, Refusal) else _checked(row, filters, check_gold) for row in read]
    refusals = [row for row in checked if isinstance(row, Refusal)]
    kept = [row for row in checked if not isinstance(row, Refusal)]
    part = Part(
        path,
        len(kept),
        refused=tuple(refusal for refusal in refusals if refusal.filter is None),
        dropped=tuple(refusal for refusal in refusals if refusal.filter is not None),
        pictures=tuple(names for _, names in kept),
        letters=tuple((row.id, row.answer) for row, _ in kept if is_compared_by_letters(row)),
    )
    save_part(part, [row for row, _ in kept], identity)
    return part


def _checked(row: Row, filters: Sequence[Filter], check_gold: bool) -> tuple[Row, tuple[str, ...]] | Refusal:
    """The row with the hashes of its images, or why it is left out."""
    from data_prep.images.hashes import pixel_hash

    try:
        names = tuple(pixel_hash(picture) for picture in open_pictures(row))
        for filter in filters:
            if reason := filter.reason(row):
                return Refusal(row.id, reason, filter.name)
        if check_gold:
            raise_unless_gold_verifies(row)
    except DataError as error:
        return Refusal(row.id, str(error))
    return row, names or tuple(hashlib.sha256(text.encode()).hexdigest() for text in questions_of(row))


def _assemble(
    parts: Sequence[Part],
    num_resumed: int,
    filters: Sequence[Filter],
    heldout: float | None,
    staging: Path,
    out_dir: Path,
) -> PrepareReport:
    """Write the files of each split; what they hold is reported as if it were in `out_dir` already."""
    pictures = [names for part in parts for names in part.pictures]
    side = iter([] if heldout is None else sides(pictures, heldout))
    counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
    writers: dict[str, RowWriter] = {}
    num_with_images = 0
    with ExitStack() as stack:
        for part in parts:
            groups = defaultdict(list)
            for record in records_of(part):
                record["split"] = next(side) if heldout is not None else record["split"]
                groups[record["split"]].append(record)
                num_with_images += bool(record["images"] or record["videos"])
                for name in _COUNTED:
                    counts[name][record[name]] += 1
            for split, records in groups.items():
                if split not in writers:
                    writers[split] = stack.enter_context(RowWriter(staging / f"{split or 'all'}.parquet"))
                writers[split].write(records)
    dropped = tuple(refusal for part in parts for refusal in part.dropped)
    num_dropped = Counter(refusal.filter for refusal in dropped)
    return PrepareReport(
        out_dir,
        num_rows=len(pictures),
        num_with_images=num_with_images,
        num_resumed=num_resumed,
        refused=tuple(refusal for part in parts for refusal in part.refused),
        dropped=dropped,
        num_dropped={filter.name: num_dropped[filter.name] for filter in filters},
        letters=tuple(pair for part in parts for pair in part.letters),
        counts={name: dict(sorted(counter.items())) for name, counter in counts.items()},
        files={writer.path.name: _file_entry(writer) for writer in writers.values()},
    )


def _check_left(report: PrepareReport, max_bad_share: float) -> None:
    num_refused, num_dropped = len(report.refused), len(report.dropped)
    num_seen = report.num_rows + num_refused + num_dropped
    if num_seen == 0:
        raise DataError("there are no rows to prepare; check the source and its split")
    if report.num_rows and num_refused <= max_bad_share * num_seen:
        return
    if num_refused <= max_bad_share * num_seen and num_dropped:
        counts = ", ".join(f"{name} {number}" for name, number in report.num_dropped.items() if number)
        raise DataError(f"the filters leave none of {num_seen} rows (dropped: {counts}); loosen them")
    listing = report.out_dir.with_name(f"{report.out_dir.name}.refused.jsonl")
    write_text(listing, _as_json_lines(report.refused))
    raise DataError(
        f"{num_refused} of {num_seen} rows are refused, over the limit of {max_bad_share:.1%}; the first, "
        f"{report.refused[0].id}: {report.refused[0].reason}; all are listed in {listing}"
    )


def _check_sides(report: PrepareReport, heldout: float | None) -> None:
    missing = [side for side in (TRAIN, HELDOUT) if side not in report.counts["split"]]
    if heldout is not None and missing:
        raise DataError(
            f"a held-out share of {heldout} leaves no row for {missing[0]}: {report.num_rows} rows have too few "
            "different images; give another share or more rows"
        )


def _file_entry(writer: RowWriter) -> dict[str, Any]:
    return {"sha256": sha256_of(writer.path), "bytes": writer.path.stat().st_size, "rows": writer.num_rows}


def _manifest(report: PrepareReport, filters: Sequence[Filter], heldout: float | None) -> str:
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "num_rows": report.num_rows,
        "num_refused": len(report.refused),
        "num_dropped": report.num_dropped,
        "letter_by_letter": {"num_rows": len(report.letters), "examples": dict(report.letters[:_NUM_EXAMPLES])},
        "filters": {filter.name: filter.setting for filter in filters},
        "heldout": heldout,
        "counts": report.counts,
        "files": report.files,
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _as_json_line(row_id: str, gold: str) -> str:
    return json.dumps({"id": row_id, "gold": gold}, ensure_ascii=False) + "\n"


def _as_json_lines(refused: Iterable[Refusal]) -> str:
    records = ({name: value for name, value in asdict(refusal).items() if value is not None} for refusal in refused)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
