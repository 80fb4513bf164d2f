"""Rule-based rewards: verdicts on untrusted completions and their weighted combination."""

from rewards.compared import how_compared, same_answer
from rewards.functions.combine import Scorer, build_scorer
from rewards.response.response import format_score
from rewards.types import Item, RewardError, RewardSpec, RewardTable, Sample, Score, Verdict, VerifierError
from rewards.verify import Verifier, verify
from rewards.version import grader_version

__all__ = [
    "Item",
    "RewardError",
    "RewardSpec",
    "RewardTable",
    "Sample",
    "Score",
    "Scorer",
    "Verdict",
    "Verifier",
    "VerifierError",
    "build_scorer",
    "format_score",
    "grader_version",
    "how_compared",
    "same_answer",
    "verify",
]
