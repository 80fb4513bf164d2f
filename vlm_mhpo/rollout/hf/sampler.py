"""Sampling with the trainer's own transformers model: each prompt is run once, then its completions share its cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch

from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import OnGroups, SamplingParams, nothing
from vlm_mhpo.rollout.hf.budget import budget_of
from vlm_mhpo.rollout.hf.decoding import Decoding, Drawn, Work
from vlm_mhpo.rollout.hf.halving import halving
from vlm_mhpo.rollout.hf.own_decoding import decode_own
from vlm_mhpo.rollout.hf.prefill import Prefilled, prefill
from vlm_mhpo.runtime.seeding import derive_seed
from vlm_mhpo.types import Completion, Group, Prompt


class HfSampler:
    """Samples from a policy that lives in this process.

    Args:
        policy: the policy; its weights are read at every call.
        codec: tokenizer and end tokens.
        max_batch_tokens: tokens that the cache may hold: a prompt once, and the budget of each completion; None = as
            many as fit in the memory that is free at the first call, which all ranks make together. Halved for good
            when they do not fit.
        whole_weights: context in which the weights are whole (ZeRO-3 gathers them); entered once per call.
        padding_side: where shorter prompts are padded; both give the same completions (left without shared prompts).
    """

    def __init__(
        self,
        policy: Policy,
        codec: Codec,
        *,
        max_batch_tokens: int | None,
        whole_weights: Callable[[], AbstractContextManager] = nullcontext,
        padding_side: Literal["left", "right"] = "left",
    ) -> None:
        self.policy = policy
        self.codec = codec
        self.max_batch_tokens = max_batch_tokens
        self.whole_weights = whole_weights
        self.padding_side = padding_side
        self.version = 0

    def sync(self, step: int) -> None:
        """The policy lives in this process: its weights are those of the trainer."""
        self.version = step

    def metrics(self) -> dict[str, float]:
        """See `rollout.base.Sampler.metrics`."""
        return {"sampling/max_batch_tokens": float(self.max_batch_tokens)} if self.max_batch_tokens else {}

    def sample(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_groups: OnGroups | None = None,
        on_token: Callable[[], None] = nothing,
    ) -> list[Group]:
        """See `rollout.base.Sampler.sample`."""
        groups: dict[int, Group] = {}
        was_training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), self.whole_weights():
                if not self.max_batch_tokens:
                    # Here, where all weights are in memory, and on all ranks, also on one that has no prompt.
                    self.max_batch_tokens = budget_of(self.policy)
                decoded = partial(self._decoded, list(prompts), params, seed_parts, on_token)
                sizes = tuple(partial(_num_tokens, prompts, params, num) for num in (params.num_samples, 1))
                for finished, budget in halving(range(len(prompts)), decoded, self.max_batch_tokens, *sizes):
                    self.max_batch_tokens = budget
                    groups |= finished
                    if on_groups:
                        on_groups(list(finished.values()))
        finally:
            self.policy.train(was_training)
        return [groups[index] for index in range(len(prompts))]

    def _decoded(
        self,
        prompts: list[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_token: Callable[[], None],
        wanted: Sequence[int],
        budget: int,
    ) -> Iterator[dict[int, Group]]:
        """Groups by the place of their prompt, of the wanted ones, as soon as all their completions have ended."""
        size = params.num_samples

        def run(places: Sequence[int]) -> Prefilled:
            seen = self.policy.with_image_features([prompts[place] for place in places])
            for place, prompt in zip(places, seen, strict=True):
                prompts[place] = prompt
            # A sliding window counts padding behind a prompt as tokens, and a recurrent layer ends behind it.
            family = self.policy.family
            side = self.padding_side if family.shares_prompt and not family.recurrent else "left"
            return prefill(self.policy, seen, self.codec.pad_id, side)

        work = Work(
            lengths=[prompt.num_tokens for prompt in prompts],
            # Those of similar length together: the cache holds each as wide as the longest.
            order=sorted(wanted, key=lambda place: (prompts[place].num_tokens, place)),
            seed_of=lambda number: derive_seed(*seed_parts, prompts[number // size].id, number % size),
            prefill=run,
        )
        ended: dict[int, list[Drawn]] = defaultdict(list)
        ends = self.codec.end_ids
        if self.policy.family.own_inputs:
            decoding = decode_own(self.policy, prompts, work.order, params, work.seed_of, ends, budget, on_token)
        else:
            decoding = Decoding(self.policy, work, params, ends, budget, on_token).run()
        for some in decoding:
            for drawn in some:
                ended[drawn.number // size].append(drawn)
            whole = {drawn.number // size for drawn in some if len(ended[drawn.number // size]) == size}
            if whole:
                yield {place: self._group(prompts[place], ended.pop(place)) for place in sorted(whole)}

    def _group(self, prompt: Prompt, drawn: list[Drawn]) -> Group:
        """The completions of a prompt in the order of their numbers."""
        drawn.sort(key=lambda each: each.number)
        texts = self.codec.texts_of([each.token_ids for each in drawn])
        return Group(
            prompt,
            tuple(
                Completion(
                    tuple(each.token_ids), each.log_probs, text, truncated=each.token_ids[-1] not in self.codec.end_ids
                )
                for each, text in zip(drawn, texts, strict=True)
            ),
        )


def _num_tokens(
    prompts: Sequence[Prompt], params: SamplingParams, num_samples: int, places: int | Sequence[int]
) -> int:
    """Tokens of one or several prompts, each once, and of the budgets of so many of its completions."""
    chosen = [places] if isinstance(places, int) else places
    return sum(prompts[place].num_tokens + params.max_tokens * num_samples for place in chosen)
