"""Completions are decoded in slots; one that ends leaves its slot to one that waits.

A budget of tokens says how many slots there are: what the cache may hold is one copy of each prompt and the whole
budget of each completion. When enough slots are idle, waiting completions take them over: their prompts are run, if
they are not in the cache yet, and their first tokens are drawn, while the other slots keep what they have. When nothing
waits any more, idle slots leave the batch.

    step      1  2  3  4  5  6  7
    slot 0    a  a  a  a  a  a  a      lengths: a 7, b 2, c 4, d 1, e 3
    slot 1    b  b  c  c  c  c  -      fixed batches (a b) (c d) (e) take 7 + 4 + 3 = 14 steps
    slot 2    d  e  e  e  -  -  -

Shape suffixes: P prompts, B slots, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm_mhpo.models.logprobs import head_logits, scaled_logits
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.choosing import choose_tokens
from vlm_mhpo.rollout.hf.budget import state_tokens
from vlm_mhpo.rollout.hf.prefill import Prefilled
from vlm_mhpo.rollout.hf.shared_prefix import CopiedPrefixCache, SharedPrefixCache
from vlm_mhpo.rollout.hf.token_layer import TokenModel
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.runtime.seeding import uniforms

# Idle slots leave the batch once this share of it is idle; moving the cache costs more than a few idle rows.
COMPACT_SHARE = 0.25
# Idle slots are taken over once this share of the batch is idle; running prompts one by one costs more than a few.
REFILL_SHARE = 0.125
# Prompt tokens of one forward: beside them everything that a layer computes for them is in memory.
PREFILL_TOKENS = 16384
NOBODY = -1


@dataclass(frozen=True, slots=True)
class Drawn:
    """A completion that has ended.

    Attributes:
        number: which one; number n is of prompt n // num_samples.
        token_ids: its tokens, the end token included.
        log_probs: [T] float32 on the CPU, nats.
    """

    number: int
    token_ids: list[int]
    log_probs: Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be decoded.

    Attributes:
        lengths: tokens of each prompt.
        order: the prompts in the order in which they are taken.
        seed_of: of a completion's uniform numbers.
        prefill: runs some prompts.
    """

    lengths: Sequence[int]
    order: Sequence[int]
    seed_of: Callable[[int], int]
    prefill: Callable[[Sequence[int]], Prefilled]


@dataclass(frozen=True, slots=True)
class Slots:
    """The rows of the batch. What decides what is done next lies on the host.

    Attributes:
        number_B: int64, the completion of each; NOBODY when idle.
        time_B: int64, which of its tokens, from 0, was drawn last.
        start_B: [B] int64, position of its first token.
        draws_BT: [B, T] float64, its uniform numbers.
        tokens_BT, log_probs_BT: [B, T] int64 and float32, what was drawn; anything behind `time_B`.
    """

    number_B: np.ndarray
    time_B: np.ndarray
    start_B: Tensor
    draws_BT: Tensor
    tokens_BT: Tensor
    log_probs_BT: Tensor

    @classmethod
    def none(cls, max_tokens: int, device: torch.device) -> Slots:
        """Without a row."""
        empty_BT = torch.empty((0, max_tokens), device=device)
        nobody_B = np.empty(0, dtype=np.int64)
        start_B = torch.empty(0, dtype=torch.int64, device=device)
        return cls(nobody_B, nobody_B, start_B, empty_BT.double(), empty_BT.long(), empty_BT)

    @property
    def idle_B(self) -> np.ndarray:
        """[B] bool, True where a slot is idle."""
        return self.number_B == NOBODY

    def __len__(self) -> int:
        return len(self.number_B)

    def resized(self, kept: Sequence[int], num_slots: int) -> Slots:
        """These slots, and behind them idle ones."""
        more = num_slots - len(kept)

        def resized(rows_BX: Tensor) -> Tensor:
            rows_BX = rows_BX[kept] if len(kept) < len(rows_BX) else rows_BX
            return torch.cat([rows_BX, rows_BX.new_zeros((more, *rows_BX.shape[1:]))]) if more else rows_BX

        return Slots(
            np.append(self.number_B[kept], np.full(more, NOBODY)),
            np.append(self.time_B[kept], np.zeros(more, dtype=np.int64)),
            *map(resized, (self.start_B, self.draws_BT, self.tokens_BT, self.log_probs_BT)),
        )


