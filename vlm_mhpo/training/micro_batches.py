"""From prompts and token sequences to micro-batches that the policy reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_mhpo.models.packing import PackedItem, PackedRows, pack_rows, plan_micro_batches
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Prompt


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward's rows.

    Attributes:
        rows: the packed tensors, on the compute device.
        completion_indices: the completions in it, as flat indices of the batch.
        is_padding: True for a repeat that keeps this rank in step with the others; its loss must count nothing.
    """

    rows: PackedRows
    completion_indices: tuple[int, ...]
    is_padding: bool = False

    def scatter(self, values_N: Tensor) -> tuple[Tensor, Tensor]:
        """[N] values of the tokens to [B, T] rows (zeros elsewhere) and their mask; B in `completion_indices` order."""
        order = {flat: row for row, flat in enumerate(self.completion_indices)}
        rows_N = torch.tensor([order[flat] for flat in self.rows.completion_N.tolist()], device=values_N.device)
        shape = (len(order), int(self.rows.time_N.max()) + 1)
        mask_BT = torch.zeros(shape, dtype=torch.bool, device=values_N.device)
        mask_BT[rows_N, self.rows.time_N] = not self.is_padding
        values_BT = torch.zeros(shape, dtype=values_N.dtype, device=values_N.device)
        return values_BT.index_put((rows_N, self.rows.time_N), values_N), mask_BT


def micro_batches(
    policy: Policy,
    prompts: Sequence[Prompt],
    completion_ids: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: int,
    pad_id: int,
) -> Iterator[MicroBatch]:
    """Pack groups into micro-batches, the same number on every rank.

    Args:
        policy: gives positions.
        prompts: this rank's prompts, at least one.
        completion_ids: for each prompt, the token ids of its completions; flat index = order of reading.
        max_tokens: see `packing.plan_micro_batches`.
        pad_id: fills rows.
    """
    device = ranks.device()
    plan = plan_micro_batches(
        [prompt.num_tokens for prompt in prompts],
        [[len(ids) for ids in group] for group in completion_ids],
        max_tokens=max_tokens,
        shares_prompt=policy.family.shares_prompt,
    )
    flat_ids = [ids for group in completion_ids for ids in group]
    positions = [policy.family.positions(policy.model, prompt) for prompt in prompts]

    def build(items: Sequence[PackedItem], is_padding: bool) -> MicroBatch:
        rows = pack_rows(items, prompts, positions, flat_ids, join=policy.family.join, pad_id=pad_id).to(device)
        return MicroBatch(rows, tuple(flat for item in items for flat in item.completion_indices), is_padding)

    # ZeRO-2 and 3 communicate in every forward and backward, so all ranks need as many as the busiest. Agreed before
    # the first one: a rank that asked after its last would meet the others in the middle of theirs.
    num_padding = ranks.largest(len(plan)) - len(plan)
    for items in plan:
        yield build(items, is_padding=False)
    for _ in range(num_padding):
        yield build(plan[-1][-1:], is_padding=True)
