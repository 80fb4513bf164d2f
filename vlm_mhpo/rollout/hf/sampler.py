"""Sampling with the trainer's own transformers model: the prompt is run once, then G completions share its cache.

Shape suffixes: P prompts, B = P * G completions, S prompt tokens, T completion tokens, V vocabulary, A position axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.logprobs import scaled_logits
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import OnGroups, SamplingParams, nothing
from vlm_mhpo.rollout.choosing import choose_tokens
from vlm_mhpo.rollout.hf.shared_prefix import CopiedPrefixCache, SharedPrefixCache
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.runtime.seeding import derive_seed, uniforms
from vlm_mhpo.types import Completion, Group, Prompt

# Finished rows leave the batch once this share of it is finished; moving the cache costs more than a few idle rows.
COMPACT_SHARE = 0.25


class HfSampler:
    """Samples from a policy that lives in this process.

    Args:
        policy: the policy; its weights are read at every call.
        codec: tokenizer and end tokens.
        max_batch_tokens: prompt plus budget tokens decoded together.
        whole_weights: context in which the weights are whole (ZeRO-3 gathers them); entered once per call.
        padding_side: where shorter prompts are padded; both give the same completions (left without shared prompts).
    """

    def __init__(
        self,
        policy: Policy,
        codec: Codec,
        *,
        max_batch_tokens: int,
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
                for indices in self._batches(prompts, params):
                    finished = self._sample_batch([prompts[index] for index in indices], params, seed_parts, on_token)
                    groups |= zip(indices, finished, strict=True)
                    if on_groups:
                        on_groups(finished)
        finally:
            self.policy.train(was_training)
        return [groups[index] for index in range(len(prompts))]

    def _batches(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        """Indices of the prompts that are decoded together: similar lengths, bounded tokens."""
        order = sorted(range(len(prompts)), key=lambda index: (prompts[index].num_tokens, index))
        batches: list[list[int]] = []
        for index in order:
            # Sorted upwards, so this prompt is the longest of its batch.
            row_tokens = prompts[index].num_tokens + params.max_tokens * params.num_samples
            if not batches or (len(batches[-1]) + 1) * row_tokens > self.max_batch_tokens:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _sample_batch(
        self,
        prompts: list[Prompt],
        params: SamplingParams,
        seed_parts: tuple[int | str, ...],
        on_token: Callable[[], None],
    ) -> list[Group]:
        prompts = self.policy.with_image_features(prompts)
        seeds = [derive_seed(*seed_parts, prompt.id, j) for prompt in prompts for j in range(params.num_samples)]
        draws_BT = torch.tensor([uniforms(seed, params.max_tokens).tolist() for seed in seeds], dtype=torch.float64)
        token_ids, log_probs = self._decode(prompts, params, draws_BT, on_token)
        texts = self.codec.texts_of(token_ids)
        completions = [
            Completion(tuple(ids), values, text, truncated=ids[-1] not in self.codec.end_ids)
            for ids, values, text in zip(token_ids, log_probs, texts, strict=True)
        ]
        size = params.num_samples
        return [Group(prompt, tuple(completions[i * size : (i + 1) * size])) for i, prompt in enumerate(prompts)]

    def _decode(
        self, prompts: list[Prompt], params: SamplingParams, draws_BT: Tensor, on_token: Callable[[], None]
    ) -> tuple[list[list[int]], list[Tensor]]:
        """Token ids and log-probs of each completion, its end token included."""
        device = self.policy.model.lm_head.weight.device
        state = self._prefill(prompts, params.num_samples, device)
        draws_BT = draws_BT.to(device)
        banned_V = self.policy.banned_V.to(device)
        ends = torch.tensor(self.codec.end_ids, device=device)
        num_rows = draws_BT.shape[0]
        tokens_BT = torch.full((num_rows, params.max_tokens), self.codec.pad_id, device=device)
        log_probs_BT = torch.zeros((num_rows, params.max_tokens), device=device)
        lengths_B = torch.full((num_rows,), params.max_tokens, device=device)
        for time in range(params.max_tokens):
            on_token()
            logits_BV = scaled_logits(state.logits_BV, banned_V, params.temperature or 1.0)
            token_B = choose_tokens(logits_BV, draws_BT[state.rows_B, time], params)
            chosen_B = logits_BV.gather(-1, token_B[:, None]).squeeze(-1) - logits_BV.logsumexp(dim=-1)
            running_B = lengths_B[state.rows_B] == params.max_tokens
            tokens_BT[state.rows_B, time] = torch.where(running_B, token_B, self.codec.pad_id)
            log_probs_BT[state.rows_B, time] = torch.where(running_B, chosen_B, 0.0)
            ended_B = running_B & torch.isin(token_B, ends)
            lengths_B[state.rows_B[ended_B]] = time + 1
            alive_B = running_B & ~ended_B
            num_alive = int(alive_B.sum())
            if num_alive == 0 or time + 1 == params.max_tokens:
                break
            if num_alive <= (1.0 - COMPACT_SHARE) * alive_B.shape[0]:
                state = state.select(alive_B)
                token_B = token_B[alive_B]
            state = self._advance(state, token_B)
        lengths = lengths_B.tolist()
        return (
            [row[:length] for row, length in zip(tokens_BT.tolist(), lengths, strict=True)],
            # Copies: a view would keep, and send to other ranks, the whole batch.
            [row_T[:length].clone() for row_T, length in zip(log_probs_BT.cpu(), lengths, strict=True)],
        )

    def _prefill(self, prompts: list[Prompt], num_samples: int, device: torch.device) -> DecodeState:
        """Run the prompts once; their completions go on from what they left behind."""
        # A sliding window counts padding behind a prompt as tokens.
        side = self.padding_side if self.policy.family.shares_prompt else "left"
        padded = _pad_prompts(self.policy, prompts, self.codec.pad_id, side, device)
        with span("sample/prefill"):
            outputs = self.policy.model.model(**padded.inputs, use_cache=True)
        hidden_PH = outputs.last_hidden_state[torch.arange(len(prompts), device=device), padded.last_P]
        cache, mask_PS = outputs.past_key_values, padded.inputs["attention_mask"]
        if self.policy.family.shares_prompt:
            prefix = [(layer.keys, layer.values) for layer in cache.layers]
            cache = SharedPrefixCache(prefix, mask_PS, num_samples)
        else:
            cache = CopiedPrefixCache(cache, mask_PS, num_samples)
        return DecodeState(
            rows_B=torch.arange(len(prompts) * num_samples, device=device),
            logits_BV=self.policy.model.lm_head(hidden_PH).repeat_interleave(num_samples, dim=0),
            position_B=padded.next_position_P.repeat_interleave(num_samples, dim=0),
            num_axes=padded.num_axes,
            cache=cache,
        )

    def _advance(self, state: DecodeState, token_B: Tensor) -> DecodeState:
        """Feed one token to every row."""
        position_B1 = state.position_B[:, None]
        with span("sample/decode"):
            outputs = self.policy.model.model(
                input_ids=token_B[:, None],
                position_ids=position_B1 if state.num_axes == 1 else position_B1.expand(state.num_axes, -1, -1),
                use_cache=True,
                **state.cache.inputs(len(token_B)),
            )
        logits_BV = self.policy.model.lm_head(outputs.last_hidden_state[:, -1])
        return DecodeState(state.rows_B, logits_BV, state.position_B + 1, state.num_axes, state.cache)


@dataclass(frozen=True, slots=True)
class DecodeState:
    """What decoding carries from token to token.

    Attributes:
        rows_B: [B] int64, which completion each row is; rows leave when finished.
        logits_BV: [B, V] of the next token.
        position_B: [B] int64 of the next token.
        num_axes: position axes, 3 or 1.
        cache: keys and values; changed in place.
    """

    rows_B: Tensor
    logits_BV: Tensor
    position_B: Tensor
    num_axes: int
    cache: SharedPrefixCache | CopiedPrefixCache

    def select(self, keep_B: Tensor) -> DecodeState:
        """The rows where `keep_B` is True."""
        self.cache.select(keep_B)
        return DecodeState(
            self.rows_B[keep_B],
            self.logits_BV[keep_B],
            self.position_B[keep_B],
            self.num_axes,
            self.cache,
        )


@dataclass(frozen=True, slots=True)
class PaddedPrompts:
    """Prompts as one batch: the model's keyword arguments, the last real token and the next position of each."""

    inputs: dict[str, Any]
    last_P: Tensor
    next_position_P: Tensor
    num_axes: int


