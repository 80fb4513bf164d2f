"""What the trainer asks of any sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlm_mhpo.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn.

    Attributes:
        num_samples: completions a prompt.
        max_tokens: budget of a completion, its end token included.
        temperature: softmax temperature; 0 = greedy.
        top_p: nucleus mass in (0, 1].
        top_k: sample among the k most likely; 0 = all.
    """

    num_samples: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Sampler(Protocol):
    """Draws completions from the current policy."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_groups: Callable[[Sequence[Group]], None] | None = None,
    ) -> list[Group]:
        """One group a prompt, in order; the groups' prompts may carry features of a frozen vision tower for pixels.

        Completion j of a prompt depends on `derive_seed(*seed_parts, prompt.id, j)` and the policy, on nothing else.
        `on_groups` gets groups as soon as all their completions are there, each once, in any order.
        """
        ...
