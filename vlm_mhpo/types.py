"""The nouns of the trainer: prompt, completion, group, scored group, sample.

Shape suffixes: S prompt tokens, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_prep import Row

if TYPE_CHECKING:
    import torch

# The tags that answers are read by, and the marks of a box. They stay in decoded completions although some tokenizers
# call them special.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
BOX = ("<|begin_of_box|>", "<|end_of_box|>")
READ = (*TAGS, *BOX)


@dataclass(frozen=True, slots=True)
class Media:
    """The images of a prompt or of a forward: pixels, or what a frozen vision tower made of them.

    Attributes:
        tensors: by names that only the model's family knows (`models.families`); others pass them on unopened.
    """

    tensors: Mapping[str, torch.Tensor]

    def to(self, device: torch.device) -> Media:
        """The same on `device`."""
        return Media({name: tensor.to(device) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row, tokenised for one model family. Tensors live on the CPU until a batch needs them.

    Attributes:
        row: the row it was made from.
        text: the rendered chat template, image placeholders not expanded.
        input_ids_S: [S] int64, image placeholders expanded; those of a video are image placeholders, too.
        token_types_S: [S] int64, 0 text, 1 image, 2 video (transformers' mm_token_type_ids).
        media: its images; None without any, until a frozen tower has seen the batch (`Policy.with_image_features`).
        opens: what the chat template has already opened of the response, such as "<think>\\n"; part of `text`.
    """

    row: Row
    text: str
    input_ids_S: torch.Tensor
    token_types_S: torch.Tensor
    media: Media | None = None
    opens: str = ""

    @property
    def id(self) -> str:
        """The row's id."""
        return self.row.id

    @property
    def num_tokens(self) -> int:
        """S, image tokens included."""
        return self.input_ids_S.shape[0]

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for images."""
        return int((self.token_types_S != 0).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled text; two are equal when all of it is, log-probs to the last bit.

    Attributes:
        token_ids: sampled ids, the end-of-turn token included when the policy produced it; length T >= 1.
        log_probs: [T] float32 on the CPU, nats, of the distribution that was sampled from before top-p and top-k
            (temperature and banned tokens included).
        text: the decoded ids without special tokens but for `READ`, and without what the template had opened.
        truncated: True when the token budget ended it.
    """

    token_ids: tuple[int, ...]
    log_probs: torch.Tensor
    text: str
    truncated: bool

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Completion):
            return NotImplemented
        mine, its = ((one.token_ids, one.text, one.truncated) for one in (self, other))
        return mine == its and self.log_probs.equal(other.log_probs)

    __hash__ = None


@dataclass(frozen=True, slots=True)
class Group:
    """The G completions of one prompt."""

    prompt: Prompt
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its rewards.

    Attributes:
        rewards: weighted sums, one per completion.
        rewards_by_name: each reward function's values; None where it does not apply.
        verdicts: the accuracy verdict of each completion, by name.
        extracted: the answer that the verifier read, or None.
        logged: numbers that users' reward functions logged for the batch of this group, by name.
        columns: what they logged for each completion, by name.
        num_by_worker: completions whose verdict a worker process gave.
    """

    group: Group
    rewards: tuple[float, ...]
    rewards_by_name: dict[str, tuple[float | None, ...]]
    verdicts: tuple[str, ...]
    extracted: tuple[str | None, ...]
    logged: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    num_by_worker: int = 0

    @property
    def is_flat(self) -> bool:
        """All completions have the same reward, so that none has an advantage."""
        return max(self.rewards) == min(self.rewards)


@dataclass(frozen=True, slots=True)
class StepUpdate:
    """What the updates of one rollout batch did, over all ranks.

    Attributes:
        metrics: the row of metrics.jsonl.
        grad_norms: L2 norm before clipping of each applied update.
        kl_to_sampler: nats per token, drift from the sampling policy seen by each applied update; 0 without a token.
        histograms: see `training.token_statistics.named_histograms`; empty when no update was applied.
    """

    metrics: dict[str, float]
    grad_norms: list[float]
    kl_to_sampler: list[float]
    histograms: dict[str, dict]


@dataclass(frozen=True, slots=True)
class Minibatch:
    """This rank's share of a minibatch, with everything that stays constant over its updates.

    Attributes:
        groups: prompts, completions and rewards.
        advantages: one per completion, flat over the groups.
        old_log_probs, reference_log_probs: [T] float of each completion, nats; reference None without a KL term.
        masked: completions whose tokens do not count in the loss (cut at the budget, if so configured).
        fresh: completions whose next forward is that of the policy that sampled them, before any update of the step.
            With recomputed old log-probs it gives them; what stands in `old_log_probs` until then is the sampler's.
        packed: `training.micro_batches.MicroBatch`es of the groups, made once for all forwards; None = not made yet.
    """

    groups: Sequence[ScoredGroup]
    advantages: tuple[float, ...]
    old_log_probs: tuple[torch.Tensor, ...]
    reference_log_probs: tuple[torch.Tensor, ...] | None = None
    masked: frozenset[int] = frozenset()
    fresh: frozenset[int] = frozenset()
    packed: Sequence[Any] | None = None

    @property
    def completion_ids(self) -> list[list[tuple[int, ...]]]:
        """Token ids, by group and completion."""
        return [[c.token_ids for c in scored.group.completions] for scored in self.groups]
