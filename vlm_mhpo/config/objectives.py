"""The sections of the objectives: one class each, chosen by `objective.name`, with the constants of its paper."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from vlm_mhpo.config.base import Section

AggregationName = Literal["completion_mean", "token_mean", "fixed_length"]
AGGREGATION = (
    "How token values become the loss: mean over completions of the token mean, mean over all tokens, or their sum "
    "over completions times max_completion_length."
)


class BaseObjective(Section):
    """What all objectives share."""

    name: str
    beta: float = Field(0.0, ge=0, description="Weight of the KL term to the initial policy; 0 = no reference model.")
    entropy_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of the entropy of every token's distribution (nats, aggregated as the loss is), which is "
        "added to what is maximised; 0 = none.",
    )
    aggregation: AggregationName = Field("completion_mean", description=AGGREGATION)

    def constants(self) -> dict[str, Any]:
        """Keyword arguments of the loss."""
        return self.model_dump(exclude=set(BaseObjective.model_fields))


class MhpoConfig(BaseObjective):
    """MHPO (arXiv:2603.16929): modulated log-ratio, asymmetric Weibull hazard."""

    name: Literal["mhpo"] = "mhpo"
    c: PositiveFloat = Field(1.5, description="Bound of the modulated log-ratio, nats.")
    k_pos: PositiveFloat = Field(1.5, description="Weibull shape of the hazard of ratios above 1.")
    lambda_pos: PositiveFloat = Field(1.0, description="Weibull scale of the hazard of ratios above 1, nats.")
    k_neg: PositiveFloat = Field(2.0, description="Weibull shape of the hazard of ratios below 1.")
    lambda_neg: PositiveFloat = Field(0.8, description="Weibull scale of the hazard of ratios below 1, nats.")
    normalize_hazard: bool = Field(False, description="Use zeta(r) - zeta(1): an on-policy token weighs 1, not 0.265.")
    use_modulator: bool = Field(True, description="False = ablation: the hazard alone, on the plain log-ratio.")
    use_hazard: bool = Field(True, description="False = ablation: the modulator alone.")


class ClippedConfig(BaseObjective):
    """A clipped importance ratio."""

    epsilon: PositiveFloat = Field(0.2, description="Lower clipping distance of the ratio from 1.")
    epsilon_high: PositiveFloat | None = Field(None, description="Upper clipping distance; null = epsilon.")

    def constants(self) -> dict[str, Any]:
        """Keyword arguments of the loss."""
        return {"epsilon_low": self.epsilon, "epsilon_high": self.epsilon_high or self.epsilon}


class GrpoConfig(ClippedConfig):
    """GRPO's clipped surrogate (arXiv:2402.03300)."""

    name: Literal["grpo"] = "grpo"


class DrGrpoConfig(ClippedConfig):
    """Dr. GRPO (arXiv:2503.20783): GRPO over a fixed length; use it with train.scale_rewards=none."""

    name: Literal["dr_grpo"] = "dr_grpo"
    aggregation: AggregationName = Field("fixed_length", description=AGGREGATION)


class DapoConfig(ClippedConfig):
    """DAPO (arXiv:2503.14476): clip-higher and the mean over all tokens."""

    name: Literal["dapo"] = "dapo"
    epsilon_high: PositiveFloat | None = Field(0.28, description="Upper clipping distance; null = epsilon.")
    aggregation: AggregationName = Field("token_mean", description=AGGREGATION)


class GspoConfig(ClippedConfig):
    """GSPO (arXiv:2507.18071): the ratio of the whole completion, clipped."""

    name: Literal["gspo"] = "gspo"
    epsilon: PositiveFloat = Field(3e-4, description="Lower clipping distance of the ratio from 1.")
    epsilon_high: PositiveFloat | None = Field(4e-4, description="Upper clipping distance; null = epsilon.")


class CispoConfig(BaseObjective):
    """CISPO (arXiv:2506.13585): REINFORCE with a clipped constant weight."""

    name: Literal["cispo"] = "cispo"
    epsilon_high: PositiveFloat = Field(4.0, description="Distance of the weight's upper bound from 1.")
    aggregation: AggregationName = Field("token_mean", description=AGGREGATION)


class SapoConfig(BaseObjective):
    """SAPO (arXiv:2511.20347): a sigmoid gate."""

    name: Literal["sapo"] = "sapo"
    tau_pos: PositiveFloat = Field(1.0, description="Temperature of the gate for positive advantages.")
    tau_neg: PositiveFloat = Field(1.05, description="Temperature of the gate for the others.")


class GmpoConfig(BaseObjective):
    """GMPO (arXiv:2507.20673): geometric mean of clipped ratios."""

    name: Literal["gmpo"] = "gmpo"
    epsilon: PositiveFloat = Field(0.4, description="Clipping distance of the log-ratio, nats.")


class VespoConfig(BaseObjective):
    """VESPO (arXiv:2602.10693): a Gamma weight of the whole completion, without length normalisation."""

    name: Literal["vespo"] = "vespo"
    k_pos: PositiveFloat = Field(2.0, description="Exponent of the weight for advantages of at least 0.")
    lambda_pos: PositiveFloat = Field(3.0, description="Decay of the weight for advantages of at least 0.")
    k_neg: PositiveFloat = Field(3.0, description="Exponent of the weight for negative advantages.")
    lambda_neg: PositiveFloat = Field(2.0, description="Decay of the weight for negative advantages.")
    aggregation: AggregationName = Field("token_mean", description=AGGREGATION)


class DppoTvConfig(BaseObjective):
    """DPPO-TV (arXiv:2602.04879): a trust region in the sampled token's probability, not in its ratio."""

    name: Literal["dppo_tv"] = "dppo_tv"
    delta_low: float = Field(0.2, gt=0, lt=1, description="Largest fall of a token's probability that is learnt from.")
    delta_high: float = Field(0.2, gt=0, lt=1, description="Largest rise of a token's probability that is learnt from.")
    max_ratio: PositiveFloat = Field(20.0, description="Bound of the importance weight.")
    aggregation: AggregationName = Field("token_mean", description=AGGREGATION)


class ReinforceConfig(BaseObjective):
    """REINFORCE with the group mean as baseline."""

    name: Literal["reinforce"] = "reinforce"


class CustomConfig(BaseObjective):
    """Your own objective, from a file."""

    name: Literal["custom"] = "custom"
    path: str = Field(description="file.py:function; called like the other losses, returns (loss, metrics).")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments handed to the function.")

    def constants(self) -> dict[str, Any]:
        """Keyword arguments of the loss."""
        return dict(self.kwargs)


OBJECTIVES: tuple[type[BaseObjective], ...] = (
    MhpoConfig,
    GrpoConfig,
    DrGrpoConfig,
    DapoConfig,
    GspoConfig,
    CispoConfig,
    SapoConfig,
    GmpoConfig,
    VespoConfig,
    DppoTvConfig,
    ReinforceConfig,
)
ObjectiveConfig = Annotated[
    MhpoConfig
    | GrpoConfig
    | DrGrpoConfig
    | DapoConfig
    | GspoConfig
    | CispoConfig
    | SapoConfig
    | GmpoConfig
    | VespoConfig
    | DppoTvConfig
    | ReinforceConfig
    | CustomConfig,
    Field(discriminator="name"),
]
