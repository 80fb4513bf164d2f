"""What the trainer asks of any sampler, and the rollout of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from vlm_mhpo.rollout.finite import all_finite
from vlm_mhpo.types import Group, Prompt

OnGroups = Callable[[Sequence[Group]], None]


def nothing() -> None:
    """For callers that need not know how far the sampling is."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn.

    Attributes:
        num_samples: completions per prompt.
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
    """Draws completions from the policy.

    Attributes:
        version: number of training steps behind the weights that it samples from.
    """

    version: int

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_groups: OnGroups | None = None,
        on_token: Callable[[], None] = nothing,
    ) -> list[Group]:
        """One group per prompt, in order; the groups' prompts may carry features of a frozen vision tower for pixels.

        Completion j of a prompt depends on `seed_parts`, the prompt's id, j and the policy, and on nothing else but
        rounding. That this changes no token is tested on the CPU; for GPU kernels nothing is proved.

        Args:
            prompts: this rank's.
            params: how completions are drawn.
            seed_parts: see above.
            on_groups: gets groups as soon as all their completions are there, each once, in any order.
            on_token: called before each token is drawn, or several times a second while others draw; what it raises
                ends the sampling.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What a step's record should say of the sampler; the main rank's is recorded."""
        ...

    def sync(self, step: int) -> None:
        """From now on sample from the trainer's weights, which are those after `step` steps; called on all ranks."""
        ...


@dataclass(frozen=True, slots=True)
class Watched:
    """A sampler of which every token is noticed, whoever samples: its own `on_token` comes before the caller's."""

    sampler: Sampler
    on_token: Callable[[], None]

    @property
    def version(self) -> int:
        """See `Sampler.version`."""
        return self.sampler.version

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_groups: OnGroups | None = None,
        on_token: Callable[[], None] = nothing,
    ) -> list[Group]:
        """See `Sampler.sample`."""

        def noticed() -> None:
            self.on_token()
            on_token()

        return self.sampler.sample(prompts, params, seed_parts, on_groups, noticed)

    def metrics(self) -> dict[str, float]:
        """See `Sampler.metrics`."""
        return self.sampler.metrics()

    def sync(self, step: int) -> None:
        """See `Sampler.sync`."""
        self.sampler.sync(step)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The sampling of a run: what stays the same from step to step.

    Attributes:
        sampler, params: who draws, and how.
        seed: of the run.
        together: calls what it is given, which samples; all ranks get there equally often.
    """

    sampler: Sampler
    params: SamplingParams
    seed: int
    together: Callable[[Callable[[], list[Group]]], list[Group]] = lambda sample: sample()

    def __call__(
        self, prompts: Sequence[Prompt], step: int, attempt: int = 0, on_groups: OnGroups | None = None
    ) -> list[Group]:
        """The groups of `step` (0-based); `attempt` > 0 are the tries of dynamic sampling.

        Raises:
            NonFiniteGroups: see `finite.all_finite`.
        """
        purpose = ("rollout", step) if attempt == 0 else ("resample", step, attempt)
        self.sampler.sync(step)
        draw = partial(self.sampler.sample, prompts, self.params, (self.seed, *purpose), on_groups)
        return all_finite(self.together(draw))
