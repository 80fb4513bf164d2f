"""How many tokens the attention cache of a rollout may hold, from the memory that is free.

A figure changes how many completions are decoded at a time, and no completion: each draws by numbers of its own.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from vlm_mhpo.models.families.costs import TextLayers
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.runtime import ranks

FLOAT32 = 4
# Of what is free on a GPU; the rest is for the logits, for the forward of the prompts, and for pieces too small to use.
FREE_SHARE = 0.75
# Of a machine's memory, all its ranks together, where models are small and other programs run. Of the whole and not of
# what is free, so that a run on a CPU is the same run whatever else the machine does.
HOST_SHARE = 0.125
# On a CPU more rows at a time gain nothing.
MOST_ON_HOST = 65536


def bytes_per_token(text: Any, width: int, *, shares_prompt: bool = True) -> int:
    """Bytes that a token leaves in the cache of all layers that keep its keys and values.

    Args:
        text: transformers' configuration of the text layers.
        width: bytes of a weight.
        shares_prompt: keys are held in float32 (`shared_prefix`); transformers' own cache has them as they are.
    """
    return TextLayers.of(text).keys * ((max(FLOAT32, width) if shares_prompt else width) + width)


def state_tokens(text: Any, width: int, *, shares_prompt: bool = True) -> int:
    """Tokens whose keys and values take as much as what recurrent layers keep of a prompt or completion; 0 without."""
    if "linear_attention" not in (getattr(text, "layer_types", None) or ()):
        return 0
    return -(-TextLayers.of(text).state_bytes(width) // bytes_per_token(text, width, shares_prompt=shares_prompt))


def tokens_that_fit(num_bytes: float, per_token: int) -> int:
    """Tokens whose cache fits in the share of so many free bytes that is meant for it, in thousands; at least one."""
    tokens = int(FREE_SHARE * num_bytes) // per_token
    return max(1, tokens - tokens % 1024)


def budget_of(policy: Policy) -> int:
    """The budget of a policy on its device as it is now, the smallest of all ranks; all of them call together.

    Weights that ZeRO-3 gathers must be there already. What comes only later is not known: under ZeRO-0 the first update
    makes AdamW's moments.
    """
    weight = policy.model.lm_head.weight
    per_token = bytes_per_token(
        policy.model.config.get_text_config(), weight.element_size(), shares_prompt=policy.family.shares_prompt
    )
    if weight.device.type == "cuda":
        # Torch keeps what it has freed; that is free, too.
        kept = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
        tokens = tokens_that_fit(torch.cuda.mem_get_info(weight.device)[0] + kept, per_token)
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        tokens = min(MOST_ON_HOST, max(1, int(HOST_SHARE * memory) // (local_ranks * per_token)))
    return -ranks.largest(-tokens)
