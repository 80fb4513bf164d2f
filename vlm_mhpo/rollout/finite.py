"""No group goes on that was sampled from logits with a NaN in them: all ranks stop, with the evidence at hand."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_mhpo.errors import NonFiniteError
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Group

NUM_NAMED = 8


class NonFiniteGroups(NonFiniteError):
    """Logits were not finite while groups were sampled.

    Attributes:
        groups: all that this rank sampled meanwhile, for a dump; their tokens behind a NaN mean nothing.
    """

    def __init__(self, message: str, groups: Sequence[Group] = ()) -> None:
        super().__init__(message)
        self.groups = groups


def all_finite(groups: list[Group]) -> list[Group]:
    """The groups, when the log-probs of all ranks' groups are finite; called by all ranks.

    Raises:
        NonFiniteGroups: on all ranks, in the same words; names ranks and prompts.
    """
    bad = [group.prompt.id for group in groups if not all(one.log_probs.isfinite().all() for one in group.completions)]
    by_rank = ranks.gather_objects(bad)
    if any(by_rank):
        where = "; ".join(f"rank {rank}: prompts {_some(ids)}" for rank, ids in enumerate(by_rank) if ids)
        raise NonFiniteGroups(f"the model's logits were not finite while it was sampled ({where})", groups)
    return groups


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NUM_NAMED} more" if len(ids) > NUM_NAMED else ""
    return ", ".join(ids[:NUM_NAMED]) + more
