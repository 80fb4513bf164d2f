"""Fixed scored completions for the tests over ranks, and what plain torch makes of them without DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data_prep.schema import make_row
from tests import builders
from tests.reference import objectives as reference
from vlm_mhpo.types import ScoredGroup

# AdamW's first step is the sign of the gradient unless epsilon is large beside it. With this one the step is nearly
# proportional to the gradient, so a gradient that is wrong by a factor shows.
ADAM = {"learning_rate": 0.3, "adam_epsilon": 1.0, "weight_decay": 0.01}
LENGTHS = ((5, 2, 9), (7, 1, 4), (3, 3, 8), (6, 2, 2))
REWARDS = ((1.0, -0.5, 0.25), (0.0, 2.0, -1.0), (-0.75, 1.5, 0.5), (1.0, 0.5, -2.0))
PROBLEMS = ("What is red plus blue?", "What is red times blue?", "Find the area of the figure.", "3 + 4 ?")
# Which of the four prompts have an image; two ranks share the prompts half and half.
PICTURES = {"mixed": (True, False, False, True), "lopsided": (True, True, False, False), "text": (False,) * 4}
for _case in ("idle", "flat", "still"):
    PICTURES[_case] = PICTURES["mixed"]
# Groups of equal rewards: both of the first of two ranks, or all.
EQUAL = ((1.0,) * 3, (-0.5,) * 3)
REWARDS_OF = {"flat": (*EQUAL, *REWARDS[2:]), "still": (*EQUAL, *EQUAL)}
# Prompts whose completions were all cut at the budget and are masked: the first of two ranks, or the first two of
# four, then have no token that counts.
CUT = {"idle": (True, True, False, False)}


def load_tiny(folder: Path, **options) -> builders.Tiny:
    """The tiny model in `folder` with its codec."""
    from vlm_mhpo.models.loading import load_policy

    policy, codec = load_policy(str(folder), **options)
    return builders.Tiny(policy.family.model_type, folder, policy, codec)


def scored_groups(model: builders.Tiny, case: str) -> list[ScoredGroup]:
    """Four prompts of three completions each, with made-up sampler log-probs and rewards; the same on every rank."""
    rows = [
        make_row(
            id=f"row{index}",
            problem=problem,
            answer="7",
            images=[builders.picture(56 + 28 * index, 56, seed=index)] if PICTURES[case][index] else (),
        )
        for index, problem in enumerate(PROBLEMS)
    ]
    groups, cut, rewards = [], CUT.get(case, (False,) * 4), REWARDS_OF.get(case, REWARDS)
    for index, prompt in enumerate(builders.prompts_of(model, rows)):
        texts = builders.random_completions(model, LENGTHS[index], seed=index)
        # About what a fresh model of 460 tokens gives, off by enough for ratios on both sides of 1.
        noise = torch.randn(3, 9, generator=torch.Generator().manual_seed(index))
        completions = [
            builders.completion(
                ids, [-6.1 + 0.4 * float(value) for value in noise[row, : len(ids)]], truncated=cut[index]
            )
            for row, ids in enumerate(texts)
        ]
        groups.append(builders.scored(prompt, completions, rewards[index]))
    return groups


def plain_step(
    model: builders.Tiny,
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float]],
    max_grad_norm: float,
    objective: Callable[..., reference.Reference] = reference.mhpo,
) -> tuple[dict[str, Tensor], float]:
    """Weights after one torch AdamW step of the loss, and the gradient norm before clipping.

    Stock model on one sequence at a time; gradient by the log-probs from the float64 reference loops. Completions that
    were cut have no token that counts.
    """
    trained = model.copy()
    rate, epsilon, decay = ADAM["learning_rate"], ADAM["adam_epsilon"], ADAM["weight_decay"]
    optimizer = torch.optim.AdamW(trained.policy.parameters(), lr=rate, eps=epsilon, weight_decay=decay)
    flat = [(group.group.prompt, completion) for group in groups for completion in group.group.completions]
    values = [builders.plain_log_probs(trained, prompt, completion.token_ids) for prompt, completion in flat]
    expected = objective(
        [row.tolist() for row in values],
        [completion.log_probs for _, completion in flat],
        [advantage for row in advantages for advantage in row],
        [[not completion.truncated] * len(completion.token_ids) for _, completion in flat],
        len(flat),
    )
    total = sum((row * row.new_tensor(slope)).sum() for row, slope in zip(values, expected.gradient, strict=True))
    total.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(trained.policy.parameters(), max_grad_norm))
    optimizer.step()
    return {name: weight.detach() for name, weight in trained.policy.model.state_dict().items()}, norm
