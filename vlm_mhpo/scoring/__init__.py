"""From groups to rewards and advantages; what other rooms name of the rewards package, which they do not see."""

from rewards import RewardError, Verdict, Verifier, VerifierError, grader_version

__all__ = ["RewardError", "Verdict", "Verifier", "VerifierError", "grader_version"]
