"""From groups to rewards and advantages; the errors of the rewards package, for those who do not see it."""

from rewards import RewardError, VerifierError

__all__ = ["RewardError", "VerifierError"]
