"""The multiplier of every objective as a formula, in plain Python: M before A grad log pi, for one completion.

Each takes the log-ratios of the counted tokens of one completion and the advantage. Constants are the papers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Formula = Callable[[Sequence[float], float], list[float]]


def mhpo(xs: Sequence[float], advantage: float) -> list[float]:
    def one(x: float) -> float:
        psi = 1.5 * math.tanh(x / 1.5)
        zeta = math.log1p(math.exp(psi)) ** 1.5 + (math.log1p(math.exp(-psi)) / 0.8) ** 2
        return math.exp(psi - zeta) / math.cosh(x / 1.5) ** 2

    return [one(x) for x in xs]


def clipped(low: float, high: float) -> Formula:
    """r, and 0 where the ratio has left the trust region in the direction that the advantage pushes."""

    def formula(xs: Sequence[float], advantage: float) -> list[float]:
        ratios = [math.exp(x) for x in xs]
        return [0.0 if (r > 1 + high if advantage > 0 else r < 1 - low) else r for r in ratios]

    return formula


def gspo(xs: Sequence[float], advantage: float) -> list[float]:
    return clipped(3e-4, 4e-4)([math.fsum(xs) / len(xs)], advantage) * len(xs)


def gmpo(xs: Sequence[float], advantage: float) -> list[float]:
    bounded = [min(x, 0.4) if advantage > 0 else max(x, -0.4) for x in xs]
    weight = math.exp(math.fsum(bounded) / len(xs))
    return [weight if limited == x else 0.0 for x, limited in zip(xs, bounded, strict=True)]


def cispo(xs: Sequence[float], advantage: float) -> list[float]:
    return [min(math.exp(x), 5.0) for x in xs]


def sapo(xs: Sequence[float], advantage: float) -> list[float]:
    tau = 1.0 if advantage > 0 else 1.05

    def one(r: float) -> float:
        gate = 1 / (1 + math.exp(-tau * (r - 1)))
        return 4 * gate * (1 - gate) * r

    return [one(math.exp(x)) for x in xs]


def vespo(xs: Sequence[float], advantage: float) -> list[float]:
    weight = math.prod(math.exp(x) for x in xs)
    k, decay = (2.0, 3.0) if advantage >= 0 else (3.0, 2.0)
    return [weight**k * math.exp(decay * (1 - weight))] * len(xs)


def dppo_tv(xs: Sequence[float], advantage: float, old_log_prob: float = 0.0) -> list[float]:
    """The curve has old probabilities of 1: there the change of the probability is that of the ratio."""
    change = 0.2 / math.exp(old_log_prob)
    return [min(weight, 20.0) for weight in clipped(change, change)(xs, advantage)]


def reinforce(xs: Sequence[float], advantage: float) -> list[float]:
    return [1.0] * len(xs)


FORMULAS: dict[str, Formula] = {
    "mhpo": mhpo,
    "grpo": clipped(0.2, 0.2),
    "dr_grpo": clipped(0.2, 0.2),
    "dapo": clipped(0.2, 0.28),
    "gspo": gspo,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "vespo": vespo,
    "dppo_tv": dppo_tv,
    "reinforce": reinforce,
}
