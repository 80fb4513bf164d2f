"""The registry of objectives: a name in the configuration to a loss with its constants and aggregation bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vlm_mhpo.config import BaseObjective
from vlm_mhpo.config.objectives import CustomConfig
from vlm_mhpo.objectives.aggregation import Aggregation, completion_mean, fixed_length, token_mean
from vlm_mhpo.objectives.cispo import cispo_loss
from vlm_mhpo.objectives.custom import load_loss
from vlm_mhpo.objectives.dppo_tv import dppo_tv_loss
from vlm_mhpo.objectives.gmpo import gmpo_loss
from vlm_mhpo.objectives.grpo import grpo_loss
from vlm_mhpo.objectives.gspo import gspo_loss
from vlm_mhpo.objectives.mhpo import mhpo_inside, mhpo_loss
from vlm_mhpo.objectives.reinforce import reinforce_loss
from vlm_mhpo.objectives.sapo import sapo_loss
from vlm_mhpo.objectives.vespo import vespo_loss


def nothing(_: Tensor) -> dict[str, Tensor]:
    """No token quantity."""
    return {}


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises.

    Attributes:
        loss: f(log_probs, old_log_probs, advantages, mask, *, num_completions, num_tokens) -> (loss, metrics).
        aggregate: the mean that `loss` uses, for terms that are added to it.
        inside: f(log_ratio) -> the objective's own token quantities by name, for the records; none by default.
        scales_with_advantage: whether a completion with advantage 0 adds exactly nothing to loss and gradient.
    """

    loss: Callable[..., tuple]
    aggregate: Aggregation
    inside: Callable[[Tensor], dict[str, Tensor]] = nothing
    scales_with_advantage: bool = False


LOSSES: dict[str, Callable[..., tuple]] = {
    "mhpo": mhpo_loss,
    "grpo": grpo_loss,
    "dr_grpo": grpo_loss,
    "dapo": grpo_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
    "sapo": sapo_loss,
    "gmpo": gmpo_loss,
    "vespo": vespo_loss,
    "dppo_tv": dppo_tv_loss,
    "reinforce": reinforce_loss,
}

INSIDE = {"mhpo": mhpo_inside}


def build_objective(config: BaseObjective, max_completion_length: int) -> Objective:
    """The objective of a configuration section.

    Args:
        config: one of the sections of `config.ObjectiveConfig`.
        max_completion_length: token budget, the denominator of the fixed-length mean.
    """
    aggregations = {
        "completion_mean": completion_mean,
        "token_mean": token_mean,
        "fixed_length": fixed_length(max_completion_length),
    }
    aggregate = aggregations[config.aggregation]
    loss = load_loss(config.path) if isinstance(config, CustomConfig) else LOSSES[config.name]
    constants = config.constants()
    inside = partial(INSIDE[config.name], **constants) if config.name in INSIDE else nothing
    # What a user's own function does with such a completion is not known, unless it says so.
    scales = getattr(loss, "scales_with_advantage", not isinstance(config, CustomConfig))
    return Objective(partial(loss, aggregate=aggregate, **constants), aggregate, inside, scales_with_advantage=scales)
