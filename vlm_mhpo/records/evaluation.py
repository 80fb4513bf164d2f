"""What an evaluation leaves on disk, as pydantic models that are also the schema, written and read with the same.

On benchmarks: results.json and a line of results/NAME.jsonl per row. On held-out rows: eval/NAME.json. Programs read
them strictly (`read_results`, `read_record`), pages as `reading.tolerant` allows (`evaluation_folder`, `run_folder`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlm_mhpo.errors import EvaluationError

SCHEMA = 1
RESULTS_FILE = "results.json"
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


class Record(BaseModel):
    """Base of all records: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Accuracy(Record):
    """A share of right answers, 0 to 1, with its 95 % interval."""

    accuracy: float
    low: float
    high: float


class CategoryScore(Accuracy):
    """Accuracy of the rows with one value of an axis."""

    num_rows: int


class Difference(Record):
    """A paired difference of two accuracies, -1 to 1, with its 95 % interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


class Scores(Record):
    """Accuracy under the benchmark's own rule and under our verifier."""

    official: Accuracy
    ours: Accuracy


class ProbeScore(Accuracy):
    """Greedy accuracy of the rows with images when the images are taken away; what it lost is `needs_picture`."""

    num_rows: int = Field(description="Rows with at least one image.")
    needs_picture: Difference = Field(description="Greedy accuracy on these rows minus that of the probe.")


class Overlap(Record):
    """Rows of the benchmark that the training rows hold too, each counted once, by the first of three signs."""

    train: str
    num_train_rows: int
    same_picture: int
    near_picture: int
    same_question: int
    num_clean_rows: int
    clean: Accuracy | None = Field(description="Official accuracy on the other rows; null when there is none.")
    ids: tuple[str, ...] = Field(description="Ids of the shared rows.")


class JudgeProtocol(Record):
    """Which language model judged, and how it was asked."""

    model: str = Field(description="Name that it was asked by.")
    served: str = Field(description="Name that its server gave it in its answers.")
    prompts: str = Field(description="Digest of the texts that its questions are made of.")
    max_tokens: int | None = Field(description="Token budget of an answer; null for the server's.")


class BenchmarkProtocol(Record):
    """What decides a benchmark's score beside the model; digests are the first 12 hex digits of a SHA-256."""

    split: str
    num_rows: int
    instruction: str
    prompts: str = Field(description="Digest of every question as it was asked.")
    data: str = Field(description="Digest of ids, questions, golds and image bytes.")
    judge: JudgeProtocol | None = Field(None, description="The language model that judged too; null for rules alone.")


class Protocol(Record):
    """What two reports must share to be compared."""

    prompt: str = Field(description="official: the benchmark's own; run: as in training.")
    system_prompt: str | None
    min_pixels: int | None = Field(description="Least image area in force, pixels; null for a text model.")
    max_pixels: int | None = Field(description="Largest image area in force, pixels.")
    num_samples: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int = Field(description="Token budget of a completion.")
    seed: int
    grader: str = Field(description="Version of the official rules and of our verifier.")
    benchmarks: dict[str, BenchmarkProtocol]


class JudgeScore(Accuracy):
    """Accuracy under a language model; answers of it that cannot be read count as wrong."""

    source: str = Field(description="Whose prompts it was asked with.")
    agreement: float = Field(description="Share of completions on which it and the official rule agree.")
    unreadable: int = Field(description="Completions on which it gave no answer of the form that was asked for.")
    refused: int = Field(description="Completions that its server refused to judge, such as too long ones.")


class BenchmarkResult(Record):
    """Everything measured on one benchmark."""

    name: str
    title: str
    citation: str
    split: str
    deviation: str = Field(description="What of the official protocol is replaced; empty for nothing.")
    num_problems: int
    num_rows: int
    num_samples: int = Field(description="Completions a row.")
    protocol_hash: str = Field(description="Of this benchmark alone, with the decoding.")
    scores: Scores
    unanswered: float = Field(
        0.0,
        description="Share of completions that the official rule counts as right although they are empty, cut at the "
        "budget, or without an answer that our verifier finds.",
    )
    judge: JudgeScore | None = Field(None, description="Null where no language model was asked.")
    pass_at: dict[int, float] = Field(description="Unbiased pass@j under the official rule, by j.")
    extra: dict[str, float] = Field(description="Further scores of the benchmark's authors.")
    verdicts: dict[str, float] = Field(description="Share of each verdict of our verifier; cut at the budget first.")
    by_worker: float = Field(0.0, description="Share of completions that a worker process of our verifier judged.")
    mean_tokens: float
    categories: dict[str, dict[str, CategoryScore]] = Field(description="Official accuracy by axis and value.")
    probes: dict[str, ProbeScore]
    overlap: Overlap | None
    items: str = Field(description="JSON Lines file of the rows, relative to this one.")


class BenchmarkComparison(Difference):
    """This report minus the baseline on one benchmark, under the official rule."""

    name: str
    num_rows: int
    wins: int = Field(description="Rows that this report has more often right.")
    losses: int = Field(description="Rows that the baseline has more often right.")


class Comparison(Record):
    """This report against a baseline."""

    baseline: str
    protocol_differences: tuple[str, ...] = Field(
        description="What differs, if that was allowed, and the benchmarks of each side if they are not the same."
    )
    benchmarks: tuple[BenchmarkComparison, ...]


class State(Record):
    """evaluation.json: what an interrupted evaluation must be continued with."""

    model_digest: str | None = Field(description="Digest of the weights; null for a model on the hub.")
    model: str
    protocol: Protocol


