"""Replace groups that teach nothing: all rewards equal means zero advantage (DAPO, arXiv:2503.14476, section 3.2).

Bounded tries, then the step goes on with what there is. Each rank refills its own share; groups do not move between
ranks, so with several ranks the refilled batch depends on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Prompt, ScoredGroup


def _ids_on_all_ranks(prompts: Iterable[Prompt]) -> set[str]:
    """No rank may draw what another has: a prompt would stand twice in the step."""
    return set().union(*ranks.gather_objects({prompt.id for prompt in prompts}))


def refill(
    scored: Sequence[ScoredGroup],
    stream: PromptStream,
    step: int,
    sample_and_score: Callable[[list[Prompt], int], list[ScoredGroup]],
    *,
    max_resample_times: int,
) -> tuple[list[ScoredGroup], dict[str, float]]:
    """Put groups of other prompts in the place of flat ones.

    Args:
        scored: this rank's groups of the step.
        stream: where other prompts come from.
        step: 0-based; the other prompts are a pure function of it.
        sample_and_score: (prompts, try) -> scored groups; called equally often on all ranks.
        max_resample_times: tries; >= 0.

    Returns:
        As many groups as were given, and `dynamic_sampling/*` metrics: share of sampled groups that were not flat
        (the yield), tries, share of the final batch that is still flat.
    """
    groups = list(scored)
    num_sampled, num_useful, tries = len(groups), sum(not group.is_flat for group in groups), 0
    used = _ids_on_all_ranks(group.group.prompt for group in groups)
    while tries < max_resample_times:
        flat = [index for index, group in enumerate(groups) if group.is_flat]
        if not ranks.largest(len(flat)):
            break
        tries += 1
        prompts = stream.others(step, tries, len(flat), exclude=used)
        used |= _ids_on_all_ranks(prompts)
        fresh = sample_and_score(prompts, tries)
        num_sampled += len(fresh)
        useful = [group for group in fresh if not group.is_flat]
        num_useful += len(useful)
        for index, group in zip(flat, useful, strict=False):
            groups[index] = group
    still_flat = sum(group.is_flat for group in groups)
    counts = (num_sampled, num_useful, still_flat, len(groups))
    totals = [sum(part) for part in zip(*ranks.gather_objects(counts), strict=True)]
    return groups, {
        "dynamic_sampling/yield": totals[1] / totals[0],
        "dynamic_sampling/tries": float(tries),
        "dynamic_sampling/still_flat": totals[2] / totals[3],
    }
