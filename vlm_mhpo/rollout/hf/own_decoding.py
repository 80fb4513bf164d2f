"""Decoding for models whose inputs are prepared by themselves: a prompt at a time, its completions together.

Draws the tokens that `decoding.Decoding` would draw: the same uniform numbers, the same rule.

Shape suffixes: B completions, V vocabulary, H hidden, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vlm_mhpo.models.families.own_path import Generation
from vlm_mhpo.models.logprobs import head_logits, scaled_logits
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.choosing import choose_tokens
from vlm_mhpo.rollout.hf.decoding import COMPACT_SHARE, Drawn
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.runtime.seeding import uniforms
from vlm_mhpo.types import Prompt


def decode_own(
    policy: Policy,
    prompts: Sequence[Prompt],
    order: Sequence[int],
    params: SamplingParams,
    seed_of: Callable[[int], int],
    ends: Sequence[int],
    budget: int,
    on_token: Callable[[], None],
) -> Iterator[list[Drawn]]:
    """All completions of the prompts at the places `order`, as they end; arguments as of `decoding.Decoding`."""
    size = params.num_samples
    for place in order:
        most = max(1, budget // (prompts[place].num_tokens + params.max_tokens))
        numbers = range(place * size, (place + 1) * size)
        for first in range(0, size, most):
            yield from _Together(policy, prompts[place], numbers[first : first + most], params, seed_of, ends).run(
                on_token
            )


class _Together:
    """Some completions of one prompt."""

    def __init__(
        self,
        policy: Policy,
        prompt: Prompt,
        numbers: Sequence[int],
        params: SamplingParams,
        seed_of: Callable[[int], int],
        ends: Sequence[int],
    ) -> None:
        self._head, self._params = policy.model.lm_head, params
        self._device = self._head.weight.device
        self._banned_V = policy.banned_V.to(self._device)
        self._ends = torch.tensor(ends, device=self._device)
        self._numbers = np.array(numbers)
        draws = [uniforms(seed_of(number), params.max_tokens) for number in numbers]
        self._draws_BT = torch.from_numpy(np.stack(draws)).to(self._device)
        self._tokens_BT = torch.zeros(self._draws_BT.shape, dtype=torch.int64, device=self._device)
        self._log_probs_BT = torch.zeros(self._draws_BT.shape, device=self._device)
        self._open_B = np.ones(len(numbers), dtype=bool)
        self._generation = Generation(policy.model, prompt, self._device)

    def run(self, on_token: Callable[[], None]) -> Iterator[list[Drawn]]:
        """The completions as they end."""
        with span("sample/prefill"):
            states_BH = self._generation.prefill()
            self._generation.copy(len(self._numbers))
        states_BH = states_BH.expand(len(self._numbers), -1)
        for time in range(self._params.max_tokens):
            on_token()
            yield self._draw(head_logits(states_BH, self._head), time)
            if not self._open_B.any():
                return
            self._compact()
            with span("sample/decode"):
                states_BH = self._generation.step(self._tokens_BT[:, time])

    def _draw(self, logits_BV: Tensor, time: int) -> list[Drawn]:
        """Draw token `time` of all rows; those that end with it."""
        logits_BV = scaled_logits(logits_BV, self._banned_V, self._params.temperature or 1.0)
        token_B = choose_tokens(logits_BV, self._draws_BT[:, time], self._params)
        self._tokens_BT[:, time] = token_B
        chosen_B = logits_BV.gather(-1, token_B[:, None]).squeeze(-1)
        self._log_probs_BT[:, time] = chosen_B - logits_BV.logsumexp(dim=-1)
        is_last = time + 1 == self._params.max_tokens
        ended = np.flatnonzero(self._open_B & (torch.isin(token_B, self._ends).cpu().numpy() | is_last))
        self._open_B[ended] = False
        return [
            Drawn(
                int(self._numbers[row]),
                self._tokens_BT[row, : time + 1].tolist(),
                self._log_probs_BT[row, : time + 1].cpu().clone(),
            )
            for row in ended
        ]

    def _compact(self) -> None:
        """Let ended rows go once there are enough of them."""
        if (~self._open_B).sum() < COMPACT_SHARE * len(self._open_B) or self._open_B.all():
            return
        kept = np.flatnonzero(self._open_B)
        rows = torch.from_numpy(kept).to(self._device)
        self._generation.keep(rows)
        self._draws_BT, self._tokens_BT = self._draws_BT[rows], self._tokens_BT[rows]
        self._log_probs_BT = self._log_probs_BT[rows]
        self._numbers, self._open_B = self._numbers[kept], self._open_B[kept]