class Results(Record):
    """results.json."""

    version: Literal[1] = Field(SCHEMA, alias="schema")
    model: str
    model_digest: str | None = Field(description="Digest of the weights; null for a model on the hub.")
    created_by: str
    protocol: Protocol
    protocol_hash: str
    benchmarks: tuple[BenchmarkResult, ...]
    comparison: Comparison | None


class JudgeVerdict(Record):
    """What a language model found in one completion."""

    verdict: Literal["right", "wrong", "unreadable", "refused"]
    extracted: str | None = Field(description="Answer that it took from the completion, where it says so.")


class ItemCompletion(Record):
    """One completion with its verdicts."""

    text: str
    official: bool = Field(description="Right by the benchmark's own rule.")
    extracted: str | None = Field(description="Answer that the official rule took.")
    verdict: str = Field(description="Of our verifier.")
    correct: bool = Field(description="Right by our verifier.")
    num_tokens: int
    truncated: bool
    judge: JudgeVerdict | None = Field(None, description="Of a language model; null where none was asked.")
    by_worker: bool = Field(False, description="A worker process gave our verdict: our own grammar did not decide.")


class Golds(BaseModel):
    """What holds a reference answer (gold), and others that are right as well."""

    @property
    def shown_gold(self) -> str:
        """Every text that is right, for people."""
        return " or ".join((self.gold, *self.equivalent_answers))


class Item(Record, Golds):
    """One row with its judged completions: a line of results/NAME.jsonl."""

    id: str
    problem: str = Field(description="Shared by the variants of one problem.")
    question: str
    choices: tuple[str, ...] | None
    gold: str
    equivalent_answers: tuple[str, ...] = Field((), description="Other texts that are right as well, each alone.")
    kind: str
    images: tuple[str, ...] = Field(description="Relative to the report's folder; only the first rows have any.")
    categories: dict[str, str]
    completions: tuple[ItemCompletion, ...]

    @property
    def official(self) -> float:
        """Share of completions that are right by the official rule."""
        return sum(completion.official for completion in self.completions) / len(self.completions)

    @property
    def ours(self) -> float:
        """Share of completions that our verifier finds right."""
        return sum(completion.correct for completion in self.completions) / len(self.completions)

    @property
    def judged(self) -> float:
        """Share of completions that the language model finds right."""
        return sum(one.judge is not None and one.judge.verdict == "right" for one in self.completions) / len(
            self.completions
        )

    @property
    def right(self) -> bool:
        """True when more than half of the completions are right by the official rule."""
        return sum(completion.official for completion in self.completions) * 2 > len(self.completions)


class EvalCompletion(Record):
    """One completion of a held-out row with the verdict of our verifier."""

    text: str
    verdict: str
    correct: bool
    extracted: str | None
    num_tokens: int
    truncated: bool
    by_worker: bool = Field(False, description="A worker process gave the verdict: our own grammar did not decide.")


class EvalItem(Record, Golds):
    """One held-out row with its judged completions."""

    id: str
    problem: str
    gold: str
    equivalent_answers: tuple[str, ...] = ()
    num_images: int | None = Field(
        description="Images of the row, kept or not; a record without it does not tell a row without images from one "
        "whose images were not kept."
    )
    images: tuple[str, ...] = Field(description="Relative to the run folder; only the first rows have any.")
    source: str
    kind: str
    choices: tuple[str, ...] | None
    completions: tuple[EvalCompletion, ...]

    @property
    def share_correct(self) -> float:
        """Share of its completions that are correct, 0 to 1; 0 without completions."""
        return sum(completion.correct for completion in self.completions) / max(1, len(self.completions))

    @property
    def right(self) -> bool:
        """True when more than half of its completions are correct."""
        return self.share_correct > 0.5


class Breakdown(Record):
    """Accuracy (0 to 1) over the rows of one source or one kind."""

    num_rows: int
    accuracy: float


class Evaluation(Record):
    """One eval/NAME.json: held-out rows. Accuracy and its 95 % interval are shares 0 to 1; lengths are tokens."""

    name: str
    step: int | None = Field(description="Finished training steps of this run; null for a model that is not of it.")
    num_rows: int
    num_samples: int
    temperature: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    by_source: dict[str, Breakdown]
    by_kind: dict[str, Breakdown]
    verdicts: dict[str, int]
    by_worker: float = Field(0.0, description="Share of completions that a worker process judged.")
    mean_length: float
    clipped_ratio: float
    items: tuple[EvalItem, ...]


def published_schema() -> dict[str, Any]:
    """The JSON schemas of docs/evaluation_schema.json, by file."""
    return {RESULTS_FILE: Results.model_json_schema(), "results/NAME.jsonl, each line": Item.model_json_schema()}


def read_results(place: Path) -> Results:
    """The results of a report's folder or of a results.json; EvaluationError if there are none."""
    return read_record(results_file(place), Results)


def results_file(place: Path) -> Path:
    """The results.json of a report's folder, or the file itself."""
    return place if place.suffix == ".json" else place / RESULTS_FILE


def read_record(file: Path, kind: type[AnyRecord]) -> AnyRecord:
    """A JSON file as a record.

    Raises:
        EvaluationError: it is not there, or is no such record.
    """
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise EvaluationError(
            f"{file}: {error.strerror}; name a folder that `vlm-mhpo evaluate --out` wrote"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise EvaluationError(
            f"{file} is no {kind.__name__.lower()} file of this version: {where}: {problem['msg']}"
        ) from error
