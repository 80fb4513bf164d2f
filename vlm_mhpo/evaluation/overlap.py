"""Rows of a benchmark that training rows hold too: by image, nearly the same image, or question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep import NEAR_LIMIT, Collected, Row, collect, overlap
from vlm_mhpo.config import DataConfig
from vlm_mhpo.prompts.rows import read_rows

SIGNS = ("same_picture", "near_picture", "same_question")


@dataclass(frozen=True, slots=True)
class Shared:
    """What training rows and benchmark rows share: ids of the benchmark's rows by sign, each row under its first."""

    train: str
    num_train_rows: int
    ids: Mapping[str, tuple[str, ...]]

    @property
    def all_ids(self) -> set[str]:
        """Ids under any sign."""
        return {name for names in self.ids.values() for name in names}


def read_training(source: str, data: DataConfig) -> Collected:
    """Hashes of the training rows of a source, read as `data` says; those with a broken image are left out."""
    rows = read_rows(source, data, None, None, skips_bad=data.on_bad_row == "skip")
    return collect(rows, source, 1, gold_is_checked=False)


def shared_rows(rows: Sequence[Row], training: Collected) -> Shared:
    """The rows of a benchmark that are also among the training rows."""
    mine = collect(rows, "benchmark", 0, gold_is_checked=False)
    findings = overlap(mine.comparable, training.comparable, check="", what="", near_limit=NEAR_LIMIT)
    by_sign = {
        finding.check.lstrip("_"): tuple(rows[offence.row.place[1]].id for offence in finding.offences)
        for finding in findings
    }
    return Shared(training.name, len(training.records), {sign: by_sign[sign] for sign in SIGNS})
