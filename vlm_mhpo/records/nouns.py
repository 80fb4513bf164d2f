"""The nouns of a report: what a run folder says, checked and typed.

Strings of these records come from models and data sets and are untrusted: they are cleaned of what
UTF-8 cannot hold here, and escaped where they are shown. Fields that are missing in a file take the
defaults below; fields that are not named here are ignored, so newer writers stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from vlm_mhpo.records.evaluation import Evaluation, Golds
from vlm_mhpo.records.histograms import NUM_BINS
from vlm_mhpo.records.metric_table import Metric
from vlm_mhpo.records.reading import MaybeNumber, MaybeText, Text, clean_text


class Record(BaseModel):
    """Base of the records below: frozen, tolerant of unknown fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelFacts(Record):
    """The trained model: its family name and its numbers of parameters."""

    num_parameters: int | None = None
    trainable: int | None = None
    family: Text = ""


class Change(Record):
    """A key that changes what is learnt, and that a continuation of the run changed after `step` steps."""

    step: int
    key: Text
    before: Any = Field(None, alias="from")
    after: Any = Field(None, alias="to")


class RunFacts(Record):
    """run.json: resolved config, versions, commit, seed, start, model, changes, and seconds of each stage."""

    config: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    git_commit: MaybeText = None
    seed: int | None = None
    started: Text = ""
    model: ModelFacts = ModelFacts()
    changes: tuple[Change, ...] = ()
    stages: dict[str, float] = {}


class BestCheckpoint(Record):
    """checkpoints/best.json: the kept checkpoint with the best value of a metric."""

    step: int
    metric: Text
    value: MaybeNumber
    folder: Text

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value:.4g}"
        return f"step {self.step}, {self.metric}{value} (checkpoints/{self.folder})"


class TokenCounts(Record):
    """The counts of one quantity and sign: consecutive bins from number `first` on."""

    first: int = Field(ge=0, le=NUM_BINS)
    counts: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def fits(self) -> TokenCounts:
        """More counts than bins are another version's, or damage."""
        if self.first + len(self.counts) > NUM_BINS:
            raise ValueError(f"counts beyond the last of {NUM_BINS} bins")
        return self


class UpdateRow(Record):
    """One line of updates.jsonl, as far as the report shows it."""

    step: int
    histograms: dict[str, dict[str, TokenCounts]] = {}


class Sample(Record, Golds):
    """One completion sampled during training; `rewards` holds each reward function's value."""

    step: int = 0
    prompt_id: Text = ""
    problem: Text = ""
    gold: Text = ""
    equivalent_answers: tuple[Text, ...] = ()
    images: tuple[str, ...] = ()
    completion: Text = ""
    reward: MaybeNumber = None
    rewards: dict[str, MaybeNumber] = {}
    verdict: Text = ""
    extracted: MaybeText = None
    num_tokens: int | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """One metric: values[i] was recorded at steps[i]; steps rise, values are finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that a report shows of one run folder.

    Attributes:
        folder: the run folder.
        facts: run.json; all defaults when the file is missing.
        metrics: metrics.jsonl by metric name; empty when the file is missing.
        evaluations: eval/*.json by step, then name.
        samples: the rows of the newest file in samples/.
        histograms: token counts of the last tenth of the steps by quantity and sign of the advantage, in the bins of
            `vlm_mhpo.records.histograms`; empty when updates.jsonl is missing.
        notes: sentences on what is missing or disagrees, shown on the page.
        best: the best checkpoint, of a run that keeps one.
    """

    folder: Path
    facts: RunFacts
    metrics: Mapping[str, Series]
    evaluations: tuple[Evaluation, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    histograms: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    best: BestCheckpoint | None = None

    @property
    def name(self) -> str:
        """The run folder's own name, without the folders above it."""
        return clean_text(self.folder.name)

    def series(self, metric: Metric, **words: str) -> Series | None:
        """A metric, of a family the member with these words; None when no row has it."""
        return self.metrics.get(metric.of(**words))

    def family(self, metric: Metric, **words: str) -> dict[str, Series]:
        """The members of a family whose other words are these, by the word that varies, in name order."""
        members = {}
        for name in sorted(self.metrics):
            found = metric.words(name)
            if found is not None and found.items() >= words.items():
                (varying,) = found.keys() - words.keys()
                members[found[varying]] = self.metrics[name]
        return members
