"""The objectives and aggregations side by side, each with its float64 reference: what the common tests run over."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.reference import objectives as reference
from tests.reference.objectives import MhpoConstants, Reference, TokenShare
from tests.vlm_mhpo.test_objectives.cases import Case, Objective, reference_of
from vlm_mhpo.objectives import aggregation
from vlm_mhpo.objectives.cispo import cispo_loss
from vlm_mhpo.objectives.dppo_tv import dppo_tv_loss
from vlm_mhpo.objectives.gmpo import gmpo_loss
from vlm_mhpo.objectives.grpo import grpo_loss
from vlm_mhpo.objectives.gspo import gspo_loss
from vlm_mhpo.objectives.mhpo import mhpo_loss
from vlm_mhpo.objectives.reinforce import reinforce_loss
from vlm_mhpo.objectives.sapo import sapo_loss
from vlm_mhpo.objectives.vespo import vespo_loss

NAN, INF = math.nan, math.inf
MAX_LENGTH = 96


@dataclass(frozen=True)
class Member:
    """An objective: its loss, its reference, knobs to try (the paper's first) and knobs it must refuse.

    `kinks` and `sequence_kinks` are where it has no derivative, under any of the knobs; see `random_case`.
    """

    name: str
    loss: Objective
    reference: Callable[..., Reference]
    knobs: tuple[dict[str, float], ...] = ({},)
    refused: tuple[tuple[str, float], ...] = ()
    kinks: tuple[float, ...] = ()
    sequence_kinks: tuple[float, ...] = ()
    spans: tuple[float, ...] = (0.5, 3.0, 30.0)
    default_aggregation: str = "completion_mean"

    @property
    def case_options(self) -> dict[str, tuple[float, ...]]:
        """What random cases of this objective keep away from."""
        return {"kinks": self.kinks, "sequence_kinks": self.sequence_kinks}

    def expect(self, case: Case, aggregation_name: str, **knobs: float) -> Reference:
        """The reference's loss and gradient."""
        return reference_of(self.reference, case, share=share_of(aggregation_name, case), **knobs)


def _mhpo(*batch: object, share: TokenShare, **knobs: float) -> Reference:
    return reference.mhpo(*batch, MhpoConstants(**knobs), share)


def _logs(*ratios: float) -> tuple[float, ...]:
    return tuple(math.log(ratio) for ratio in ratios)


MHPO = Member(
    "mhpo",
    mhpo_loss,
    _mhpo,
    knobs=(
        {"c": 1.5, "k_pos": 1.5, "lambda_pos": 1.0, "k_neg": 2.0, "lambda_neg": 0.8},
        {"c": 0.7, "k_pos": 2.5, "lambda_pos": 1.3, "k_neg": 1.2, "lambda_neg": 0.6, "normalize_hazard": True},
    ),
    refused=tuple(
        (name, value) for name in ("c", "k_pos", "lambda_pos", "k_neg", "lambda_neg") for value in (0.0, -1.0, NAN)
    ),
)
GRPO = Member(
    "grpo",
    grpo_loss,
    reference.grpo,
    knobs=(
        {"epsilon_low": 0.2, "epsilon_high": 0.2},
        {"epsilon_low": 0.2, "epsilon_high": 0.28},
        {"epsilon_low": 0.3, "epsilon_high": 0.2},
    ),
    refused=(("epsilon_low", -0.1), ("epsilon_low", NAN), ("epsilon_high", -0.1), ("epsilon_high", NAN)),
    kinks=_logs(0.8, 1.2, 0.7, 1.28),
)
GSPO = Member(
    "gspo",
    gspo_loss,
    reference.gspo,
    knobs=({"epsilon_low": 3e-4, "epsilon_high": 4e-4}, {"epsilon_low": 0.2, "epsilon_high": 0.3}),
    refused=(("epsilon_low", -0.1), ("epsilon_low", NAN), ("epsilon_high", -0.1), ("epsilon_high", NAN)),
    sequence_kinks=_logs(1 - 3e-4, 1 + 4e-4, 0.8, 1.3),
    spans=(2e-3, 0.5, 30.0),
)
CISPO = Member(
    "cispo",
    cispo_loss,
    reference.cispo,
    knobs=({"epsilon_high": 4.0}, {"epsilon_high": 0.3}),
    refused=(("epsilon_high", -0.1), ("epsilon_high", NAN)),
    kinks=_logs(5.0, 1.3),
    default_aggregation="token_mean",
)
SAPO = Member(
    "sapo",
    sapo_loss,
    reference.sapo,
    knobs=({"tau_pos": 1.0, "tau_neg": 1.05}, {"tau_pos": 2.0, "tau_neg": 0.5}),
    refused=tuple((name, value) for name in ("tau_pos", "tau_neg") for value in (0.0, -1.0, NAN)),
)
GMPO = Member(
    "gmpo",
    gmpo_loss,
    reference.gmpo,
    knobs=({"epsilon": 0.4}, {"epsilon": 0.1}),
    refused=(("epsilon", -0.1), ("epsilon", NAN)),
    kinks=(0.4, -0.4, 0.1, -0.1),
)
VESPO = Member(
    "vespo",
    vespo_loss,
    reference.vespo,
    knobs=(
        {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0},
        {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 0.5, "lambda_neg": 4.0},
    ),
    refused=tuple(
        (name, value) for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg") for value in (0.0, -1.0, NAN, INF)
    ),
    spans=(2e-3, 0.1, 3.0),
    default_aggregation="token_mean",
)
DPPO_TV = Member(
    "dppo_tv",
    dppo_tv_loss,
    reference.dppo_tv,
    knobs=(
        {"delta_low": 0.2, "delta_high": 0.2, "max_ratio": 20.0},
        {"delta_low": 0.05, "delta_high": 0.1, "max_ratio": 3.0},
    ),
    refused=(
        *((name, value) for name in ("delta_low", "delta_high") for value in (0.0, -0.1, 1.0, NAN)),
        ("max_ratio", 0.0),
        ("max_ratio", NAN),
    ),
    default_aggregation="token_mean",
)
REINFORCE = Member("reinforce", reinforce_loss, reference.reinforce)

MEMBERS = (MHPO, GRPO, GSPO, CISPO, SAPO, GMPO, VESPO, DPPO_TV, REINFORCE)
AGGREGATIONS = ("completion_mean", "token_mean", "fixed_length")


def aggregate_of(name: str) -> Callable[..., torch.Tensor]:
    """The project's aggregation."""
    return aggregation.fixed_length(MAX_LENGTH) if name == "fixed_length" else getattr(aggregation, name)


def share_of(name: str, case: Case) -> TokenShare:
    """The reference's."""
    return {
        "completion_mean": reference.completion_mean,
        "token_mean": reference.token_mean(case.num_tokens),
        "fixed_length": reference.fixed_length(MAX_LENGTH),
    }[name]
