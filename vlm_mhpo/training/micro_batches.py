"""From prompts and token sequences to micro-batches that the policy reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_mhpo.models.packing import PackedItem, PackedRows, pack_rows, plan_micro_batches
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Media, Prompt


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward's rows, kept for every forward of a step.

    Attributes:
        packed: the tensors of the rows on the CPU, without images.
        media: the images of each row, which belong to the prompts.
        join: `Family.join`.
        completion_indices: the completions in it, as flat indices of the batch.
        is_padding: True for a repeat that keeps this rank in step with the others; its loss must count nothing.
    """

    packed: PackedRows
    media: tuple[Media | None, ...]
    join: Callable[[Sequence[Media | None]], Media | None]
    completion_indices: tuple[int, ...]
    is_padding: bool = False

    @property
    def rows(self) -> PackedRows:
        """The rows on the compute device, with their images; made anew, so that nobody keeps the pixels there."""
        return replace(self.packed, media=self.join(self.media)).to(ranks.device())

    def scatter(self, values_N: Tensor) -> tuple[Tensor, Tensor]:
        """[N] values of the tokens to [B, T] rows (zeros elsewhere) and their mask; B in `completion_indices` order."""
        lengths_B = torch.tensor([length for _, *row in self.packed.lengths for length in row])
        rows_N = torch.arange(len(lengths_B)).repeat_interleave(lengths_B).to(values_N.device)
        time_N = self.packed.time_N.to(values_N.device)
        shape = (len(lengths_B), int(lengths_B.max()))
        mask_BT = torch.zeros(shape, dtype=torch.bool, device=values_N.device)
        mask_BT[rows_N, time_N] = not self.is_padding
        values_BT = torch.zeros(shape, dtype=values_N.dtype, device=values_N.device)
        return values_BT.index_put((rows_N, time_N), values_N), mask_BT


def micro_batches(
    policy: Policy,
    prompts: Sequence[Prompt],
    completion_ids: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int,
    pad_id: int,
    skipped: Collection[int] = (),
) -> list[MicroBatch]:
    """Pack groups into micro-batches, the same number on every rank and at least one.

    Args:
        policy: gives positions.
        prompts: this rank's prompts, at least one.
        completion_ids: for each prompt, the token ids of its completions; flat index = order of reading.
        max_tokens: see `packing.plan_micro_batches`.
        pad_id: fills rows.
        skipped: flat indices of completions that no forward needs.
    """
    lengths = [[len(ids) for ids in group] for group in completion_ids]
    plan = plan_micro_batches(
        [prompt.num_tokens for prompt in prompts],
        lengths,
        # A budget of no token is one of a single row.
        max_tokens=0 if policy.family.own_inputs else max_tokens,
        shares_prompt=policy.family.shares_prompt,
        skipped=skipped,
    )
    flat_ids = [ids for group in completion_ids for ids in group]
    positions = [policy.family.positions(policy.model, prompt) for prompt in prompts]

    def build(items: Sequence[PackedItem], is_padding: bool) -> MicroBatch:
        packed = pack_rows(items, prompts, positions, flat_ids, join=lambda media: None, pad_id=pad_id)
        media = tuple(prompts[item.prompt_index].media for item in items)
        indices = tuple(flat for item in items for flat in item.completion_indices)
        return MicroBatch(packed, media, policy.family.join, indices, is_padding)

    # ZeRO-2 and 3 communicate in every forward and backward, so all ranks need as many as the busiest. Agreed before
    # the first one: a rank that asked after its last would meet the others in the middle of theirs.
    num_padding = max(1, ranks.largest(len(plan))) - len(plan)
    real = [build(items, is_padding=False) for items in plan]
    if not num_padding:
        return real
    spare = plan[-1][-1:] if plan else [_shortest(prompts, lengths)]
    return real + num_padding * [build(spare, is_padding=True)]


def _shortest(prompts: Sequence[Prompt], lengths: Sequence[Sequence[int]]) -> PackedItem:
    """The row of one completion that has the fewest tokens."""
    flat, rows = 0, []
    for index, group in enumerate(lengths):
        rows += [(prompts[index].num_tokens + length, index, flat + place) for place, length in enumerate(group)]
        flat += len(group)
    _, prompt_index, flat = min(rows)
    return PackedItem(prompt_index, (flat,))