class Decoding:
    """Decodes `work` in as many slots as `max_batch_tokens` allows, one at least.

    Args:
        policy: whose tokens are drawn.
        work: what is to be decoded.
        params: how tokens are drawn.
        ends: token ids that end a completion.
        max_batch_tokens: tokens that the cache may hold.
        on_token: called before each draw.
    """

    def __init__(
        self,
        policy: Policy,
        work: Work,
        params: SamplingParams,
        ends: Sequence[int],
        max_batch_tokens: int,
        on_token: Callable[[], None],
    ) -> None:
        self._policy, self._work, self._params = policy, work, params
        self._max_batch_tokens, self._on_token = max_batch_tokens, on_token
        self._device = policy.model.lm_head.weight.device
        self._banned_V = policy.banned_V.to(self._device)
        self._ends_V = torch.zeros_like(self._banned_V).index_fill_(0, torch.tensor(ends, device=self._device), True)
        self._shares = policy.family.shares_prompt
        self._token_model = TokenModel.of(policy) if self._shares else None
        # What recurrent layers keep of each prompt and each row, in tokens of the budget.
        self._state_tokens = state_tokens(
            policy.model.config.get_text_config(),
            policy.model.lm_head.weight.element_size(),
            shares_prompt=self._shares,
        )
        self._cache = SharedPrefixCache(params.max_tokens) if self._shares else CopiedPrefixCache()
        size = params.num_samples
        self._waiting = deque(prompt * size + sample for prompt in work.order for sample in range(size))
        # The prompts in the cache, in its order: last hidden state, and position of a completion's first token.
        self._prompts: dict[int, tuple[Tensor, int]] = {}
        self._num_axes = 1
        self._slots = Slots.none(params.max_tokens, self._device)

    def run(self) -> Iterator[list[Drawn]]:
        """All completions, as they end."""
        yield from self._take_over()
        while len(self._slots):
            yield self._advance()
            yield from self._take_over()

    def _take_over(self) -> Iterator[list[Drawn]]:
        """Give idle slots to waiting completions, or take them out of the batch, as soon as there are enough."""
        while self._is_due():
            yield self._seat(self._next())

    def _is_due(self) -> bool:
        num_slots, num_idle = len(self._slots), int(self._slots.idle_B.sum())
        if num_idle == num_slots:
            return num_slots > 0 or bool(self._waiting)
        # Rows that grow together take nobody in.
        return num_idle >= (REFILL_SHARE if self._waiting and self._shares else COMPACT_SHARE) * num_slots

    def _next(self) -> list[int]:
        """The waiting completions that fit beside those that go on."""
        running = self._slots.number_B[~self._slots.idle_B]
        taken: list[int] = []
        if len(running) and not self._shares:
            return taken
        prompts = set(self._prompts_of(running))
        while self._waiting:
            prompts.add(self._waiting[0] // self._params.num_samples)
            num_rows = len(running) + len(taken) + 1
            width = max(self._work.lengths[prompt] for prompt in prompts)
            held = (len(prompts) if self._shares else num_rows) * width + num_rows * self._params.max_tokens
            held += (len(prompts) + num_rows) * self._state_tokens
            if num_rows > 1 and held > self._max_batch_tokens:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _seat(self, numbers: list[int]) -> list[Drawn]:
        """Draw the first tokens of these completions, in idle slots and then in new ones; idle slots that are left go.

        Returns:
            Those that end with their first token.
        """
        old, idle = self._slots, np.flatnonzero(self._slots.idle_B)
        kept = np.delete(np.arange(len(old)), idle[len(numbers) :]).tolist()
        slots = self._slots = old.resized(kept, len(old) - len(idle) + len(numbers))
        if not len(slots):
            return []
        fresh = np.flatnonzero(slots.idle_B)
        slots.number_B[fresh], slots.time_B[fresh] = numbers, 0
        if numbers and not self._shares:
            # The copies of a prompt went with their rows.
            self._prompts.clear()
        self._hold(self._prompts_of(slots.number_B))
        place_of = {prompt: place for place, prompt in enumerate(self._prompts)}
        self._cache.seat(kept, np.array([place_of[prompt] for prompt in self._prompts_of(slots.number_B)]))
        if not numbers:
            return []
        at = self._on_device(fresh)
        draws = [uniforms(self._work.seed_of(number), self._params.max_tokens) for number in numbers]
        slots.draws_BT[at] = self._on_device(np.stack(draws))
        prompts = self._prompts_of(numbers)
        slots.start_B[at] = self._on_device(np.array([self._prompts[prompt][1] for prompt in prompts]))
        place_of = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        hidden_PH = torch.stack([self._prompts[prompt][0] for prompt in place_of])
        logits_PV = head_logits(hidden_PH, self._policy.model.lm_head)
        return self._draw(fresh, logits_PV[[place_of[prompt] for prompt in prompts]])

    def _prompts_of(self, numbers: Sequence[int] | np.ndarray) -> list[int]:
        return (np.asarray(numbers, dtype=np.int64) // self._params.num_samples).tolist()

    def _hold(self, wanted: Sequence[int]) -> None:
        """Let prompts that nobody needs leave the cache, and run those that it lacks."""
        self._cache.leave([place for place, prompt in enumerate(self._prompts) if prompt in set(wanted)])
        self._prompts = {prompt: first for prompt, first in self._prompts.items() if prompt in set(wanted)}
        for prompts in self._forwards([prompt for prompt in dict.fromkeys(wanted) if prompt not in self._prompts]):
            done = self._work.prefill(prompts)
            self._cache.enter(done.cache, done.mask_PS)
            self._prompts |= zip(prompts, zip(done.hidden_PH, done.next_position_P.tolist(), strict=True), strict=True)
            self._num_axes = done.num_axes

    def _forwards(self, prompts: list[int]) -> list[list[int]]:
        """Prompts that are run together."""
        forwards: list[list[int]] = []
        for prompt in prompts:
            width = max(self._work.lengths[each] for each in [prompt, *(forwards[-1] if forwards else ())])
            if not forwards or (self._shares and (len(forwards[-1]) + 1) * width > PREFILL_TOKENS):
                forwards.append([])
            forwards[-1].append(prompt)
        return forwards

    def _advance(self) -> list[Drawn]:
        """Feed every slot its last token and draw the next one; those that end with it."""
        slots, times = self._slots, self._slots.time_B.copy()
        time_B1 = self._on_device(times)[:, None]
        position_B1 = slots.start_B[:, None] + time_B1
        ids_B1 = slots.tokens_BT.gather(1, time_B1)
        positions = position_B1 if self._num_axes == 1 else position_B1.expand(self._num_axes, -1, -1)
        with span("sample/decode"):
            inputs = self._cache.inputs(times)
            if self._token_model:
                hidden_B1H = self._token_model(ids_B1, positions, self._cache)
            else:
                outputs = self._policy.model.model(input_ids=ids_B1, position_ids=positions, use_cache=True, **inputs)
                hidden_B1H = outputs.last_hidden_state
        # An idle slot stays at its last place: what it draws there is not read.
        np.minimum(times + 1, self._params.max_tokens - 1, out=slots.time_B)
        logits_BV = head_logits(hidden_B1H[:, -1], self._policy.model.lm_head)
        return self._draw(np.arange(len(slots)), logits_BV)

    def _draw(self, rows: np.ndarray, logits_BV: Tensor) -> list[Drawn]:
        """Draw the next token of these slots; the completions that end with it, whose slots are idle from now on."""
        self._on_token()
        slots, times = self._slots, self._slots.time_B[rows]
        at = self._on_device(rows), self._on_device(times)
        logits_BV = scaled_logits(logits_BV, self._banned_V, self._params.temperature or 1.0)
        token_B = choose_tokens(logits_BV, slots.draws_BT[at], self._params)
        slots.tokens_BT[at] = token_B
        slots.log_probs_BT[at] = logits_BV.gather(-1, token_B[:, None]).squeeze(-1) - logits_BV.logsumexp(dim=-1)
        ended = self._ends_V[token_B].cpu().numpy() | (times + 1 == self._params.max_tokens)
        return self._collect(rows[ended & ~slots.idle_B[rows]])

    def _collect(self, rows: np.ndarray) -> list[Drawn]:
        """The completions of slots that have ended."""
        if not len(rows):
            return []
        slots, lengths = self._slots, (self._slots.time_B[rows] + 1).tolist()
        at = self._on_device(rows)
        token_ids, log_probs = (table_BT[at, : max(lengths)] for table_BT in (slots.tokens_BT, slots.log_probs_BT))
        numbers = slots.number_B[rows].tolist()
        slots.number_B[rows] = NOBODY
        # Copies: a view would keep, and send to other ranks, the log-probs of all.
        return [
            Drawn(number, ids[:length], row_T[:length].clone())
            for number, ids, row_T, length in zip(numbers, token_ids.tolist(), log_probs.cpu(), lengths, strict=True)
        ]

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)
