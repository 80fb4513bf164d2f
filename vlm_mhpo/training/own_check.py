"""Before the first step: does a model that prepares its inputs itself get the log-probs that it should?

Such a model (`models.families.own_path`) is one that nobody has tested here. Two completions of a prompt with an image
and of one without are sampled; their log-probs by the sampler, by the trainer and by a plain forward of transformers on
prompt and completion must agree.

Shape suffixes: S prompt tokens, T completion tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vlm_mhpo.config import FaultsConfig
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.own_path import row_inputs
from vlm_mhpo.models.logit_rule import find_rule
from vlm_mhpo.models.logprobs import scaled_logits
from vlm_mhpo.models.packing import PackedItem, PackedRows, pack_rows
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import Sampler, SamplingParams
from vlm_mhpo.types import Prompt

NUM_SAMPLES, NUM_TOKENS = 2, 8
# As `doctor --parity`: float32 to its own rounding at large logits; in bfloat16 one token may be far off.
LIMITS = {torch.float32: ("max", 2e-3), torch.bfloat16: ("mean", FaultsConfig().max_sampling_gap)}


def check_own_path(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    whole_weights: Callable[[], AbstractContextManager] = nullcontext,
) -> float:
    """The largest gap in nats over the completions of all prompts, in float32; the largest mean in bfloat16.

    Args:
        policy: of a family with `own_inputs`.
        sampler: of the policy.
        prompts: with an image, without one, or both.
        whole_weights: context in which the policy's weights are whole; all ranks enter it together.

    Raises:
        ModelError: they differ, or the model, or its processor, fails.
    """
    with whole_weights():
        is_known = find_rule(policy.model, of_body=False)
    if not is_known:
        raise ModelError(f"a {policy.family.model_type} model changes its logits in a way that is not known here")
    was_training, worst = policy.training, 0.0
    policy.eval()
    try:
        for prompt in prompts:
            worst = max(worst, _checked(policy, sampler, prompt, whole_weights))
    finally:
        policy.train(was_training)
    return worst


def _checked(
    policy: Policy, sampler: Sampler, prompt: Prompt, whole_weights: Callable[[], AbstractContextManager]
) -> float:
    kind = f"a {policy.family.model_type} model cannot be trained here: on a prompt with{'' if prompt.media else 'out'}"
    figure, limit = LIMITS[policy.model.lm_head.weight.dtype]
    try:
        (group,) = sampler.sample([prompt], SamplingParams(NUM_SAMPLES, NUM_TOKENS), ("own check",))
        with torch.no_grad(), whole_weights():
            read = [(*_both(policy, prompt, c.token_ids), c.log_probs) for c in group.completions]
    # Of a model that is not known here, whatever it raises means that it cannot be used as others are.
    except Exception as error:
        raise ModelError(f"{kind} an image it fails ({type(error).__name__}: {_first_line(error)})") from error
    for name, index in (("trainer", 0), ("sampler", 2)):
        gaps_N = torch.cat([(some[index].cpu().double() - some[1].cpu().double()).abs() for some in read])
        gap = float(gaps_N.max() if figure == "max" else gaps_N.mean())
        if not gap <= limit:
            raise ModelError(
                f"{kind} an image, the log-probs of the {name} are {gap:.1e} nats ({figure}) from a plain forward's, "
                f"of which {limit:g} are allowed: choose a model of docs/families.md"
            )
    return gap


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _both(policy: Policy, prompt: Prompt, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[T] log-probs of a completion by the trainer's path and by the stock model's own logits."""
    rows = _row(policy, prompt, ids)
    trained_T, _ = policy(rows, temperature=1.0, chunk_size=64, with_entropy=False)
    logits_SV = policy.model(**row_inputs(policy.model, rows), use_cache=False).logits[0]
    predicting_TV = logits_SV[prompt.num_tokens - 1 : -1]
    logits_TV = scaled_logits(predicting_TV, policy.banned_V.to(logits_SV.device), 1.0)
    return trained_T, logits_TV.log_softmax(dim=-1).gather(-1, rows.target_N[:, None])[:, 0]


def _row(policy: Policy, prompt: Prompt, ids: Sequence[int]) -> PackedRows:
    rows = pack_rows(
        [PackedItem(0, (0,))],
        [prompt],
        [policy.family.positions(policy.model, prompt)],
        [ids],
        join=policy.family.join,
        pad_id=0,
    )
    return rows.to(policy.model.lm_head.weight.device)
