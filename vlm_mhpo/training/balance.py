"""Even work for the ranks: groups change places between ranks when completions turn out longer on some of them.

Every rank waits for the one with most tokens, in every update. Where a group is computed changes nothing but the order
of sums, and the plan follows from the lengths alone, so a continued run moves the same groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import ScoredGroup

# Groups carry their images: below this lead of the busiest rank over the mean, moving them costs more than it saves.
TOLERANCE = 0.05
Place = tuple[int, int]  # rank, index on it


def balance(scored: Sequence[ScoredGroup], num_minibatches: int, *, skips_flat: bool = False) -> list[ScoredGroup]:
    """This rank's groups after the exchange, as many in each minibatch as before.

    Args:
        scored: this rank's groups, minibatch after minibatch; the same number on every rank.
        num_minibatches: consecutive parts of equal size; groups stay in theirs.
        skips_flat: no forward reads a group whose rewards are all equal, so it weighs nothing.
    """
    if ranks.world_size() == 1:
        return list(scored)
    size = len(scored) // num_minibatches
    loads = ranks.gather_objects([0 if skips_flat and group.is_flat else num_tokens(group) for group in scored])
    swaps: list[tuple[Place, Place]] = []
    for start in range(0, len(scored), size):
        part = [rank_loads[start : start + size] for rank_loads in loads]
        swaps += [((a, start + i), (b, start + j)) for (a, i), (b, j) in plan_swaps(part)]
    return exchange(scored, swaps)


def num_tokens(scored: ScoredGroup) -> int:
    """Tokens of a group's packed row."""
    return scored.group.prompt.num_tokens + sum(len(c.token_ids) for c in scored.group.completions)


def plan_swaps(loads: Sequence[Sequence[int]]) -> list[tuple[Place, Place]]:
    """Swaps, one after the other, that even out the ranks' sums; each lowers the larger of the two sums most.

    Args:
        loads: tokens of each group, for each rank.
    """
    held = [list(each) for each in loads]
    swaps: list[tuple[Place, Place]] = []
    while True:
        sums = [sum(each) for each in held]
        busiest, idlest = max(range(len(sums)), key=sums.__getitem__), min(range(len(sums)), key=sums.__getitem__)
        if max(sums) <= (1 + TOLERANCE) * sum(sums) / len(sums):
            return swaps
        gap = sums[busiest] - sums[idlest]
        pairs = product(range(len(held[busiest])), range(len(held[idlest])))
        # After moving a difference d the two lie |gap - 2 d| apart.
        best = min(pairs, key=lambda pair: abs(gap - 2 * (held[busiest][pair[0]] - held[idlest][pair[1]])))
        difference = held[busiest][best[0]] - held[idlest][best[1]]
        if not 0 < difference < gap:
            return swaps
        held[busiest][best[0]] -= difference
        held[idlest][best[1]] += difference
        swaps.append(((busiest, best[0]), (idlest, best[1])))


def exchange(scored: Sequence[ScoredGroup], swaps: Sequence[tuple[Place, Place]]) -> list[ScoredGroup]:
    """Carry the swaps out; all ranks call it with the same swaps."""
    source = {place: place for pair in swaps for place in pair}
    for a, b in swaps:
        source[a], source[b] = source[b], source[a]
    moving = {origin for place, origin in source.items() if origin[0] != place[0]}
    if not moving:
        return list(scored)
    rank = ranks.rank()
    sent = {origin: scored[origin[1]] for origin in sorted(moving) if origin[0] == rank}
    arrived = {origin: group for part in ranks.gather_objects(sent) for origin, group in part.items()}
    own = {place: place for place in ((rank, index) for index in range(len(scored)))} | source
    return [
        scored[origin[1]] if origin[0] == rank else arrived[origin]
        for origin in (own[rank, index] for index in range(len(scored)))
    ]