def _pad_prompts(
    policy: Policy, prompts: list[Prompt], pad_id: int, side: Literal["left", "right"], device: torch.device
) -> PaddedPrompts:
    """Pad prompts of different lengths to one width on either side."""
    width = max(prompt.num_tokens for prompt in prompts)
    positions = [policy.family.positions(policy.model, prompt) for prompt in prompts]
    num_axes = positions[0].shape[0]
    input_ids_PS = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask_PS = torch.zeros((len(prompts), width), dtype=torch.int64)
    positions_APS = torch.zeros((num_axes, len(prompts), width), dtype=torch.int64)
    for row, (prompt, position_AS) in enumerate(zip(prompts, positions, strict=True)):
        start = width - prompt.num_tokens if side == "left" else 0
        span = slice(start, start + prompt.num_tokens)
        input_ids_PS[row, span] = prompt.input_ids_S
        mask_PS[row, span] = 1
        positions_APS[:, row, span] = position_AS
    inputs = {
        "input_ids": input_ids_PS,
        "attention_mask": mask_PS,
        "position_ids": positions_APS if num_axes > 1 else positions_APS[0],
    }
    media = policy.family.join([prompt.media for prompt in prompts])
    media = media.to(device) if media else None
    lengths_P = mask_PS.sum(dim=1)
    return PaddedPrompts(
        inputs={name: value.to(device) for name, value in inputs.items()} | policy.media_inputs(media),
        last_P=(lengths_P - 1 if side == "right" else torch.full_like(lengths_P, width - 1)).to(device),
        next_position_P=torch.stack([position_AS.max() + 1 for position_AS in positions]).to(device),
        num_axes=num_axes,
    )
