"""Which token comes next: inverse CDF at given uniform numbers, among the likely ones.

Shape suffixes: B completions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_mhpo.rollout.base import SamplingParams


def choose_tokens(logits_BV: Tensor, draw_B: Tensor, params: SamplingParams) -> Tensor:
    """[B] token ids by inverse CDF at uniform numbers `draw_B` (float64), or the most likely when greedy."""
    if params.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probs_BV = keep_likely(logits_BV, top_k=params.top_k, top_p=params.top_p).softmax(dim=-1).double()
    cdf_BV = probs_BV.cumsum(dim=-1)
    # right=True steps over tokens of probability 0 even when the draw lands exactly on the edge before them.
    token_B = torch.searchsorted(cdf_BV, (draw_B * cdf_BV[:, -1])[:, None], right=True).squeeze(-1)
    # Behind the last one only where logits are NaN, which `finite.all_finite` looks for when all is sampled.
    return token_B.clamp(max=logits_BV.shape[-1] - 1)


def keep_likely(logits_BV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Logits with all but the `top_k` most likely tokens (0 = all), then all outside the `top_p` nucleus, at -inf."""
    if 0 < top_k < logits_BV.shape[-1]:
        smallest_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    if top_p < 1.0:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probs_BV = sorted_BV.softmax(dim=-1)
        # A token stays when the mass before it is below top_p, so the most likely one always does.
        drop_BV = probs_BV.cumsum(dim=-1) - probs_BV >= top_p
        logits_BV = logits_BV.masked_fill(torch.zeros_like(drop_BV).scatter(-1, order_BV, drop_BV), -torch.inf)
    return logits_BV
